"""Layer transfer, the result: tables, curves over the number of copied layers, and the figure of the paper."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from lightning_da.grid import Result
from lightning_da.tracking import client
from lightning_da.transferability.layer_plan import Cell, Grid, in_order

STYLES = {
    "BnB": ("tab:blue", "-", "o"),
    "BnB+": ("tab:cyan", "--", "o"),
    "AnB": ("tab:red", "-", "s"),
    "AnB+": ("tab:orange", "--", "s"),
    "random": ("tab:grey", ":", "^"),
}
"""Colour, line and marker of each treatment."""


def table(cells: Sequence[Cell], done: dict[Cell, Result], layers: Sequence[str]) -> pd.DataFrame:
    """A row for each finished cell: labels (0 for all), treatment, n, layer, seed, accuracy, seconds, run."""
    rows = []
    for cell in cells:
        if cell in done:
            result, layer = done[cell], layers[cell.n - 1] if cell.n else ""
            figures = (result.metrics[cell.metric], result.seconds, result.run_id)
            rows.append((cell.labels or 0, cell.treatment, cell.n, layer, cell.seed, *figures))
    return pd.DataFrame(rows, columns=["labels", "treatment", "n", "layer", "seed", "accuracy", "seconds", "run"])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds for each treatment and depth; n = 0 is base B, for every treatment.

    Args:
        rows: Of `table`.
    """
    treated = rows[~rows["treatment"].isin(["A", "B"])]
    bases = rows[rows["treatment"] == "B"]
    start = [bases[bases["labels"] == labels].assign(treatment=name) for labels, name in _pairs(treated)]
    both = pd.concat([*start, treated])
    groups = both.groupby(["labels", "treatment", "n"], sort=False)["accuracy"]
    return groups.agg(["mean", "std", "count"]).reset_index()


def _pairs(rows: pd.DataFrame) -> list[tuple[int, str]]:
    return list(dict.fromkeys(zip(rows["labels"], rows["treatment"], strict=True)))


def figure(rows: pd.DataFrame, layers: Sequence[str], title: str) -> Figure:
    """Accuracy on B over the number of copied layers, in the form of figure 2 of the paper; a panel a number of labels.

    Args:
        rows: Of `table`.
        layers: Names of the backbone's layers.
        title: Of the figure.
    """
    means, panels = summary(rows), list(dict.fromkeys(rows[rows["treatment"] != "A"]["labels"]))
    drawn = Figure(figsize=(6.2 * len(panels), 4.4), layout="constrained")
    drawn.suptitle(title)
    for axes, labels in zip(drawn.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        base = rows[(rows["treatment"] == "B") & (rows["labels"] == labels)]["accuracy"]
        axes.axhline(base.mean(), color="black", lw=1, ls=":", label="base B")
        if len(base) > 1:
            axes.axhspan(base.mean() - base.std(), base.mean() + base.std(), color="black", alpha=0.08, lw=0)
        axes.plot([0] * len(base), base, "k.", ms=4)
        for treatment, (colour, line, marker) in STYLES.items():
            own = rows[(rows["treatment"] == treatment) & (rows["labels"] == labels)]
            if not own.empty:
                mean = means[(means["treatment"] == treatment) & (means["labels"] == labels)].sort_values("n")
                axes.plot(mean["n"], mean["mean"], line, color=colour, marker=marker, ms=5, label=treatment)
                axes.plot(own["n"], own["accuracy"], ".", color=colour, alpha=0.5, ms=4)
        names = ["0\n(base B)", *(f"{n}\n{layer}" for n, layer in enumerate(layers, start=1))]
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set(xlabel="layers copied (n)", ylabel="accuracy on B", title=_labels(labels))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return drawn


def _labels(number: int) -> str:
    return f"{number} labels of B" if number else "all labels of B"


def report(grid: Grid, name: str, done: dict[Cell, Result], parent: str) -> pd.DataFrame:
    """Prints the tables, writes them, curves and figure into the grid's run, and returns the table of its cells.

    Points that are there and unchanged are left alone.
    """
    rows = table(in_order(done), done, grid.layers)
    tracked, means = client(), summary(rows)
    for number, treatment in _pairs(means):
        prefix = f"layer_transfer_{number}" if number else "layer_transfer"
        own = means[(means["labels"] == number) & (means["treatment"] == treatment)]
        for column, ending in (("mean", ""), ("std", "_std")):
            key = f"{prefix}/{treatment.replace('+', '_plus')}{ending}"
            there = {point.step: point.value for point in tracked.get_metric_history(parent, key)}
            for n, value in own.dropna(subset=column)[["n", column]].itertuples(index=False):
                if there.get(n) != value:
                    tracked.log_metric(parent, key, value, step=n)
    tracked.log_text(parent, rows.to_csv(index=False), "cells.csv")
    tracked.log_text(parent, means.to_csv(index=False), "layer_transfer.csv")
    tracked.log_figure(parent, figure(rows, grid.layers, name), "layer_transfer.png")
    print(f"\n{name}, accuracy on the test split of B, {rows['seed'].nunique()} seed(s)")
    for labels, part in means.groupby("labels", sort=False):
        wide: dict[str, dict[str, str]] = {}
        for row in part.to_dict("records"):
            cell = f"{row['mean']:.3f}" + (f" ± {row['std']:.3f}" if row["count"] > 1 else "")
            wide.setdefault(f"{row['n']} {['base B', *grid.layers][row['n']]}", {})[row["treatment"]] = cell
        print(f"\n{_labels(int(str(labels)))}\n{pd.DataFrame(wide).T.to_string()}")
    experiment = grid.config["trainer"]["logger"]["init_args"]["experiment_name"]
    print(f"\ntables and figure: run {parent} of experiment {experiment}")
    return rows
