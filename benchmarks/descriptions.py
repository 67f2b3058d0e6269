"""Zero-shot, self-taught and semi-supervised learning beside their baselines.

    python benchmarks/descriptions.py --data-root FOLDER --out results zero-shot self-taught semi-supervised

zero-shot: Animals with Attributes (shared data `awa`), 40 seen and 10 unseen classes, by attributes and by embedding,
with 58 training pictures of a seen class; with 44, so that 12 are left to test, also in the generalised setting.
self-taught: the digits 0 to 4 of MNIST without labels, and some labels of 5 to 9. semi-supervised: MNIST with some
labels of each digit. The settings of zero-shot learning were chosen on seen classes that were left out. A finished
training is not run again; `--table` runs nothing and prints what is there.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from prepare import awa

from lightning_da.data import FeatureTables
from lightning_da.grids.tables import mean_and_spread
from lightning_da.methods import DAP, Autoencoder, ClassEmbedding, Clusters, FineTune, PseudoLabels, SelfTaught
from lightning_da.networks import FeedForward, LeNet, PrincipalComponents, Raw, SparseCoding
from lightning_da.paths import write_whole
from lightning_da.schedules import cosine

LABELS = (5, 10, 50)
SEEN = {58: "seen_whole.npz", 44: "seen.npz"}
"""Files of the seen classes by the number of training pictures of a class."""
UNLABELLED = 5000
Scores = dict[str, float]


def train(model: Any, data: FeatureTables, steps: int) -> Scores:
    """Scores on the test splits after a training."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, limit_val_batches=0, enable_model_summary=False, **quiet
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    return {
        key.removeprefix("test/"): float(value) for key, value in trainer.callback_metrics.items() if "test/" in key
    }


def built(kind: Callable[..., Any], data: FeatureTables, lr: float, decay: float = 0.0, **kwargs: Any) -> Any:
    """A method for some data."""
    optimizer = partial(torch.optim.Adam, lr=lr, weight_decay=decay)
    given = {"num_classes": data.num_classes, "input_shape": data.input_shape, "lr_schedule": cosine}
    return kind(optimizer=optimizer, **given, **kwargs)


def zero_shot(out: Path, method: str, pictures: int, seed: int) -> Scores:
    L.seed_everything(seed, verbose=False)
    attributes = {"by attributes": "binary", "by embedding": "continuous"}[method]
    files: dict[str, Any] = {"root": str(out / "awa"), "descriptions": str(out / "awa" / f"{attributes}.csv")}
    whole = 40 * pictures
    data = FeatureTables(SEEN[pictures], "unseen.npz", batch_size=whole if method == "by attributes" else 64, **files)
    given: dict[str, Any] = {"num_attributes": data.num_attributes, "backbone": Raw}
    if method == "by attributes":
        return train(built(DAP, data, 0.01, penalty=1 / (0.01 * whole), **given), data, 1500)
    return train(built(ClassEmbedding, data, 0.003, decay=0.01, **given), data, 800)


FEATURES: dict[str, Any] = {
    "raw pixels": Raw,
    "PCA": partial(PrincipalComponents, components=64),
    "sparse coding": partial(SparseCoding, components=256),
    "autoencoder": partial(FeedForward, hidden=[256, 64]),
}


def self_taught(out: Path, method: str, labels: int, seed: int) -> Scores:
    L.seed_everything(seed, verbose=False)
    data = FeatureTables("low.npz", "high.npz", root=str(out / "digits"), target_labels=f"{labels}/class")
    return train(built(SelfTaught, data, 0.001, backbone=FEATURES[method]), data, 1000)


SEMI: dict[str, Any] = {
    "supervised": FineTune,
    "autoencoder": Autoencoder,
    "pseudo-labels": PseudoLabels,
    "clusters": Clusters,
}


def semi_supervised(out: Path, method: str, labels: int, seed: int) -> Scores:
    L.seed_everything(seed, verbose=False)
    data = FeatureTables(None, "all.npz", root=str(out / "digits"), target_labels=f"{labels}/class")
    network = partial(LeNet, batch_norm=True)
    return train(built(SEMI[method], data, 0.001, train_on="target", backbone=network), data, 600)


def prepare(root: Path, out: Path) -> None:
    """Writes the tables that the trainings read."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "awa").exists():
        awa(root, out)
    if (out / "digits").exists():
        return
    part = out / "digits.part"
    part.mkdir(exist_ok=True)
    with np.load(root / "mnist" / "mnist.npz") as mnist:
        for name, digits in (("low", range(5)), ("high", range(5, 10)), ("all", range(10))):
            arrays: dict[str, Any] = {}
            for split, number in (("train", UNLABELLED), ("test", 10000)):
                rows = np.flatnonzero(np.isin(mnist[f"y_{split}"], digits))[:number]
                arrays |= {f"{kind}_{split}": mnist[f"{kind}_{split}"][rows] for kind in "xy"}
            np.savez(part / f"{name}.npz", **arrays)
    part.rename(out / "digits")


def cells(parts: list[str], seeds: int) -> dict[str, Callable[[Path], Scores]]:
    """The trainings by name, a seed of everything first."""
    found: dict[str, Callable[[Path], Scores]] = {}
    for seed in range(seeds):
        if "zero-shot" in parts:
            for method, number in itertools.product(("by attributes", "by embedding"), SEEN):
                key = f"zero-shot/{method}/{number}/{seed}"
                found[key] = partial(zero_shot, method=method, pictures=number, seed=seed)
        for part, methods, run in (
            ("self-taught", FEATURES, self_taught),
            ("semi-supervised", SEMI, semi_supervised),
        ):
            for method, labels in itertools.product(methods, LABELS if part in parts else ()):
                found[f"{part}/{method}/{labels}/{seed}"] = partial(run, method=method, labels=labels, seed=seed)
    return found


def show(done: dict[str, Scores]) -> None:
    """Prints mean and standard deviation over seeds."""
    groups: dict[str, list[Scores]] = {}
    for key, scores in done.items():
        groups.setdefault(key.rpartition("/")[0], []).append(scores)
    for key, found in sorted(groups.items()):
        part, method, labels = key.split("/")
        columns = {"target/class_acc": "class acc"}
        if part == "zero-shot":
            columns |= {f"generalised/{name}": name for name in ("seen", "unseen", "harmonic")}
        shown = []
        for column, name in columns.items():
            values = pd.Series([scores[column] for scores in found])
            shown.append(f"{name} {mean_and_spread(values.mean(), values.std(), '.3f')}")
        print(f"{part:16} {method:14} {labels:>3} {len(found)} seeds  " + "  ".join(shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["zero-shot", "self-taught", "semi-supervised"]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all)")
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each training (default: 3)")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    if unknown := [name for name in given.parts if name not in parts]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    path = given.out / "descriptions.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    if not given.table:
        if given.data_root is None:
            parser.error("give --data-root")
        torch.set_num_threads(1)
        prepare(given.data_root, given.out)
        for name, run in cells(given.parts or parts, given.seeds).items():
            if name not in done:
                done[name] = run(given.out)
                with write_whole(path) as part:
                    part.write_text(json.dumps(done, indent=1))
    if done:
        show(done)
    else:
        print("nothing is finished yet")


if __name__ == "__main__":
    main()
