"""What methods for equal classes lose where one domain has more classes, beside the methods for such pairs.

    python benchmarks/class_sets.py --out results digits
    python benchmarks/class_sets.py --data-root FOLDER --out results surf usps

Five classes are shared. `closed`: both domains have these. `partial`: the source has five more. `open`: the target has
five more. Digits are the embedded ones, typeset to handwritten; `surf` are pairs of Office-Caltech10; `usps` is MNIST
to USPS with the digits 0 to 4, the protocol of OSBP. A finished training is not run again; `--table` prints what is
there.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from prepare import grey, save, surf

from lightning_da.commands.compare import tested_runs
from lightning_da.data import Digits
from lightning_da.data.base import SPLITS
from lightning_da.grids.tables import mean_and_spread, print_table
from lightning_da.main import main as lightning_da
from lightning_da.paths import PROJECT
from lightning_da.store import client

SETS = {"closed": (5, 5), "partial": (10, 5), "open": (5, 10)}
"""Number of classes of the source and of the target."""
METHODS = ("source_only", "deep_coral", "dann")
OWN = {"closed": (), "partial": ("pada",), "open": ("osbp",)}
PAIRS = {
    "digits": (("typeset", "handwritten"),),
    "surf": (("amazon", "webcam"), ("caltech10", "amazon")),
    "usps": (("mnist", "usps"),),
}
Arrays = dict[str, NDArray[Any]]


def domain(group: str, name: str, out: Path) -> Arrays:
    """Samples and labels of a domain, with its predefined splits if it has them."""
    if group == "digits":
        data = Digits()
        arrays: Arrays = {}
        for split in SPLITS:
            part = data.dataset(name, split)
            arrays |= {f"x_{split}": part.x.movedim(1, -1).numpy(), f"y_{split}": part.y.numpy()}
        return arrays
    folder = {"surf": "surf", "usps": "grey"}[group]
    with np.load(out / folder / f"{name}.npz") as file:
        return dict(file)


def with_classes(arrays: Arrays, number: int) -> Arrays:
    """The samples of the first classes."""
    found: Arrays = {}
    for key, labels in arrays.items():
        if key.startswith("y"):
            rows = np.isin(labels, np.unique(labels)[:number])
            found |= {key: labels[rows], f"x{key[1:]}": arrays[f"x{key[1:]}"][rows]}
    return found


def prepare(group: str, root: Path | None, out: Path) -> None:
    """Writes each domain with five and with ten classes."""
    reader, folder = {"digits": (None, None), "surf": (surf, "surf"), "usps": (grey, "grey")}[group]
    if reader is not None and not (out / str(folder)).exists():
        assert root is not None
        reader(root, out)
    for name in sorted({name for pair in PAIRS[group] for name in pair}):
        for number in (5, 10):
            path = out / f"{group}_{number}" / f"{name}.npz"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                save(path, with_classes(domain(group, name, out), number))


def words(group: str, source: str, target: str, sets: str, out: Path) -> list[str]:
    """The options of a pair."""
    of_source, of_target = SETS[sets]
    options = {
        "root": out.absolute(),
        "source": f"{group}_{of_source}/{source}.npz",
        "target": f"{group}_{of_target}/{target}.npz",
        "class_sets": sets,
    } | ({"protocol": "all"} if group == "surf" else {})
    network = [] if group == "surf" else ["--model.init_args.backbone=lightning_da.networks.LeNet"]
    if group == "usps":
        network.append("--model.init_args.backbone.init_args.batch_norm=true")
    network.append("--trainer.max_steps=400")
    return [*("--config", "data/features.yaml"), *(f"--data.init_args.{k}={v}" for k, v in options.items()), *network]


def rows() -> Iterator[dict[str, Any]]:
    """The finished trainings."""
    for experiment in client().search_experiments(filter_string="name LIKE 'class_sets-%'"):
        _, group, sets = experiment.name.split("-")
        for run in tested_runs(experiment.experiment_id):
            pair = [Path(run.data.params[role]).stem for role in ("source", "target")]
            metrics = {key.removeprefix("test/target/"): value for key, value in run.data.metrics.items()}
            cell = {"group": group, "pair": " -> ".join(pair), "sets": sets, "method": run.data.params["method"]}
            yield cell | {"seed": run.data.params["seed"], "run": run.info.run_id, **metrics}


def show(found: pd.DataFrame) -> None:
    """Prints the accuracy on the shared classes, and the scores of `unknown`."""
    found = found.drop_duplicates(["group", "pair", "sets", "method", "seed"])
    found = found.assign(shared=found["os_star"].where(found["sets"] == "open", found["class_acc"]))
    for (group, sets), part in found.groupby(["group", "sets"], sort=False):
        lower = part[part["method"] == METHODS[0]].set_index(["pair", "seed"])["shared"].rename("lower")
        gains = part.join(lower, on=["pair", "seed"]).assign(gain=lambda own: own["shared"] - own["lower"])
        of_seeds = gains.groupby(["method", "seed"], sort=False)
        columns = ["shared", "gain", *(("unk", "os", "h_score") if sets == "open" else ())]
        means = of_seeds[columns].mean().groupby("method", sort=False).agg(["mean", "std"])
        table = pd.DataFrame({"method": means.index, "seeds": part.groupby("method", sort=False)["seed"].nunique()})
        for column in columns:
            cells = zip(means[column, "mean"], means[column, "std"], strict=True)
            table[column] = [mean_and_spread(mean, std, ".3f") for mean, std in cells]
        print_table(f"{group}, {sets} ({part['pair'].nunique()} pairs)", table.reset_index(drop=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(PAIRS)} (default: all)")
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    if unknown := [name for name in given.groups if name not in PAIRS]:
        parser.error(f"no group {unknown[0]!r}; there are {', '.join(PAIRS)}")
    wanted = given.groups or list(PAIRS)
    if given.data_root is None and set(wanted) - {"digits"} and not given.table:
        parser.error("surf, usps: give --data-root")
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    for group in () if given.table else wanted:
        prepare(group, given.data_root, given.out)
        for sets, own in OWN.items():
            for pair in PAIRS[group]:
                experiment = f"--trainer.logger.init_args.experiment_name=class_sets-{group}-{sets}"
                quiet = ["--config", str(PROJECT / "benchmarks" / "no_harm.yaml"), "--jobs", given.jobs, experiment]
                grid = ["--methods", *METHODS, *own, "--seeds", *given.seeds]
                lightning_da(["sweep", *grid, *words(group, *pair, sets, given.out), *quiet])
    show(pd.DataFrame(rows()))


if __name__ == "__main__":
    main()
