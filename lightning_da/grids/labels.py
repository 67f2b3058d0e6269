"""The grid over the number of labels: its cells, tables and picture."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from lightning_da.grids.engine import Result
from lightning_da.grids.tables import mean_and_spread, print_table, summary, table
from lightning_da.store import client

METRIC = "test/target/acc"


def cells_table(results: Sequence[Result], shown: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per finished cell: labels (0 if the method reads none), method, seed, accuracy, class accuracy, run.

    Args:
        results: The finished cells.
        shown: Keys of the cells of each method; other cells, of first stages or earlier settings, are left out.
    """
    key_of = {json.dumps(result.factors, sort_keys=True): result for result in results}
    own = [key_of[key] for keys in shown.values() for key in keys if key in key_of]
    rows = table(own, {"accuracy": METRIC, "class accuracy": "test/target/class_acc"})
    place = rows["method"].map({name: place for place, name in enumerate(shown)})
    rows = rows.drop(columns="settings").assign(place=place).sort_values(["labels", "place", "seed"])
    return rows.drop(columns="place").reset_index(drop=True)


def report(shown: Mapping[str, Sequence[str]], name: str, results: Sequence[Result], parent: str) -> pd.DataFrame:
    """Prints the table, records metrics, cells and picture in the grid's run, and returns the cells.

    Args:
        shown: As for `cells_table`.
        name: Name of the grid's run.
        results: The finished cells.
        parent: Id of the grid's run.
    """
    rows, tracked = cells_table(results, shown), client()
    means = summary(rows, ["labels", "method"], ["accuracy"])["accuracy"]
    text: dict[int, dict[str, Any]] = {}
    for (labels, method), mean, std, seeds in means.itertuples():
        text.setdefault(labels, {"labels": labels or "none", "seeds": seeds})[method] = mean_and_spread(
            mean, std, ".3f"
        )
        if labels:
            tracked.log_metric(parent, f"labels/{method}", mean, step=labels)
    print_table("target accuracy over the number of target labels, test split", pd.DataFrame(text.values()).fillna("-"))
    tracked.log_text(parent, rows.to_csv(index=False), "cells.csv")
    tracked.log_figure(parent, picture(rows, name), "label_curve.png")
    print(f"\ntable and picture: run {name} ({parent})")
    return rows


def picture(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy over the number of labels: means as lines, seeds as points; a method without labels is a level line.

    Args:
        rows: The result of `cells_table`.
        title: Title of the picture.
    """
    drawn = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = drawn.subplots()
    numbers = sorted(set(rows["labels"]) - {0})
    for place, (method, own) in enumerate(rows.groupby("method", sort=False)):
        colour = colormaps["tab10"](place % 10)
        means = own.groupby("labels")["accuracy"].mean()
        if list(means.index) == [0]:
            axes.axhline(means[0], color=colour, ls="--", label=f"{method} (no target label)")
            continue
        axes.plot(means.index, means, "-o", color=colour, ms=4, label=method)
        axes.plot(own["labels"], own["accuracy"], ".", color=colour, alpha=0.5, ms=4)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set(xlabel="labels of the target", ylabel="target accuracy, test split", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn
