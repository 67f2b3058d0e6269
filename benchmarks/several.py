"""Two sources and one target: both sources together, by each rule of `source_weights`, beside each source alone.

    python benchmarks/several.py --data-root FOLDER --out results

Office-Caltech10, SURF features of all images (the protocol `all`), the files of `conf/` as they are, 400 steps. The
figures are target accuracies at the last step. They are kept in `results/several.jsonl`, one line for each training;
what is there is not trained again. --table prints what is finished.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from prepare import surf

from lightning_da.cli import TransferCLI
from lightning_da.data.several import Weights
from lightning_da.grids.tables import mean_and_spread, print_table
from lightning_da.names import joined_name
from lightning_da.process import prepare

METHODS = ("source_only", "deep_coral")
TRIPLES = (
    (("amazon", "webcam"), "dslr"),
    (("amazon", "caltech10"), "webcam"),
    (("caltech10", "dslr"), "amazon"),
    (("amazon", "dslr"), "caltech10"),
)
"""Two sources and a target: a far and a near one; two that are far; twice a large near one and a small far one."""
QUIET = (
    *("--trainer.logger=false", "--trainer.callbacks=[]", "--trainer.enable_checkpointing=false"),
    *("--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.max_steps=400"),
)


def cells(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """All trainings, a seed after the other."""
    for seed in seeds:
        for sources, target in TRIPLES:
            alone = [([name], "") for name in sources]
            for named, weights in [*alone, *((list(sources), weights) for weights in get_args(Weights))]:
                for method in METHODS:
                    yield {"target": target, "sources": named, "weights": weights, "method": method, "seed": seed}


def train(cell: dict[str, Any], out: Path) -> dict[str, Any]:
    """The target accuracy of a training, and the weights of its sources."""
    data = {
        "root": (out / "surf").absolute(),
        "source": f"[{', '.join(f'{name}.npz' for name in cell['sources'])}]",
        "target": f"{cell['target']}.npz",
        "protocol": "all",
    } | ({"source_weights": cell["weights"]} if cell["weights"] else {})
    words = [f"--data.init_args.{key}={value}" for key, value in data.items()] + [f"--seed_everything={cell['seed']}"]
    files = ["--config", f"method/{cell['method']}.yaml", "--config", "data/features.yaml"]
    cli = TransferCLI("fit", [*files, *words, *QUIET]).build().run()
    found = cli.trainer.test(cli.model, cli.datamodule, verbose=False)[0]
    shares = " ".join(f"{weight:.2f}" for weight in cli.datamodule.weights.values()) if cell["weights"] else ""
    return {"acc": found["test/target/acc"], "shares": shares}


def show(found: pd.DataFrame) -> None:
    """Prints the target accuracy of each choice of sources, a table for each target."""
    found["sources"] = found["sources"].map(joined_name)
    for target, part in found.groupby("target", sort=False):
        means = part.groupby(["sources", "weights", "shares", "method"], sort=False)["acc"].agg(["mean", "std"])
        text = [mean_and_spread(mean, std, ".3f") for mean, std in means.itertuples(index=False)]
        table = pd.Series(text, index=means.index).unstack("method")[list(METHODS)]
        print_table(f"target {target}, {part['seed'].nunique()} seed(s)", table.reset_index())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    if given.data_root is None and not given.table:
        parser.error("give --data-root")
    prepare()
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.table and not (given.out / "surf").exists():
        surf(given.data_root, given.out)
    place = given.out / "several.jsonl"
    rows = [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
    there = [{key: value for key, value in row.items() if key not in ("acc", "shares")} for row in rows]
    for cell in () if given.table else cells(given.seeds):
        if cell not in there:
            rows.append(cell | train(cell, given.out))
            with place.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    show(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
