"""Curves over depth as a picture and as a page."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lightning_da.pages import render, svg

FILES = ("curve.csv", "curve.png", "curve.html")
CAPTION = (
    "band: ± 1.96 standard deviations (random halves); dotted: shuffled domains or labels, mean and 95th percentile"
)


_DASHES, _SHADES = ("solid", "dash", "dashdot"), ("Blues", "Oranges", "Greens", "Reds", "Purples")
"""Styles of the first, second, ... measure of a panel. The shades match Matplotlib's colours C0, C1, ..."""


class _Curve(NamedTuple):
    """A network's curve of one measure, and its style."""

    name: str
    colour: str
    dash: str
    width: float
    rows: pd.DataFrame


def _order(table: pd.DataFrame) -> list[str]:
    """The layers of all networks in the order of depth. A layer of one network stays between its neighbours there."""
    order: list[str] = []
    for _, rows in table.sort_values("depth").groupby("network", sort=False):
        place = 0
        for layer in rows["layer"].unique():
            if layer not in order:
                order.insert(place, layer)
            place = order.index(layer) + 1
    return order


def _curves(table: pd.DataFrame, panel: str) -> Iterator[_Curve]:
    """The curves of a panel. Curves from the course of training are light, those of its end strong.

    The colour tells the measures of one network apart, or the networks if there are two.
    """
    networks = list(dict.fromkeys(table["network"]))
    on_the_way = [name for name in networks if name == "start" or name.startswith("step ")]
    ends = [name for name in networks if name not in (*on_the_way, "untrained")]
    table = table[table["panel"] == panel]
    measures = list(dict.fromkeys(table["measure"]))
    for place, measure in enumerate(measures):
        dash, next_dash = (_DASHES[(place + offset) % len(_DASHES)] for offset in (0, 1))
        for network in networks:
            rows = table[(table["measure"] == measure) & (table["network"] == network)].sort_values("depth")
            if rows.empty:
                continue
            name = network if len(measures) == 1 else f"{measure}, {network}"
            if network == "untrained" and len(networks) > 1:
                yield _Curve(name, "#888888", next_dash, 1.2, rows)
            elif len(ends) > 1:
                yield _Curve(name, f"C{ends.index(network)}", dash, 2.0, rows)
            elif network in on_the_way:
                shade = 0.25 + 0.4 * (on_the_way.index(network) + 1) / len(on_the_way)
                colours = colormaps[_SHADES[place % len(_SHADES)]]
                yield _Curve(name, to_hex(colours(shade)), "solid", 0.8, rows)
            else:
                yield _Curve(name, f"C{place}", "solid", 2.2, rows)


def curve_files(table: pd.DataFrame, title: str) -> dict[str, Figure | str]:
    """The content of each of `FILES`: the table, the figure and the page.

    Args:
        table: As for `curve_figure`.
        title: Title of figure and page.
    """
    content = (table.to_csv(index=False), curve_figure(table, title), curve_html(table, title))
    return dict(zip(FILES, content, strict=True))


def curve_figure(table: pd.DataFrame, title: str, caption: str = CAPTION) -> Figure:
    """Draws the curves, a panel for each measure or for those that share one.

    Args:
        table: Rows of `depth_table`, at least one, with a column `network`: `untrained`, `start` and `step N` in the
            course of training, any other name for a network at the end.
        title: Title of the figure.
        caption: Text below the figure.
    """
    panels = list(dict.fromkeys(table["panel"]))
    layers = _order(table)
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    width = max(4.5, 0.45 * len(layers) + 2)
    figure = Figure(figsize=(columns * width, 3.4 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel(caption, fontsize=8, color="grey")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for panel, axes in zip(panels, grid, strict=False):
        for curve in _curves(table, panel):
            style = {"solid": "-", "dash": "--", "dashdot": "-."}[curve.dash]
            x, part = [layers.index(layer) for layer in curve.rows["layer"]], curve.rows
            axes.plot(x, part["value"], style, color=curve.colour, lw=curve.width, label=curve.name, marker=".")
            if part["low"].notna().any():
                axes.fill_between(x, part["low"], part["high"], color=curve.colour, alpha=0.2, lw=0)
                axes.plot(x, part["null"], ":", color=curve.colour, lw=1)
                axes.fill_between(x, part["null"], part["null_high"], color="grey", alpha=0.15, lw=0)
        axes.set_title(panel, fontsize=10)
        axes.set_xticks(
            range(len(layers)),
            layers,
            rotation=0 if len(layers) < 8 else 90,
            fontsize=8 if len(layers) < 8 else 7,
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6.5, framealpha=0.5, edgecolor="none")
    for axes in list(grid):
        axes.axis("off")
    return figure


def curve_html(table: pd.DataFrame, title: str) -> str:
    """Draws the curves as a page that works offline. The pointer shows values, and a table has them all.

    Args:
        table: As for `curve_figure`.
        title: Title of the page.

    Returns:
        The HTML text.
    """
    shown = table[["network", "measure", "layer", "value", "low", "high", "null", "null_high"]]
    numbers = shown.select_dtypes("number").map(lambda number: "" if pd.isna(number) else f"{number:.4g}")
    return render(
        "curve.html.jinja",
        title=title,
        figure=svg(curve_figure(table, ""), f"curves over depth of {title}"),
        columns=[name.replace("null", "shuffled") for name in shown.columns],
        rows=shown.assign(**numbers).to_numpy().tolist(),
    )
