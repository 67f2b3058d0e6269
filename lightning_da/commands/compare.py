"""`lightning-da compare`: the runs of an experiment as a table."""

import argparse
from collections.abc import Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run

from lightning_da.grids.tables import mean_and_spread, print_table, summary
from lightning_da.tracking import EXPERIMENT, PRIMARY_METRIC, TrackingError, client, search_runs, tracking_uri

LOWER, UPPER = "source_only", "target_only"
"""The methods whose accuracies on the target are 0 and 1 on the scale of `gap closed`."""
FORMATS = {"source acc": ".3f", "target acc": ".3f", "gap closed": ".2f", "seconds": ".0f"}
"""The figures of the table, and how they are printed."""


def run(args: Sequence[str]) -> pd.DataFrame:
    """Prints and returns the table of an experiment.

    Args:
        args: The words behind `compare`.
    """
    parser = argparse.ArgumentParser(
        "lightning-da compare",
        description="Print the tested runs of an experiment: mean and standard deviation over seeds.",
    )
    parser.add_argument("--experiment", default=EXPERIMENT, help="name of the experiment (default: %(default)s)")
    given = parser.parse_args(args)
    experiment = client().get_experiment_by_name(given.experiment)
    if experiment is None:
        names = ", ".join(e.name for e in client().search_experiments())
        raise TrackingError(f"no experiment {given.experiment!r} in {tracking_uri()}; there are {names}")
    return compare(tested_runs(experiment.experiment_id))


def tested_runs(experiment_id: str) -> list[Run]:
    """The runs of an experiment that have test results, the latest first."""
    return [
        run
        for run in search_runs(experiment_id, newest_first=True)
        if {"test/source/acc", PRIMARY_METRIC} & run.data.metrics.keys() and "method" in run.data.params
    ]


def compare(runs: Sequence[Run]) -> pd.DataFrame:
    """Prints and returns a row for each configuration: mean and standard deviation over its seeds.

    Of runs with equal configuration and seed the latest counts. The gap closed is (acc - source-only) / (target-only -
    source-only) on the target, against runs on the same data with the same seed, backbone, batch size and length.

    Args:
        runs: Tested runs, the latest first.

    Returns:
        A frame with the numbers; the printed table has them rounded.
    """
    if not runs:
        print("no tested runs: fit and test some first")
        return pd.DataFrame()
    frame = rows_of(runs)
    means = summary(frame, ["pair", "configuration"], list(FORMATS))
    first = frame.groupby(["pair", "configuration"], sort=False)["method"].first()
    table = pd.DataFrame({"method": first, "seeds": frame.groupby(["pair", "configuration"], sort=False).size()})
    table = table.reset_index()
    table["settings"] = pd.Series([dict(configuration) for configuration in table.pop("configuration")])
    for column in FORMATS:
        table[column], table[f"{column} std"] = means[column, "mean"].to_numpy(), means[column, "std"].to_numpy()
    _tell_apart(table)
    for pair, group in table.groupby("pair", sort=False):
        text = group[["method", "seeds"]].copy()
        for column, form in FORMATS.items():
            spreads = group[f"{column} std"] if column != "seconds" else [float("nan")] * len(group)
            pairs = zip(group[column], spreads, strict=True)
            text[column] = [mean_and_spread(mean, spread, form) for mean, spread in pairs]
        print_table(f"{pair}, test split", text)
    return table


def rows_of(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each configuration and seed: method, pair of domains and figures.

    Args:
        runs: Tested runs, the latest first.
    """
    latest: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        latest.setdefault((_configuration(run), run.data.params["seed"]), run)
    frame = pd.DataFrame(
        {
            "configuration": key,
            "seed": seed,
            "terms": _terms(run),
            "method": run.data.params["method"]
            + (" (oracle)" if "oracle" in run.data.tags.get("selection", "") else ""),
            "pair": f"{run.data.params.get('source')} -> {run.data.params.get('target')}",
            "source acc": run.data.metrics.get("test/source/acc"),
            "target acc": run.data.metrics.get(PRIMARY_METRIC),
            "seconds": run.data.metrics.get("fit/seconds"),
        }
        for (key, seed), run in reversed(latest.items())
    )
    ends = {(row["terms"], row["method"]): row["target acc"] for row in frame.to_dict("records")}
    lower = [ends.get((terms, LOWER)) for terms in frame["terms"]]
    upper = [ends.get((terms, UPPER)) for terms in frame["terms"]]
    frame["gap closed"] = [
        (acc - low) / (high - low) if acc is not None and low is not None and high not in (None, low) else None
        for acc, low, high in zip(frame["target acc"], lower, upper, strict=True)
    ]
    return frame


def _configuration(run: Run) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in run.data.params.items() if key != "seed"))


def _terms(run: Run) -> tuple[tuple[str, str], ...]:
    """The settings that two runs must have in common for one to be the bound of the other."""
    shared = ("seed", "source", "target", "batch_size", "max_steps", "max_epochs", "backbone")
    terms = {k: v for k, v in run.data.params.items() if k in shared or k.startswith("backbone.")}
    return tuple(sorted((terms | {"data": run.data.tags.get("data", "")}).items()))


def _tell_apart(table: pd.DataFrame) -> None:
    """Adds to methods that occur several times in a pair the settings in which they differ."""
    for _, group in table.groupby(["pair", "method"]):
        if len(group) > 1:
            settings = list(group["settings"])
            keys = sorted({key for s in settings for key in s if len({other.get(key) for other in settings}) > 1})
            for index, own in zip(group.index, settings, strict=True):
                differing = ", ".join(f"{key}={own[key]}" for key in keys if key in own)
                if differing:
                    table.loc[index, "method"] += f" ({differing})"
