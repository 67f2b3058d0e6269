"""Two sources and one target: both sources together, by each rule of `source_weights`, beside each source alone.

    python benchmarks/several.py --data-root FOLDER --out results

Office-Caltech10, SURF features of all images (the protocol `all`), the files of `conf/` as they are, 400 steps. The
figures are target accuracies at the last step. A finished training is not run again; --table prints what is finished.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from prepare import surf

from lightning_da.commands.compare import tested_runs
from lightning_da.data.several import Weights
from lightning_da.grids.tables import mean_and_spread, print_table
from lightning_da.main import main as lightning_da
from lightning_da.names import joined_name, short_name
from lightning_da.paths import PROJECT
from lightning_da.store import client

EXPERIMENT = "several"
METHODS = ("source_only", "deep_coral")
TRIPLES = (
    (("amazon", "webcam"), "dslr"),
    (("amazon", "caltech10"), "webcam"),
    (("caltech10", "dslr"), "amazon"),
)
"""Two sources and a target: a near and a far source; two that are alike; a large and a small source."""


def words(sources: list[str], target: str, weights: str | None, out: Path) -> list[str]:
    """The options of a pair."""
    options = {
        "root": (out / "surf").absolute(),
        "source": f"[{', '.join(f'{name}.npz' for name in sources)}]",
        "target": f"{target}.npz",
        "protocol": "all",
    } | ({} if weights is None else {"source_weights": weights})
    return ["--config", "data/features.yaml", *(f"--data.init_args.{key}={value}" for key, value in options.items())]


def rows() -> Iterator[dict[str, Any]]:
    """The finished trainings."""
    experiment = client().get_experiment_by_name(EXPERIMENT)
    for run in tested_runs(experiment.experiment_id) if experiment else ():
        params = run.data.params
        yield {
            "sources": short_name(params["source"]),
            "target": short_name(params["target"]),
            "weights": params["source_weights"] if "+" in params["source"] else "",
            "method": params["method"],
            "seed": params["seed"],
            "acc": run.data.metrics["test/target/acc"],
            "shares": run.data.tags.get("source_weights", ""),
        }


def show(found: pd.DataFrame) -> None:
    """Prints the target accuracy of each choice of sources, a table for each target."""
    found = found.drop_duplicates(["sources", "target", "weights", "method", "seed"])
    for target, part in found.groupby("target", sort=False):
        means = part.groupby(["sources", "weights", "shares", "method"])["acc"].agg(["mean", "std"]).reset_index()
        means["text"] = [
            mean_and_spread(mean, std, ".3f") for mean, std in zip(means["mean"], means["std"], strict=True)
        ]
        table = means.pivot_table(
            index=["sources", "weights", "shares"], columns="method", values="text", aggfunc="first"
        )
        print_table(f"target {target}", table[list(METHODS)].reset_index())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    if given.data_root is None and not given.table:
        parser.error("give --data-root")
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    if not given.table and not (given.out / "surf").exists():
        surf(given.data_root, given.out)
    for sources, target in () if given.table else TRIPLES:
        several = [(list(sources), weights) for weights in get_args(Weights)]
        for named, weights in [*(([name], None) for name in sources), *several]:
            name = f"{joined_name(named)}-{target}" + (f"-{weights}" if weights else "")
            quiet = ["--config", str(PROJECT / "benchmarks" / "no_harm.yaml"), "--jobs", given.jobs]
            grid = ["--methods", *METHODS, "--seeds", *given.seeds, "--name", name, "--trainer.max_steps=400"]
            grid.append(f"--trainer.logger.init_args.experiment_name={EXPERIMENT}")
            lightning_da(["sweep", *grid, *words(named, target, weights, given.out), *quiet])
    show(pd.DataFrame(rows()))


if __name__ == "__main__":
    main()
