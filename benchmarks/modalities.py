"""Spoken digits for written ones, and back: transfer between modalities beside the target's labels alone.

    python benchmarks/modalities.py --data-root FOLDER --out results

The source has all its labels: 2,700 sounds (fsdd, feature vectors of the built-in set; the utterances 0 to 4 of each
speaker and digit are for the test) or 3,000 pictures (MNIST). The target has a few of each digit. `FOLDER` has the
shared data fsdd and mnist. The settings are those of `conf/method/multimodal.yaml`, with LeNet for pictures. A finished
training is not run again; `--table` prints what is there.
"""

import argparse
import itertools
import json
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from descriptions import Scores, built, train

from lightning_da.data import FeatureTables
from lightning_da.grids.tables import mean_and_spread
from lightning_da.methods import FineTune, Multimodal
from lightning_da.networks import FeedForward, LeNet
from lightning_da.paths import write_whole
from lightning_da.speech.extract import extract

LABELS, STEPS = (1, 3, 10), 300
NETWORKS: dict[str, Any] = {
    "spoken": partial(FeedForward, hidden=[256, 128]),
    "written": partial(LeNet, batch_norm=True),
}


def prepare(root: Path, out: Path) -> None:
    """Writes `spoken.npz` and `written.npz`."""
    if (out / "written.npz").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(root / "fsdd" / "recordings_wav.tar.xz") as archive:
        archive.extractall(folder, filter="data")
        paths = sorted(Path(folder).rglob("*.wav"))
        x = extract(paths, "functionals", 8000, out / "cache", 1)
    parts = [path.stem.split("_") for path in paths]
    y, tested = np.array([int(part[0]) for part in parts]), np.array([int(part[2]) < 5 for part in parts])
    np.savez(out / "spoken.npz", x_train=x[~tested], y_train=y[~tested], x_test=x[tested], y_test=y[tested])
    with np.load(root / "mnist" / "mnist.npz") as file:
        numbers = {"train": 3000, "test": 2000}
        arrays = {f"{kind}_{split}": file[f"{kind}_{split}"][:n] for split, n in numbers.items() for kind in "xy"}
    np.savez(out / "written.npz", **arrays)


def cell(out: Path, target: str, method: str, labels: int, seed: int) -> Scores:
    """Scores after a training with some labels of each digit of the target."""
    L.seed_everything(seed, verbose=False)
    (source,) = set(NETWORKS) - {target}
    few: dict[str, Any] = {"root": str(out), "target_labels": f"{labels}/class"}
    network = {"backbone": NETWORKS[target], "bottleneck": partial(FeedForward, hidden=[64]), "standardize": True}
    if method == "labels alone":
        data = FeatureTables(None, f"{target}.npz", **few)
        return train(built(FineTune, data, 0.001, train_on="target", **network), data, STEPS)
    data = FeatureTables(f"{source}.npz", f"{target}.npz", **few)
    model = built(Multimodal, data, 0.001, source_shape=data.source_shape, source_backbone=NETWORKS[source], **network)
    return train(model, data, STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each training (default: 3)")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    path = given.out / "modalities.json"
    done: dict[str, Scores] = json.loads(path.read_text()) if path.exists() else {}
    if not given.table:
        if given.data_root is None:
            parser.error("give --data-root")
        torch.set_num_threads(1)
        prepare(given.data_root, given.out)
        methods = ("labels alone", "multimodal")
        for seed, target, method, labels in itertools.product(range(given.seeds), NETWORKS, methods, LABELS):
            name = f"{target}/{method}/{labels}/{seed}"
            if name not in done:
                done[name] = cell(given.out, target, method, labels, seed)
                with write_whole(path) as part:
                    part.write_text(json.dumps(done, indent=1))
    rows = pd.DataFrame([[*key.split("/"), scores["target/acc"]] for key, scores in done.items()])
    rows.columns = ["target", "method", "labels", "seed", "acc"]
    rows["labels"] = rows["labels"].astype(int)
    seen = rows.groupby(["target", "labels", "method"])["acc"].agg(lambda x: mean_and_spread(x.mean(), x.std(), ".3f"))
    print(f"accuracy on the target's test split, {rows['seed'].nunique()} seeds\n{seen.unstack().to_string()}")


if __name__ == "__main__":
    main()
