"""The grid of chains of domains: its cells, table and picture."""

import copy
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import pandas as pd

from lightning_da.grids.engine import Cell, Result
from lightning_da.grids.tables import bars, mean_and_spread, print_table, summary, table
from lightning_da.names import short_name
from lightning_da.store import client

ACCURACY = "test/target/acc"
Chain = tuple[str, ...]
"""Domains in the order in which their labels are learned; the last one is the target."""


def chains_of(source: str, through: Sequence[str], target: str, longest: int) -> list[Chain]:
    """All chains to the target through other domains in any order, with and without the source at their beginning.

    Args:
        source: The first domain.
        through: The other domains.
        target: The last domain.
        longest: The largest number of other domains in a chain.
    """
    between = [stops for number in range(longest + 1) for stops in permutations(through, number)]
    return [(*first, *stops, target) for stops in between for first in ((), (source,))]


def text_of(chain: Chain) -> str:
    """The short names of the domains, for example `typeset > handwritten > photo`."""
    return " > ".join(map(short_name, chain))


def plan(configs: Mapping[str, dict[str, Any]], chains: Sequence[Chain], seeds: Sequence[int]) -> list[Cell]:
    """The cells of the grid, each after the cell that it starts from; chains with the same beginning share it.

    Args:
        configs: For each domain but the target: the configuration of a fit with that domain as the source.
        chains: The chains.
        seeds: Seeds of the repetitions.
    """
    cells: dict[str, Cell] = {}

    def add(chain: Chain, last: bool, first: str, seed: int) -> Cell:
        bases = (add(chain[:-1], False, first, seed),) if len(chain) > 1 else ()
        config = copy.deepcopy(configs[first if last else chain[-1]])
        config["model"]["init_args"] |= {"train_on": "target" if last else "source", "keep_head": bool(bases)}
        if not last:
            config["data"]["init_args"]["target_labels"] = None
        config["trainer"]["callbacks"] = []
        config |= {"seed_everything": seed, "name": "chain"}
        factors = {"chain": list(chain), "seed": seed}
        cell = Cell(f"{text_of(chain).replace(' > ', '-')}-s{seed}", factors, config, bases)
        return cells.setdefault(cell.key, cell)

    for seed in dict.fromkeys(seeds):
        for chain in chains:
            add(chain, True, next(iter(configs)), seed)
    return list(cells.values())


def cells_table(results: Sequence[Result], chains: Sequence[Chain]) -> pd.DataFrame:
    """One row for each chain and seed: chain, seed, accuracy, accuracy before any label of the target, seconds, run.

    Args:
        results: The finished cells.
        chains: The chains to show.
    """
    before = {(tuple(r.factors["chain"]), r.factors["seed"]): r.metrics.get(ACCURACY) for r in results}
    place = {chain: number for number, chain in enumerate(chains)}
    own = [result for result in results if tuple(result.factors["chain"]) in place]
    own.sort(key=lambda result: (place[tuple(result.factors["chain"])], result.factors["seed"]))
    rows = table(own, {"accuracy": ACCURACY})
    found = [before.get((tuple(chain[:-1]), seed)) for chain, seed in zip(rows["chain"], rows["seed"], strict=True)]
    rows.insert(2, "before", pd.Series(found, dtype=float))
    return rows.assign(chain=[text_of(tuple(chain)) for chain in rows["chain"]])


def report(chains: Sequence[Chain], name: str, results: Sequence[Result], parent: str) -> pd.DataFrame:
    """Prints the table, records table and picture in the grid's run, and returns the rows of `cells_table`.

    Args:
        chains: The chains to show.
        name: Name of the grid's run.
        results: The finished cells.
        parent: Id of the grid's run.
    """
    rows = cells_table(results, chains)
    means = summary(rows, ["chain"], ["before", "accuracy"])
    text = pd.DataFrame(
        {
            "chain": chain,
            "seeds": row["accuracy", "count"].astype(int),
            **{
                column: mean_and_spread(row[key, "mean"], row[key, "std"], ".3f")
                for column, key in (("without target labels", "before"), ("target acc", "accuracy"))
            },
        }
        for chain, row in means.iterrows()
    )
    print_table("accuracy on the target's test split after each chain of fine-tunings", text)
    client().log_text(parent, rows.to_csv(index=False), "chains.csv")
    picture = bars(rows, "chain", None, "accuracy", name, "target accuracy, test split")
    for axes in picture.axes:
        axes.tick_params(axis="x", rotation=30)
    client().log_figure(parent, picture, "chains.png")
    print(f"\ntable and picture: run {name} ({parent})")
    return rows
