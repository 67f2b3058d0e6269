"""Means and standard deviations over seeds, as numbers, text and bars."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from lightning_da.grids.engine import Result


def table(results: Sequence[Result], metrics: Mapping[str, str]) -> pd.DataFrame:
    """One row per finished cell: factors, metrics, seconds and run.

    Args:
        results: The finished cells.
        metrics: Column names and their test metrics; a cell without the metric has an empty value.
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
    """Mean, standard deviation and number of values per group, in the order of the rows.

    Args:
        rows: One row per seed.
        by: Columns that define the groups.
        columns: Columns with numbers.

    Returns:
        A table with the index `by`, and the columns (column, `mean`), (column, `std`) and (column, `count`).
    """
    figures = rows[list(columns)].apply(pd.to_numeric)
    means: pd.DataFrame = figures.groupby([rows[name] for name in by], sort=False).agg(["mean", "std", "count"])
    return means


def mean_and_spread(mean: float, deviation: float, form: str, factor: float = 1.0) -> str:
    """Text such as `0.851 ± 0.011`; only the mean if `deviation` is NaN, and `-` if `mean` is NaN.

    Args:
        mean: The mean.
        deviation: The standard deviation; NaN if there is only one value.
        form: Format of both numbers, for example `.3f`.
        factor: Factor that multiplies both numbers.
    """
    if pd.isna(mean):
        return "-"
    spread = "" if pd.isna(deviation) else f" ± {factor * deviation:{form}}"
    return f"{factor * mean:{form}}{spread}"


def print_table(title: str, text: pd.DataFrame) -> None:
    """Prints a title and a table: the first column is left-aligned, the others right-aligned."""
    lines = [tuple(map(str, text.columns)), *(tuple(map(str, row)) for row in text.itertuples(index=False))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(text.columns))]
    print(f"\n{title}")
    for place, line in enumerate(lines):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(cells))
        if place == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))


def bars(rows: pd.DataFrame, x: str, group: str | None, y: str, title: str, ylabel: str, factor: float = 1.0) -> Figure:
    """Bar chart with means as bars and seeds as points.

    Args:
        rows: One row per seed.
        x: Column with the positions on the x axis.
        group: Column with the bars at each position; None draws one bar.
        y: Column with the values.
        title: Title of the picture.
        ylabel: Label of the y axis.
        factor: Factor that multiplies the values; it is also the end of the y axis.
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
