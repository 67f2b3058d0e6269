"""Means and spreads over seeds: as numbers, as text, and as bars."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from lightning_da.grids.engine import Result


def table(results: Sequence[Result], metrics: Mapping[str, str]) -> pd.DataFrame:
    """A row for each finished cell: its factors, its figures, seconds and run.

    Args:
        results: The finished cells.
        metrics: The test metric of each column; a cell without it has no value there.
    """
    return pd.DataFrame(
        {
            **result.factors,
            **{column: result.metrics.get(metric) for column, metric in metrics.items()},
            "seconds": result.seconds,
            "run": result.run_id,
        }
        for result in results
    )


def summary(rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation and number of values for each group, in the order of the rows.

    Args:
        rows: A row a seed.
        by: The columns that tell the groups apart.
        columns: The figures.

    Returns:
        The columns `by` as index, and pairs (figure, `mean`, `std` or `count`) as columns.
    """
    figures = rows[list(columns)].apply(pd.to_numeric)
    means: pd.DataFrame = figures.groupby([rows[name] for name in by], sort=False).agg(["mean", "std", "count"])
    return means


def mean_and_spread(mean: float, deviation: float, form: str, factor: float = 1.0) -> str:
    """`0.851 ± 0.011`; the mean alone where there is one value, and - where there is none.

    Args:
        mean: The mean.
        deviation: The standard deviation, NaN if it is not known.
        form: Format of both, `.3f` for example.
        factor: Both are multiplied by it.
    """
    if pd.isna(mean):
        return "-"
    spread = "" if pd.isna(deviation) else f" ± {factor * deviation:{form}}"
    return f"{factor * mean:{form}}{spread}"


def print_table(title: str, text: pd.DataFrame) -> None:
    """Prints a table of text under its title: the first column to the left, the others to the right."""
    lines = [tuple(map(str, text.columns)), *(tuple(map(str, row)) for row in text.itertuples(index=False))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(text.columns))]
    print(f"\n{title}")
    for place, line in enumerate(lines):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(cells))
        if place == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))


def bars(rows: pd.DataFrame, x: str, group: str | None, y: str, title: str, ylabel: str, factor: float = 1.0) -> Figure:
    """Means as bars, seeds as points.

    Args:
        rows: A row a seed.
        x: Column of the places on the axis.
        group: Column of the bars at each place; None has one.
        y: Column of the figure.
        title: Title of the picture.
        ylabel: Label of the axis.
        factor: The figure is multiplied by it; the axis ends at this value.
    """
    places = list(rows[x].unique())
    groups = [None] if group is None else list(rows[group].unique())
    drawn = Figure(figsize=(2 + max(1.1, 0.7 * len(groups)) * len(places), 4), layout="constrained")
    axes = drawn.subplots()
    for number, name in enumerate(groups):
        offsets = np.arange(len(places)) + 0.8 * ((number + 0.5) / len(groups) - 0.5)
        mine = rows if group is None else rows[rows[group] == name]
        own = [factor * pd.to_numeric(mine[mine[x] == place][y]).dropna() for place in places]
        colour = colormaps["tab10"](number % 10)
        axes.bar(offsets, [part.mean() for part in own], 0.7 / len(groups), color=colour, alpha=0.6, label=name)
        for offset, part in zip(offsets, own, strict=True):
            axes.plot([offset] * len(part), part, ".", color="black", ms=4)
    axes.set_xticks(range(len(places)), places)
    axes.set(ylabel=ylabel, title=title, ylim=(0, factor))
    if group is not None:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return drawn
