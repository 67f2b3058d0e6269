"""The speech-transfer grid: source tasks, network sizes, ensembles, tables and picture.

Source: Huang et al., CCPR 2016, tables 2 and 3.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lightning_da.grids.engine import Cell, Result
from lightning_da.grids.tables import bars, mean_and_spread, print_table, summary, table
from lightning_da.store import client

SOURCE_TASKS = ("none", "gender", "speaker")
"""Tasks of the first stage, before emotions."""
ENSEMBLE = "ensemble"
FIGURES = {"accuracy": "test/target/acc", "MAP": "test/target/class_precision", "UAR": "test/target/class_acc"}
"""Columns of the emotion table, and their metrics."""
PICTURES = {"class_path": "lightning_da.callbacks.TestFigures", "init_args": {"samples": 200}}


def plan(config: dict[str, Any], seeds: Sequence[int], source_tasks: Sequence[str], sizes: Sequence[str]) -> list[Cell]:
    """The cells of an experiment; each comes after the cells that it starts from.

    Args:
        config: Configuration of the second stage.
        seeds: Seeds of the repetitions; a seed also draws the speakers of each split.
        source_tasks: Some of `SOURCE_TASKS`.
        sizes: Network sizes as widths of the hidden layers, for example `1024:1024`; an ensemble combines all sizes.
    """
    cells: dict[str, Cell] = {}

    def add(learns: str, source_task: str, network: str, seed: int, bases: tuple[Cell, ...] = ()) -> Cell:
        cell = _cell(config, learns, source_task, network, seed, bases)
        return cells.setdefault(cell.key, cell)

    for seed in seeds:
        first = {
            (task, size): (add("source", task, size, seed),)
            for task in source_tasks
            if task != "none"
            for size in sizes
        }
        for task in source_tasks:
            members = tuple(add("target", task, size, seed, first.get((task, size), ())) for size in sizes)
            if len(members) > 1:
                add("target", task, ENSEMBLE, seed, members)
    return list(cells.values())


def _cell(
    config: dict[str, Any], learns: str, source_task: str, network: str, seed: int, bases: tuple[Cell, ...]
) -> Cell:
    config, joins = copy.deepcopy(config), network == ENSEMBLE
    learnt = [source_task] if source_task != "none" else []
    config["name"] = "-".join([*learnt, *(["emotion"] if learns == "target" else []), network])
    key = [ord(letter) for letter in f"{learns} {source_task} {network}"]
    config["seed_everything"] = int(np.random.SeedSequence([seed, *key]).generate_state(1)[0])
    config["data"]["init_args"] |= {"task": source_task if learns == "source" else "emotion", "seed": seed}
    config["trainer"]["callbacks"] = [PICTURES] if learns == "target" else []
    if not joins:
        arguments = config["model"]["init_args"]
        arguments["backbone"]["init_args"]["hidden"] = [int(width) for width in network.split(":")]
        arguments["train_on"] = learns
        if not bases:  # layers with random weights are not frozen
            arguments |= {"freeze": 0, "unfreeze_by": None}
    factors = {"learns": learns, "source task": source_task, "network": network, "seed": seed}
    return Cell(f"{config['name']}-s{seed}", factors, config, bases, joins)


def cells_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per finished cell: trained domain, source task, network, seed, results in per cent, seconds, run.

    A source task has the column `error`, emotions have the columns of `FIGURES`.

    Args:
        results: The finished cells.
    """

    def place(result: Result) -> tuple[Any, ...]:
        factors = result.factors
        joins = factors["network"] == ENSEMBLE
        widths = [] if joins else [int(width) for width in factors["network"].split(":")]
        return factors["learns"], SOURCE_TASKS.index(factors["source task"]), joins, widths, factors["seed"]

    rows = table(sorted(results, key=place), {"error": "test/source/acc", **FIGURES})
    first = rows["learns"] == "source"
    rows["error"] = (100 - 100 * rows["error"]).where(first)
    for column in FIGURES:
        rows[column] = (100 * rows[column]).where(~first)
    return rows


def report(name: str, results: Sequence[Result], parent: str) -> pd.DataFrame:
    """Prints the two tables, records metrics, cells and picture in the experiment's run, and returns the cells.

    Args:
        name: Name of the experiment's run.
        results: The finished cells.
        parent: Id of the experiment's run.
    """
    rows, tracked = cells_table(results), client()
    stages = {"source": ["error"], "target": list(FIGURES)}
    titles = {"source": "source task, error in per cent", "target": "emotions after a source task, per cent"}
    for learns, columns in stages.items():
        own = rows[rows["learns"] == learns]
        if own.empty:
            continue
        means = summary(own, ["source task", "network"], columns)
        for column in columns:
            for index, mean in zip(means.index.tolist(), means[column, "mean"], strict=True):
                key = "_".join(index).replace(":", "-")
                tracked.log_metric(parent, f"{'source_error' if learns == 'source' else column}/{key}", mean)
        text = pd.DataFrame({"seeds": means[columns[0], "count"]})
        for column in columns:
            pairs = means[column][["mean", "std"]].itertuples(index=False)
            text[column] = [mean_and_spread(mean, std, ".1f") for mean, std in pairs]
        print_table(f"{titles[learns]}, test split", text.reset_index())
    tracked.log_text(parent, rows.to_csv(index=False), "cells.csv")
    tracked.log_figure(parent, picture(rows, name), "speech_transfer.png")
    print(f"\ntables and picture: run {name} ({parent})")
    return rows


def picture(rows: pd.DataFrame, title: str) -> Any:
    """Unweighted average recall (UAR) on emotions for each source task and network.

    Args:
        rows: The result of `cells_table`.
        title: Title of the picture.
    """
    emotions = rows[rows["learns"] == "target"].copy()
    emotions["after"] = emotions["source task"].map(lambda task: "baseline" if task == "none" else f"after {task}")
    return bars(emotions.assign(UAR=emotions["UAR"] / 100), "after", "network", "UAR", title,
                "UAR of emotions, test split (%)", factor=100)  # fmt: skip
