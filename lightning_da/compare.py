"""The runs of an experiment as a table."""

import argparse
from collections.abc import Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run

from lightning_da.tracking import EXPERIMENT, PRIMARY_METRIC, TrackingError, client, search_runs, tracking_uri

LOWER, UPPER = "source_only", "target_only"
"""The methods whose accuracies on the target are 0 and 1 on the scale of `gap closed`."""


def compare(args: Sequence[str]) -> pd.DataFrame:
    """`lightning-da compare`: prints and returns the table of an experiment."""
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
    return table(tested_runs(experiment.experiment_id))


def tested_runs(experiment_id: str) -> list[Run]:
    """The runs of an experiment that have test results, the latest first."""
    return [
        run
        for run in search_runs(experiment_id, newest_first=True)
        if {"test/source/acc", PRIMARY_METRIC} & run.data.metrics.keys() and "method" in run.data.params
    ]


def table(runs: list[Run]) -> pd.DataFrame:
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
    rows = []
    for (pair, _), group in frame.groupby(["pair", "configuration"], sort=False):
        row: dict[str, Any] = {"pair": pair, "method": group["method"].iloc[0], "seeds": len(group)}
        row["settings"] = dict(group["configuration"].iloc[0])
        for column in ("source acc", "target acc", "gap closed", "seconds"):
            values = pd.to_numeric(group[column])
            row[column], row[f"{column} std"] = values.mean(), values.std()
        rows.append(row)
    summary = pd.DataFrame(rows)
    _tell_apart(summary)
    _print(summary)
    return summary


def _configuration(run: Run) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in run.data.params.items() if key != "seed"))


def _terms(run: Run) -> tuple[tuple[str, str], ...]:
    """What two runs must have in common for one to be the bound of the other."""
    shared = ("seed", "source", "target", "batch_size", "max_steps", "max_epochs", "backbone")
    terms = {k: v for k, v in run.data.params.items() if k in shared or k.startswith("backbone.")}
    return tuple(sorted((terms | {"data": run.data.tags.get("data", "")}).items()))


def _tell_apart(summary: pd.DataFrame) -> None:
    """Adds to methods that occur several times in a pair the settings in which they differ."""
    for _, group in summary.groupby(["pair", "method"]):
        if len(group) > 1:
            settings = list(group["settings"])
            keys = sorted({key for s in settings for key in s if len({other.get(key) for other in settings}) > 1})
            for index, own in zip(group.index, settings, strict=True):
                differing = ", ".join(f"{key}={own[key]}" for key in keys if key in own)
                if differing:
                    summary.loc[index, "method"] += f" ({differing})"


def _print(summary: pd.DataFrame) -> None:
    header = ("method", "seeds", "source acc", "target acc", "gap closed", "seconds")
    for pair, group in summary.groupby("pair", sort=False):
        lines: list[tuple[str, ...]] = [header]
        for row in group.to_dict("records"):
            cells = [f"{row['method']}", f"{row['seeds']}"]
            for column, form in (
                ("source acc", ".3f"),
                ("target acc", ".3f"),
                ("gap closed", ".2f"),
                ("seconds", ".0f"),
            ):
                cells.append(_number(row[column], row[f"{column} std"], form))
            lines.append(tuple(cells))
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        print(f"\n{pair}, test split")
        for place, line in enumerate(lines):
            print(
                "  ".join(
                    c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
                )
            )
            if place == 0:
                print("-" * (sum(widths) + 2 * (len(widths) - 1)))


def _number(mean: float, deviation: float, form: str) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:{form}}" + ("" if pd.isna(deviation) or form == ".0f" else f" ± {deviation:{form}}")
