"""The layer-transfer grid: networks, tasks, tables and picture.

Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, section 2.
https://arxiv.org/abs/1411.1792
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lightning_da.grids.engine import Cell, Result
from lightning_da.grids.tables import mean_and_spread, print_table, summary, table
from lightning_da.store import client

TREATMENTS = ("BnB", "AnB", "BnB+", "AnB+", "random")
"""The first n layers are copied from a network for B (BnB) or A (AnB) and frozen, or fine-tuned (+), or are random
and frozen."""
HEAD = "head"
STYLES = {
    "BnB": ("tab:blue", "-", "o"),
    "BnB+": ("tab:cyan", "--", "o"),
    "AnB": ("tab:red", "-", "s"),
    "AnB+": ("tab:orange", "--", "s"),
    "random": ("tab:grey", ":", "^"),
}
"""Colour, line and marker of each treatment."""


class Layers(NamedTuple):
    """The settings of a layer-transfer grid.

    Attributes:
        config: Configuration of a fit on all classes.
        classes: Names of all classes of the source.
        layers: Names of the layers that are copied: those of the backbone, and `head` if A and B have the same classes.
        task_a: Classes of A; None draws half of the classes for each seed.
        of_target: Names of all classes of the target if A is the source and B the target, otherwise None.
    """

    config: dict[str, Any]
    classes: list[str]
    layers: list[str]
    task_a: list[str] | None
    of_target: list[str] | None

    def task(self, name: str, seed: int) -> dict[str, Any]:
        """The arguments of `Task` for A or B."""
        if self.of_target is not None:
            return {"domain": "source", "classes": None} if name == "A" else {"domain": "target", "classes": None}
        order = np.random.default_rng(seed).permutation(len(self.classes))
        half = {self.classes[i] for i in order[: len(order) // 2]}
        first = half if self.task_a is None else set(self.task_a)
        return {"domain": "source", "classes": [c for c in self.classes if (c in first) == (name == "A")]}

    def largest_class(self, results: Sequence[Result]) -> float:
        """The share of the largest class in the test split of B, the mean over seeds: the accuracy of naming it always.

        Args:
            results: The finished cells.
        """
        bases = [result for result in results if result.factors["treatment"] == "B"]
        sizes = [len(self.of_target or self.task("B", base.factors["seed"])["classes"]) for base in bases]
        return float(np.mean([b.metrics["test/target/imbalance"] / n for b, n in zip(bases, sizes, strict=True)]))

    def plan(
        self, seeds: Sequence[int], labels: Sequence[int | None], depths: Sequence[int], treatments: Sequence[str]
    ) -> list[Cell]:
        """The cells of the grid; each comes after the cell from which its layers are copied.

        Args:
            seeds: Seeds of the repetitions; a seed determines the classes of A and B and the drawn labels.
            labels: Numbers of training labels for B; None means all.
            depths: Numbers of copied layers.
            treatments: Some of `TREATMENTS`.
        """
        cells: dict[str, Cell] = {}

        def add(treatment: str, n: int, number: int | None, seed: int, *bases: Cell) -> Cell:
            cell = self._cell(treatment, n, number, seed, bases)
            return cells.setdefault(cell.key, cell)

        for seed in seeds:
            first = [add("A", 0, None, seed)] if {"AnB", "AnB+"} & set(treatments) and depths else []
            for number in labels:
                base = {"B": add("B", 0, number, seed), "A": first[0] if first else None}
                for n in depths:
                    for treatment in treatments:
                        if treatment == "random" and self.layers[n - 1] == HEAD:
                            continue  # nothing would learn
                        start = base.get(treatment[0])
                        add(treatment, n, number, seed, *([start] if start else []))
        return list(cells.values())

    def _cell(self, treatment: str, n: int, labels: int | None, seed: int, bases: tuple[Cell, ...]) -> Cell:
        config = copy.deepcopy(self.config)
        task = {**self.task("A" if treatment == "A" else "B", seed), "labels": labels, "seed": seed}
        whole = config["data"].get("init_args", {})
        batch = {"batch_size": whole["batch_size"]} if "batch_size" in whole else {}
        config["data"] = {
            "class_path": "lightning_da.data.Task",
            "init_args": {"data": config["data"], **task, **batch},
        }
        frozen, whole = not treatment.endswith("+"), n > 0 and self.layers[n - 1] == HEAD
        arguments = config["model"]["init_args"]
        arguments |= {
            "init_layers": n if bases and not whole else "all",
            "keep_head": whole,
            "freeze": ("all" if whole else n) if frozen else 0,
        }
        if whole and frozen:  # nothing learns: the network for A is tested on B
            arguments["head_lr_scale"] = 0.0
            config["trainer"]["max_steps"] = 1
        # each cell has its own seed, so that new layers differ from the initial layers of its base
        kind = ("A", "B", *TREATMENTS).index(treatment)
        config["seed_everything"] = int(np.random.SeedSequence([seed, kind, n, labels or 0]).generate_state(1)[0])
        config["name"] = _name(treatment, n, labels)
        config["trainer"]["callbacks"] = []
        factors = {"labels": labels or 0, "treatment": treatment, "n": n, "seed": seed}
        return Cell(f"{config['name']}-s{seed}", factors, config, bases)


def _name(treatment: str, n: int, labels: int | None) -> str:
    """Name of a cell, for example `A3B+` for n = 3, or `A3B+-100` with 100 labels."""
    head = f"base{treatment}" if not n else treatment.replace("n", str(n), 1)
    head = f"random{n}" if treatment == "random" else head
    return head if labels is None else f"{head}-{labels}"


def cells_table(results: Sequence[Result], layers: Sequence[str]) -> pd.DataFrame:
    """One row per finished cell: labels (0 for all), treatment, n, layer, seed, accuracy, seconds, run.

    Args:
        results: The finished cells.
        layers: Names of the backbone's layers.
    """
    rows = table(results, {"accuracy": "test/target/acc"})
    rows.insert(3, "layer", ["" if n == 0 else layers[n - 1] for n in rows["n"]])
    order = {name: place for place, name in enumerate(("A", "B", *TREATMENTS))}
    places = pd.DataFrame(
        {
            "seed": rows["seed"],
            "labels": -rows["labels"].replace(0, np.inf),
            "base": rows["n"] > 0,
            "n": rows["n"],
            "treatment": rows["treatment"].map(order),
        }
    )
    return rows.loc[places.sort_values(places.columns.to_list()).index].reset_index(drop=True)


def means_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds for each treatment and depth; n = 0 is base B, for every treatment.

    Args:
        rows: The result of `cells_table`.
    """
    treated = rows[~rows["treatment"].isin(["A", "B"])]
    bases = rows[rows["treatment"] == "B"]
    start = [bases[bases["labels"] == labels].assign(treatment=name) for labels, name in _pairs(treated)]
    means = summary(pd.concat([*start, treated]), ["labels", "treatment", "n"], ["accuracy"])
    return means["accuracy"].reset_index()


def _pairs(rows: pd.DataFrame) -> list[tuple[int, str]]:
    return list(dict.fromkeys(zip(rows["labels"], rows["treatment"], strict=True)))


def curves(rows: pd.DataFrame, layers: Sequence[str], title: str, largest: float | None = None) -> Figure:
    """Accuracy on B over the number of copied layers, as in figure 2 of the paper; one panel per number of labels.

    Args:
        rows: The result of `cells_table`.
        layers: Names of the backbone's layers.
        title: Title of the picture.
        largest: Share of the largest class of B, a line; None draws none.
    """
    means, panels = means_table(rows), list(dict.fromkeys(rows[rows["treatment"] != "A"]["labels"]))
    drawn = Figure(figsize=(6.2 * len(panels), 4.4), layout="constrained")
    drawn.suptitle(title)
    for axes, labels in zip(drawn.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        base = rows[(rows["treatment"] == "B") & (rows["labels"] == labels)]["accuracy"]
        axes.axhline(base.mean(), color="black", lw=1, ls=":", label="base B")
        if largest is not None:
            axes.axhline(largest, color="tab:grey", lw=1, ls="-.", label="largest class")
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


def report(setting: Layers, name: str, results: Sequence[Result], parent: str) -> pd.DataFrame:
    """Prints the tables, records tables, curves and picture in the grid's run, and returns the table of cells.

    Unchanged points of earlier curves are not logged again.

    Args:
        setting: Settings of the grid.
        name: Name of the grid's run.
        results: The finished cells.
        parent: Id of the grid's run.
    """
    rows = cells_table(results, setting.layers)
    tracked, means = client(), means_table(rows)
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
    largest = setting.largest_class(results)
    tracked.log_figure(parent, curves(rows, setting.layers, name, largest), "layer_transfer.png")
    print(f"\n{name}, accuracy on the test split of B, {rows['seed'].nunique()} seed(s); largest class {largest:.3f}")
    for labels, part in means.groupby("labels", sort=False):
        names = [f"{n} {['base B', *setting.layers][n]}" for n in part["n"]]
        text = [mean_and_spread(m, s, ".3f") for m, s in zip(part["mean"], part["std"], strict=True)]
        wide = part.assign(layers=names, text=text).pivot_table("text", "layers", "treatment", "first", sort=False)
        print_table(_labels(int(str(labels))), wide.rename_axis(columns=None).reset_index().fillna("-"))
    print(f"\ntables and picture: run {name} ({parent})")
    return rows
