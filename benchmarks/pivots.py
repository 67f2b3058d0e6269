"""Sentiment from one kind of reviews to another: AMN beside DANN and source-only, and a linear model beside all.

    python benchmarks/pivots.py --data-root FOLDER --out results imdb-cr cr-imdb

Each network starts with GloVe's word vectors. The linear model is logistic regression on words and pairs of words of
the source. `FOLDER` has the shared data imdb, text_small and word_vectors_50d. Reviews are cut to 100 words. The words
that AMN reads are in `attention.csv` and `attention.png` of its run. A finished training is not run again; `--table`
runs nothing and prints what is there.
"""

import argparse
import itertools
from pathlib import Path

import pandas as pd
from text import bags, command_line

from lightning_da.grids.tables import mean_and_spread
from lightning_da.main import main as lightning_da
from lightning_da.paths import PROJECT

PAIRS = ("imdb-cr", "cr-imdb")
NETWORKS = {"LSTM": ("source_only", "dann"), "MemoryNetwork": ("source_only", "dann", "amn")}
OF_SOURCE = "bag of words on A"


def run(pair: str, given: argparse.Namespace) -> dict[str, list[float]]:
    """The accuracies on the target, one a seed, by row; what is finished is read from the MLflow store in `out`."""
    first, second = pair.split("-")
    tables = given.out / "tables"
    values = {
        "data.init_args.root": tables.absolute(),
        "data.init_args.source": f"{first}.csv",
        "data.init_args.target": f"{second}.csv",
        "model.init_args.backbone.init_args.dropout": 0.3,
        "model.init_args.backbone.init_args.vectors": (tables / "glove.txt").absolute(),
        "trainer.max_steps": given.steps,
        "trainer.accelerator": "cpu",
    }
    files = [PROJECT / "conf" / "data" / "sentences.yaml", PROJECT / "benchmarks" / "no_harm.yaml"]
    words = [word for file in files for word in ("--config", str(file))]
    figures = ["--trainer.callbacks+=lightning_da.callbacks.TestFigures"]
    found = {"linear model": bags(tables, first, second)[OF_SOURCE]}
    for network, seed in itertools.product(given.networks, range(given.seeds)):
        own = [f"--model.init_args.backbone=lightning_da.networks.{network}"]
        own += [f"--{key}={value}" for key, value in values.items()]
        shown = figures if network == "MemoryNetwork" else []
        how = ["--methods", *NETWORKS[network], "--seeds", str(seed), "--name", f"{pair}-{network}-s{seed}"]
        table = lightning_da(["sweep", *how, *words, *own, *shown])
        for method, accuracy in zip(table["method"], table["target acc"], strict=True):
            found.setdefault(f"{method}, {network}", []).append(float(accuracy))
    return found


def show(found: dict[str, dict[str, list[float]]], _folder: Path) -> None:
    seen = {
        pair: {row: mean_and_spread(pd.Series(x).mean(), pd.Series(x).std(), ".3f") for row, x in rows.items()}
        for pair, rows in found.items()
    }
    print(f"accuracy on the target's test split\n{pd.DataFrame(seen).to_string()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    command_line(parser, PAIRS, 600, run, show)


if __name__ == "__main__":
    main()
