"""Layer transfer, the plan: which networks are trained on which task, and the configuration of each.

Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, section 2.
"""

import copy
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_da.data import DomainPairDataModule, Task
from lightning_da.grid import digest

TREATMENTS = ("BnB", "AnB", "BnB+", "AnB+", "random")
"""The first n layers are those of a network for B, or for A, frozen or (+) trained further, or random and frozen."""


class Cell(NamedTuple):
    """One training of the grid.

    Attributes:
        treatment: `A` or `B` for the networks to copy from, else one of `TREATMENTS`.
        n: How many layers are copied; 0 for the networks to copy from.
        labels: How many training labels the task has; None for all.
        seed: Of the repetition: it splits the classes and draws the labels.
    """

    treatment: str
    n: int
    labels: int | None
    seed: int

    @property
    def bases(self) -> tuple["Cell", ...]:
        """The training that the layers are copied from, if any."""
        if not self.n or self.treatment == "random":
            return ()
        task = self.treatment[0]
        return (Cell(task, 0, None if task == "A" else self.labels, self.seed),)

    @property
    def metric(self) -> str:
        """Accuracy on the task, of which source and target are the same."""
        return "test/target/acc"

    @property
    def name(self) -> str:
        """A3B+, say: with the number of layers in the place of n; `labels` and seed follow."""
        head = f"base{self.treatment}" if not self.n else self.treatment.replace("n", str(self.n), 1)
        head = f"random{self.n}" if self.treatment == "random" else head
        return f"{head}{'' if self.labels is None else f'-{self.labels}'}-s{self.seed}"

    def random_seed(self) -> int:
        """The seed of weights and batches, different in each cell: new layers are not those that a base began with."""
        kind = ("A", "B", *TREATMENTS).index(self.treatment)
        state = np.random.SeedSequence([self.seed, kind, self.n, self.labels or 0]).generate_state(1)
        return int(state[0])


def plan(
    seeds: Sequence[int], labels: Sequence[int | None], depths: Sequence[int], treatments: Sequence[str]
) -> list[Cell]:
    """The cells of a grid; what another one copies from comes before it."""
    cells: list[Cell] = []
    for seed in seeds:
        treated = [Cell(t, n, number, seed) for number in labels for n in depths for t in treatments]
        bases = [Cell("B", 0, number, seed) for number in labels]
        cells += [*(base for cell in treated for base in cell.bases), *bases, *treated]
    return list(dict.fromkeys(cells))


class Grid(NamedTuple):
    """What all cells have in common.

    Attributes:
        config: The configuration of a fit on the whole data.
        classes: Names of all classes.
        layers: Names of the backbone's layers.
        task_a: Classes of A; None draws half of them for each seed.
        across: Whether A is the source and B the target, with all classes.
        data: A digest of all samples and labels.
    """

    config: dict[str, Any]
    classes: list[str]
    layers: list[str]
    task_a: list[str] | None
    across: bool
    data: str

    def digest(self) -> str:
        """Equal for grids whose cells can stand in one table."""
        return digest(self.config, self.task_a, self.across, self.data)

    def task(self, name: str, seed: int) -> dict[str, Any]:
        """The arguments of `Task` for A or B."""
        if self.across:
            return {"domain": "source" if name == "A" else "target", "classes": None}
        order = np.random.default_rng(seed).permutation(len(self.classes))
        half = {self.classes[i] for i in order[: len(order) // 2]}
        first = half if self.task_a is None else set(self.task_a)
        return {"domain": "source", "classes": [c for c in self.classes if (c in first) == (name == "A")]}

    def task_of(self, cell: Cell) -> dict[str, Any]:
        """The arguments of `Task` for what a cell reads."""
        whole = self.config["data"].get("init_args", {})
        batch = {"batch_size": whole["batch_size"]} if "batch_size" in whole else {}
        task = self.task("A" if cell.treatment == "A" else "B", cell.seed)
        return {**task, "labels": cell.labels, "seed": cell.seed, **batch}

    def check(self, data: DomainPairDataModule, cells: Sequence[Cell]) -> None:
        """Checks the data of all cells before the first is trained.

        Args:
            data: The whole data.
            cells: All cells.

        Raises:
            ConfigError: If a task cannot be trained on.
        """
        read = {json.dumps(arguments): arguments for arguments in map(self.task_of, cells)}
        for arguments in read.values():
            Task(data, **arguments).check()

    def cell_config(self, cell: Cell, bases: list[str]) -> dict[str, Any]:
        """The configuration of a fit that is one cell.

        Args:
            cell: The cell.
            bases: Id of the run that the layers are copied from, if any.
        """
        config = copy.deepcopy(self.config)
        init_args = {"data": config["data"]} | self.task_of(cell)
        config["data"] = {"class_path": "lightning_da.data.Task", "init_args": init_args}
        config["model"]["init_args"] |= {
            "init_from": bases[0] if bases else None,
            "init_layers": cell.n if bases else "all",
            "freeze": 0 if cell.treatment.endswith("+") else cell.n,
        }
        config["name"], config["seed_everything"] = cell.name.rsplit("-s", 1)[0], cell.random_seed()
        config["trainer"]["callbacks"] = []
        return config


def in_order(done: Iterable[Cell]) -> list[Cell]:
    """A plan that has all the cells: those of earlier calls are a part of the grid as well."""
    seeds, depths = sorted({cell.seed for cell in done}), sorted({cell.n for cell in done} - {0})
    labels = sorted({cell.labels for cell in done}, key=lambda number: -(number or math.inf))
    return plan(seeds, labels, depths, TREATMENTS)
