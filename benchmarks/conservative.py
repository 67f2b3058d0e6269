"""Conservative training beside plain fine-tuning on few labels: what is learned, and what is forgotten.

    python benchmarks/conservative.py --data-root FOLDER --out results digits flowers

`digits`: a network for typeset digits goes on with 3, 10 and 50 labels a class of handwritten digits, and keeps its
head. The old task is the test split of the typeset digits. `flowers`: ImageNet weights go on with 3, 10 and 50 labels
a class of the shared data flowers5, images of 128 x 128 pixels. ImageNet's images are not there, so that forgetting
is not seen; by outputs, the predictions for ImageNet's 1,000 classes are held on the flowers. A finished training is
not run again; `--table` runs nothing and prints what is there. `digits` needs no `--data-root`.
"""

import argparse
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pandas as pd
import torch
import yaml

from lightning_da.cli import TransferCLI
from lightning_da.grids.tables import mean_and_spread, print_table
from lightning_da.main import main as lightning_da
from lightning_da.methods import TransferModule
from lightning_da.paths import find_method, write_whole
from lightning_da.store import client

VARIANTS = {
    "by weights": {"start_decay": 0.1},
    "by outputs": {"start_decay": 0.0, "output_weight": 1.0},
    "by both": {"start_decay": 0.1, "output_weight": 1.0},
}
"""Arguments of `Conservative`, by the name in the table."""
LABELS = ("3/class", "10/class", "50/class")


def variant(name: str, out: Path, after: str | None, **further: str) -> str:
    """Writes the file of a method: that of conf/ with the arguments of a variant; returns its path."""
    config = yaml.safe_load(find_method("conservative").read_text())
    config |= {"name": name.replace(" ", "_"), "after": after}
    config["model"]["init_args"] |= VARIANTS[name] | further
    path = out / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path.absolute())


def label_curve(methods: Sequence[str], seeds: int, words: Sequence[str]) -> pd.DataFrame:
    """The rows of `lightning-da label-curve`, with the accuracy on the test split of the source."""
    grid = ["--labels", *LABELS, "--seeds", *map(str, range(seeds)), "--jobs", "1"]
    options = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    rows: pd.DataFrame = lightning_da(["label-curve", "--methods", *methods, *grid, *options, *words])
    old = [client().get_run(run).data.metrics.get("test/source/acc") for run in rows["run"]]
    return rows.assign(old=pd.Series(old, rows.index, dtype=float))


def digits(given: argparse.Namespace) -> pd.DataFrame:
    """Typeset digits, then handwritten ones."""
    files = [variant(name, given.out, "source_only") for name in VARIANTS]
    data = ["--config", "data/digits.yaml", "--trainer.max_steps", "300"]
    rows = label_curve(["fine_tune", *files], given.seeds, [*data, "--model.init_args.keep_head", "true"])
    start = label_curve(["source_only"], given.seeds, data)
    return pd.concat([start, rows])


def with_head(words: Sequence[str], weights: Path, out: Path) -> str:
    """Writes the network of a weight file with its head of 1,000 classes as a checkpoint, and returns its path."""
    path, parts = out / "imagenet.ckpt", torch.load(weights, map_location="cpu", weights_only=True)
    model = cast(TransferModule, TransferCLI("fit", ["--config", "method/fine_tune.yaml", *words]).build().model)
    model.initialise()
    head = {f"head.{name}": parts[f"classifier.{name}"].float() for name in ("weight", "bias")}
    with write_whole(path) as part:
        torch.save({"state_dict": model.state_dict() | head}, part)
    return str(path.absolute())


def flowers(given: argparse.Namespace) -> pd.DataFrame:
    """ImageNet weights, then flowers."""
    folder = given.out / "flowers5"
    if not folder.exists():
        with tarfile.open(next((given.data_root / "flowers5").glob("*.tar*"))) as file:
            file.extractall(folder, filter="data")
    (weights,) = (given.data_root / "imagenet_weights").glob("mobilenetv2_100*")
    place = next(path.parent.parent for path in sorted(folder.rglob("*.jpg")))
    words = [
        *("--config", "backbone/mobilenetv2.yaml", "--data.root", str(place.absolute()), "--data.image_size", "128"),
        *("--model.backbone.weights", str(weights.absolute()), "--model.backbone.model_args", "{pad_type: same}"),
        *("--trainer.max_steps", "100", "--data.batch_size", "32"),
    ]
    start = with_head(words, weights, given.out)
    held = [variant("by weights", given.out, None), variant("by outputs", given.out, None, init_from=start)]
    methods = ["linear_probe", "fine_tune", *held]
    return label_curve(methods, given.seeds, words)


def show(rows: pd.DataFrame, title: str) -> None:
    """Prints the accuracy on the new and on the old task, over the number of labels."""
    for column, task in (("accuracy", "new task"), ("old", "old task")):
        if rows[column].isna().all():
            continue
        found = rows.groupby(["method", "labels"], sort=False)[column].agg(["mean", "std"])
        text = found.apply(lambda cell: mean_and_spread(cell["mean"], cell["std"], ".3f"), axis=1).unstack()
        table = text.fillna("").rename(columns={0: "none"}).reset_index()
        print_table(f"{title}: test accuracy on the {task}, over the labels in all", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"digits": digits, "flowers": flowers}
    parser.add_argument("parts", nargs="*", metavar="PART", help="digits, flowers (default: both)")
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each training (default: 5)")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    if unknown := [name for name in given.parts if name not in parts]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    wanted = given.parts or list(parts)
    if "flowers" in wanted and given.data_root is None and not given.table:
        parser.error("flowers: give --data-root")
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    for name in wanted:
        path = given.out / f"conservative_{name}.csv"
        if not given.table:
            rows = parts[name](given)
            with write_whole(path) as part:
                rows.to_csv(part, index=False)
        if path.exists():
            show(pd.read_csv(path), name)
        else:
            print(f"{name}: nothing is finished yet")


if __name__ == "__main__":
    main()
