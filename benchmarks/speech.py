"""Speech emotions on real recordings, one speaker left out at a time, beside a linear model on the same features.

    python benchmarks/speech.py --data-root FOLDER --out results --features functionals IS12 --seeds 0 1 2

The target is EMO-DB in four classes (10 speakers, 339 utterances), the source EMO-DB's training speakers and the six
speakers of the spoken digits, with some of their utterances; what speaks in the test is in no source. The
settings are those of `conf/method/speech_*.yaml`. Of the nine speakers left, one validates, and neither the second
stage nor the linear model is trained on it. A finished fold is a file in `results/speech`; what is there is not run
again. `--table` prints what is there and runs nothing.
"""

import argparse
import gc
import itertools
import json
import logging
import tarfile
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from sklearn.svm import SVC
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lightning_da.data import SpeechCorpora
from lightning_da.methods import FineTune
from lightning_da.methods.classifier import scores
from lightning_da.methods.margin_ensemble import join_by_margin
from lightning_da.networks.backbones import FeedForward
from lightning_da.networks.standardize import moments
from lightning_da.paths import write_whole
from lightning_da.schedules import cosine

MEN = ("03", "10", "11", "12", "15")
WOMEN = ("08", "09", "13", "14", "16")
STEPS = 200
DIGITS = 10
"""Of each speaker and digit, the first so many utterances are read: 600 in all."""


def prepare(root: Path, out: Path) -> Path:
    """Unpacks both corpora and writes `source.csv` and `target.csv`; returns their folder."""
    folder = out / "sounds"
    if folder.is_dir():
        return folder
    part = out / "sounds.part"
    for archive in ("emodb_4class/emodb_4class_flac.tar", "fsdd/recordings_wav.tar.xz"):
        with tarfile.open(root / archive) as file:
            file.extractall(part / Path(archive).parent.name, filter="data")
    emodb = [
        {
            "path": str(path.relative_to(part)),
            "speaker": path.name[:2],
            "gender": "male" if path.name[:2] in MEN else "female",
            "emotion": path.parent.name,
        }
        for path in sorted((part / "emodb_4class").rglob("*.flac"))
    ]
    digits = []
    for path in sorted((part / "fsdd").rglob("*.wav")):
        _, speaker, index = path.stem.split("_")
        if int(index) < DIGITS:
            digits.append({"path": str(path.relative_to(part)), "speaker": speaker, "gender": "male"})
    pd.DataFrame(emodb).to_csv(part / "target.csv", index=False)
    pd.DataFrame([{**row, "emotion": ""} for row in emodb] + digits).to_csv(part / "source.csv", index=False)
    part.rename(folder)
    return folder


def fit(
    data: SpeechCorpora,
    size: int,
    role: Literal["source", "target"],
    start: str | None,
    seed: int,
    steps: int = STEPS,
    lr: float = 3e-4,
    standardize: bool | Literal["per_domain"] = True,
) -> tuple[FineTune, L.Trainer]:
    L.seed_everything(seed, verbose=False)
    module = FineTune(
        backbone=partial(FeedForward, hidden=[size, size], activation="sigmoid"),
        train_on=role,
        init_from=start,
        standardize=standardize,
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        optimizer=partial(torch.optim.Adam, lr=lr, fused=True),
        lr_schedule=cosine,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module.eval(), trainer


def linear(data: SpeechCorpora) -> Tensor:
    """Predictions (n, classes) of a linear support vector machine on the same training utterances."""
    train, test = (data.dataset(data.target, split) for split in ("train", "test"))
    mean, std = moments([train.x])
    machine = SVC(kernel="linear", C=0.01).fit(((train.x - mean) / std).numpy(), train.y.numpy())
    return torch.nn.functional.one_hot(
        torch.from_numpy(machine.predict(((test.x - mean) / std).numpy())), len(data.classes)
    )


def fold(folder: Path, features: str, speaker: str, seed: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Everything that is trained with one speaker left out."""
    corpora = partial(
        SpeechCorpora,
        source="source.csv",
        target="target.csv",
        root=str(folder),
        features=features,
        test_speakers=[speaker],
        seed=seed,
    )
    emotions = corpora(task="emotion")
    test = emotions.dataset("target.csv", "test")
    rows: list[dict[str, Any]] = []

    def add(task: str, network: str, probabilities: Tensor) -> None:
        counts = multiclass_confusion_matrix(probabilities.argmax(dim=1), test.y, len(emotions.classes))
        rows.append({"source_task": task, "network": network, "counts": counts.tolist()})

    add("none", "linear", linear(emotions))
    with tempfile.TemporaryDirectory() as temporary:
        tasks: tuple[Literal["none", "gender", "speaker"], ...] = ("none", "gender", "speaker")
        for task in tasks:
            members = []
            for size in sizes:
                start = None
                if task != "none":
                    data = corpora(task=task)
                    module, trainer = fit(data, size, "source", None, seed)
                    held_out = data.dataset("source.csv", "test")
                    with torch.no_grad():
                        wrong = (module(held_out.x).argmax(dim=1) != held_out.y).double().mean()
                    rows.append({"source_task": task, "network": str(size), "error": float(wrong)})
                    start = f"{temporary}/{task}-{size}.ckpt"
                    trainer.save_checkpoint(start, weights_only=True)
                module, _ = fit(emotions, size, "target", start, seed + 1000)
                with torch.no_grad():
                    members.append(module(test.x).softmax(dim=1))
                add(task, str(size), members[-1])
            if len(sizes) > 1:
                add(task, "ensemble", join_by_margin(members))
    return [{"features": features, "speaker": speaker, "seed": seed, **row} for row in rows]


def file_of(out: Path, features: str, speaker: str, seed: object, sizes: Sequence[int]) -> Path:
    return out / "speech" / f"{features}-{speaker}-s{seed}-{'+'.join(map(str, sizes))}.json"


def finished(out: Path, sizes: Sequence[int]) -> pd.DataFrame:
    rows = []
    every = file_of(out, "*", "*", "*", sizes)
    for path in sorted(every.parent.glob(every.name)):
        rows += json.loads(path.read_text())
    return pd.DataFrame(rows, columns=["features", "speaker", "seed", "source_task", "network", "counts", "error"])


def show(rows: pd.DataFrame) -> None:
    """The two tables: errors of the source tasks, and emotions; over the seeds that have all folds."""
    for features, every in rows.groupby("features", sort=False):
        folds = every.groupby(["source_task", "network", "seed"])["speaker"].transform("nunique")
        own = every[folds == len(MEN + WOMEN)]
        print(f"\n{features}")
        errors = own.dropna(subset="error").groupby(["source_task", "network", "seed"])["error"].mean() * 100
        print(errors.groupby(["source_task", "network"]).agg(["mean", "std", "count"]).round(1).to_string())
        table: dict[tuple[str, str], list[dict[str, float]]] = {}
        tested = own.dropna(subset="counts")
        for (task, network, _), part in tested.groupby(["source_task", "network", "seed"], sort=False):
            pooled = scores(torch.tensor(np.sum([np.array(c) for c in part["counts"]], axis=0)))
            table.setdefault((str(task), str(network)), []).append({k: 100 * float(v) for k, v in pooled.items()})
        for (task, network), per_seed in table.items():
            frame = pd.DataFrame(per_seed)
            text = "  ".join(f"{key} {frame[key].mean():.1f} ± {frame[key].std():.1f}" for key in frame)
            print(f"{task:8} {network:9} {len(frame)} seeds  {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data sets")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--features", nargs="+", default=["functionals", "IS12"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024, 2048], help="widths of both hidden layers")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if not given.table:
        if given.data_root is None:
            parser.error("give --data-root")
        (given.out / "speech").mkdir(parents=True, exist_ok=True)
        folder = prepare(given.data_root, given.out).absolute()
        for seed, features, speaker in itertools.product(given.seeds, given.features, sorted(MEN + WOMEN)):
            path = file_of(given.out, features, speaker, seed, given.sizes)
            if not path.exists():
                rows = fold(folder, features, speaker, seed, given.sizes)
                with write_whole(path) as part:
                    part.write_text(json.dumps(rows))
                print(f"{features}, seed {seed}, without speaker {speaker}", flush=True)
                gc.collect()  # trainers and modules refer to each other
    show(finished(given.out, given.sizes))


if __name__ == "__main__":
    main()
