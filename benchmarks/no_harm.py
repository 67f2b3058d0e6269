"""Does adaptation do harm? Each method beside source-only, with the files of `conf/` as they are, over many pairs.

    python benchmarks/prepare.py --data-root FOLDER --out prepared
    python benchmarks/no_harm.py --data-root prepared --out results [--groups surf digits] [--jobs 2]

    python benchmarks/no_harm.py --data-root prepared --out results --groups surf mobilenetv2 --classical
    python benchmarks/no_harm.py --data-root prepared --out generative --groups digits --methods drcn dsn cogan

`--classical` adds the classical methods, which read the same vectors, on pairs of vectors. `--methods` takes other
methods beside source-only.

Each cell is a method on a pair of domains: its target accuracy at the last step less that of source-only with the same
seed, the mean over seeds. The bar of a method is a difference of at least -.01 in 9 of 10 cells, and above 0 in the
mean of each group. A pair is a `sweep`, which goes on where it was interrupted. `--table` prints what is there.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from prepare import OFFICE

from lightning_da.commands.compare import rows_of, tested_runs
from lightning_da.main import main as lightning_da
from lightning_da.paths import PROJECT
from lightning_da.store import client

BASELINE = "source_only"
METHODS = (
    *("dan", "jan", "deep_coral", "dann", "adda"),
    *("cmd", "domain_confusion", "cdan", "mcc", "shot", "dhn", "dlid"),
)
CLASSICAL = (
    *("nearest_neighbour", "logistic_regression", "subspace_alignment", "coral_linear", "gfk", "tca", "jda", "bda"),
    *("tjm", "jgsa", "artl", "meda", "instance_weighting", "kmm", "kliep", "optimal_transport", "jdot", "taisl"),
)
OF_VECTORS = ("surf", "mobilenetv2")
ALLOWED = -0.01
DEVELOPMENT = {
    "surf": ("amazon -> webcam", "caltech10 -> amazon", "dslr -> caltech10"),
    "mobilenetv2": ("amazon -> webcam", "webcam -> amazon", "dslr -> amazon"),
    "digits": ("typeset -> handwritten", "photo -> handwritten"),
    "mnist_usps": ("mnist -> usps",),
}
"""The pairs on which the defaults were chosen, with target labels. All other pairs were not looked at before."""


def _tables(folder: Path, source: str, target: str) -> list[str]:
    options = {"root": folder, "source": f"{source}.npz", "target": f"{target}.npz"}
    return ["--config", "data/features.yaml", *(f"--data.init_args.{key}={value}" for key, value in options.items())]


def pairs(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The group of each pair, and its options."""
    for group in ("surf", "mobilenetv2"):
        for source, target in itertools.permutations(OFFICE, 2):
            yield group, [*_tables(root / group, source, target), "--data.init_args.protocol=all"]
    for source, target in itertools.permutations(("typeset", "handwritten", "photo"), 2):
        words = [f"--data.init_args.source={source}", f"--data.init_args.target={target}"]
        yield "digits", ["--config", "data/digits.yaml", *words]
    network = "--model.init_args.backbone=lightning_da.networks.LeNet"
    for source, target in (("mnist", "usps"), ("usps", "mnist")):
        words = _tables(root / "grey", source, target)
        yield "mnist_usps", [*words, network, "--model.init_args.backbone.init_args.batch_norm=true"]
    for source, target in (("men", "women"), ("women", "men")):
        options = {"root": root / "emodb", "source": f"{source}.csv", "target": f"{target}.csv"}
        words = [f"--data.init_args.{key}={value}" for key, value in options.items()]
        yield "emodb", ["--config", "data/speech.yaml", *words]


def differences() -> pd.DataFrame:
    """One row for each group, pair, method and seed, with the target accuracy and its difference to source-only."""
    parts = []
    for experiment in client().search_experiments(filter_string="name LIKE 'no_harm-%'"):
        runs = tested_runs(experiment.experiment_id)
        if runs:
            parts.append(rows_of(runs).assign(group=experiment.name.removeprefix("no_harm-")))
    rows = pd.concat(parts, ignore_index=True)
    rows["pair"] = rows["pair"].str.replace(r"\.(npz|csv)", "", regex=True)
    keys = ["group", "pair", "seed"]
    baseline = rows[rows["method"] == BASELINE].set_index(keys)["target acc"].rename("source_only")
    rows = rows.join(baseline, on=keys)
    return rows.assign(difference=rows["target acc"] - rows["source_only"])


def report(rows: pd.DataFrame) -> None:
    """Prints the accuracies of each pair, and what the bar asks for."""
    means = rows.pivot_table(index=["group", "pair"], columns="method", values="target acc", sort=False)
    known = (BASELINE, *METHODS, *CLASSICAL)
    found = [name for name in dict.fromkeys((*known, *means)) if name in means]
    means["seeds"] = rows[rows["method"] == BASELINE].groupby(["group", "pair"])["seed"].nunique()
    means = means.reindex(columns=[*found, "seeds"])
    means.index = [
        f"{group}: {pair}{' *' if pair in DEVELOPMENT.get(group, ()) else ''}" for group, pair in means.index
    ]
    print(means.to_string(float_format="%.3f"), "\n* development pair\n")
    fresh = [pair not in DEVELOPMENT.get(group, ()) for group, pair in zip(rows["group"], rows["pair"], strict=True)]
    for title, part in (("all pairs", rows), ("pairs that were not looked at before", rows[fresh])):
        cells = part.groupby(["method", "group", "pair"])["difference"].mean().reset_index()
        table = cells.pivot_table(index="method", columns="group", values="difference")
        unharmed = cells.assign(unharmed=cells["difference"] >= ALLOWED).groupby("method")["unharmed"]
        table["unharmed"] = unharmed.sum().astype(str) + " of " + unharmed.count().astype(str)
        print(f"difference to source-only, {title}\n{table.reindex(found[1:]).to_string(float_format='%+.3f')}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", nargs="+", default=["surf", "mobilenetv2", "digits", "mnist_usps", "emodb"])
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--classical", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    for group, words in pairs(given.data_root.absolute()):
        if group in given.groups and not given.table:
            own = [f"--trainer.logger.init_args.experiment_name=no_harm-{group}", "--jobs", given.jobs]
            quiet = ["--config", str(PROJECT / "benchmarks" / "no_harm.yaml")]
            methods = (BASELINE, *given.methods, *(CLASSICAL if given.classical and group in OF_VECTORS else ()))
            lightning_da(["sweep", "--methods", *methods, "--seeds", *given.seeds, *words, *quiet, *own])
    report(differences())


if __name__ == "__main__":
    main()
