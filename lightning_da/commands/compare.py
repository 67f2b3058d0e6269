"""`lightning-da compare`: prints the runs of an experiment as a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_da.callbacks.label_free_scores import ANSWERS
from lightning_da.data.base import DOMAINS
from lightning_da.grids.tables import mean_and_spread, print_table, summary
from lightning_da.methods.masks import SCORES
from lightning_da.mlflow_view import PRIMARY_METRIC
from lightning_da.parser import CommandParser
from lightning_da.store import client, search_runs
from lightning_da.tracking import CLASS_SETS, EXPERIMENT, artifact_file, find_experiment, pair_of, params_of
from lightning_da.transferability.class_sets import FOREIGN, MANY
from lightning_da.transferability.earlier import Expected, Transfer, expected
from lightning_da.transferability.verdict import JUDGES, Answers, Verdict, judges_of, verdict

LOWER, UPPER = "source_only", "target_only"
"""The methods whose target accuracies define `gap closed` = 0 and `gap closed` = 1."""
FORMATS = {
    "source acc": ".3f",
    "target acc": ".3f",
    "published": ".3f",
    "target class acc": ".3f",
    "h-score": ".3f",
    "source rmse": ".3f",
    "target rmse": ".3f",
    "target r2": ".3f",
    "source dice": ".3f",
    "target dice": ".3f",
    "target jaccard": ".3f",
    "target sensitivity": ".3f",
    "gap closed": ".2f",
    "seconds": ".0f",
}
"""Numeric columns of the table, and their formats."""
OPTIONAL = (
    *("published", "target class acc", "h-score", "source rmse", "target rmse", "target r2"),
    *("source dice", "target dice", "target jaccard", "target sensitivity"),
)
"""Columns that are left out where they are empty."""
RESULTS = {"acc": "accuracy", "rmse": "root mean squared error", "dice": "Dice"}
"""What runs are compared by: of classes, numbers and masks."""
LABELS = {"acc": "classes", "rmse": "numbers", "dice": "masks"}
"""The labels whose predictions are compared so."""
ONE_NUMBER = ("published", "seconds")
"""Columns without a standard deviation."""
DISTANCE = "score/a_distance"
"""The metric that says how far apart the domains of a pair are."""
CLOSED_SET = "a method for equal classes moves target samples to wrong classes"
ADVICE = {
    "partial": "pada is for partial sets",
    "open": "the choice without target labels does not judge the answer `unknown`, and osbp is for open sets",
}
"""What a difference of the class sets means for the table, by the first word of the difference."""
CHANGED = (
    "the content of the data has changed between runs with the same settings, and figures of the table are of one or "
    "the other; run the older methods again, or give the new runs a --trainer.logger.experiment_name of their own"
)
MISSING = "it does not recognise them there, or the target lacks them: then set --data.class_sets partial"
UNEVEN = 1.5
"""Class accuracies are shown if the largest class of the target has more than so many times the mean size."""


def run(args: Sequence[str]) -> pd.DataFrame:
    """Prints and returns the table of an experiment.

    Args:
        args: The arguments after `compare`.
    """
    parser = CommandParser(
        "lightning-da compare",
        description="Print the tested runs of an experiment: mean and standard deviation over seeds.",
    )
    parser.add_argument("--experiment", default=EXPERIMENT, help="name of the experiment (default: %(default)s)")
    given = parser.parse_args(args)
    runs = tested_runs(find_experiment(given.experiment).experiment_id)
    if not runs:
        print("no tested runs: run `fit` and `test` first")
        return pd.DataFrame()
    return print_comparison(comparison(rows_of(runs)), runs)


def tested_runs(experiment_id: str) -> list[Run]:
    """The runs of an experiment with test results, the latest first."""
    return [
        run
        for run in search_runs(experiment_id, newest_first=True)
        if {f"test/{domain}/{score}" for domain in DOMAINS for score in RESULTS} & run.data.metrics.keys()
        and "method" in run.data.params
    ]


def print_comparison(table: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Prints a table for each pair with its verdict, and the signs of failure.

    Args:
        table: As from `comparison`.
        runs: The runs in the table, the latest first.

    Returns:
        The table without the columns `answers`, `data`, `runs` and `targets`.
    """
    for pair, group in table.groupby("pair", sort=False):
        print_table(f"{pair}, test split", as_text(group))
        if any(of_domains for found in group["targets"] for of_domains in found):
            print_table(f"{pair}, {heading_of_each(group)}", of_each_target(group))
        if (said := verdict_of(group)) is not None:
            print(describe(said))
            if (learned := learned_of(group, runs)) is not None:
                print(describe_learned(learned))
        if (result := _result_of(group)) != "acc":
            print(f"no choice without target labels: its score needs classes, and the labels are {LABELS[result]}")
        elif len(group) > 1 and LOWER in set(group["method"]) and not any(group["answers"]):
            print("no choice without target labels: the fits recorded no scores (too few validation samples?)")
    for warning in warnings_of(runs):
        print(f"\nwarning: {warning}")
    return table.drop(columns=["answers", "data", "runs", "targets"])


def comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: mean and standard deviation over seeds, without rounding.

    Args:
        frame: Rows of single runs, at least one, as from `rows_of`.

    Returns:
        The table. Its column `runs` has the ids of the runs of a row, `answers` what their networks answer, and
        `targets` their accuracies on each of several targets.
    """
    groups = frame.groupby(["pair", "configuration"], sort=False)
    means = summary(frame, ["pair", "configuration"], list(FORMATS))
    table = pd.DataFrame({"method": groups["method"].first(), "seeds": groups.size()}).reset_index()
    table["settings"] = pd.Series([dict(configuration) for configuration in table.pop("configuration")])
    for column in FORMATS:
        table[column], table[f"{column} std"] = means[column, "mean"].to_numpy(), means[column, "std"].to_numpy()
    table["answers"] = [[own for own in found if own is not None] for found in groups["answers"].agg(list)]
    table["data"] = groups["data"].first().to_numpy()
    table["targets"] = groups["targets"].agg(list).to_numpy()
    table["runs"] = groups["run"].agg(list).to_numpy()
    _tell_apart(table)
    return table


def as_text(group: pd.DataFrame) -> pd.DataFrame:
    """The rows of one pair as they are printed: method, seeds, and the columns of `FORMATS` that have values.

    Args:
        group: Rows of `comparison`.
    """
    text, result = group[["method", "seeds"]].copy(), _result_of(group)
    for column, form in FORMATS.items():
        optional = column in OPTIONAL or (result != "acc" and (column.endswith(" acc") or column == "gap closed"))
        if optional and group[column].isna().all():
            continue
        spreads = group[f"{column} std"] if column not in ONE_NUMBER else [float("nan")] * len(group)
        pairs = zip(group[column], spreads, strict=True)
        text[column] = [mean_and_spread(mean, spread, form) for mean, spread in pairs]
    return text


def heading_of_each(group: pd.DataFrame) -> str:
    """What `of_each_target` has for the rows of one pair."""
    return f"{RESULTS[_result_of(group)]} on each target"


def _result_of(group: pd.DataFrame) -> str:
    """What the runs of one pair are compared by: a key of `RESULTS`."""
    scored = (name for name in RESULTS if group[[f"{domain} {name}" for domain in DOMAINS]].notna().any(axis=None))
    return next(scored, "acc")


def _tasks(frame: pd.DataFrame) -> list[str]:
    """The pair of each row; with its labels, if a pair has runs on several kinds of labels."""
    kinds = [LABELS[_result_of(frame.iloc[[place]])] for place in range(len(frame))]
    number = pd.Series(kinds).groupby(frame["pair"].to_numpy()).nunique()
    return [pair if number[pair] == 1 else f"{pair} ({kind})" for pair, kind in zip(frame["pair"], kinds, strict=True)]


def of_each_target(group: pd.DataFrame) -> pd.DataFrame:
    """The result on each of several targets, mean and standard deviation over seeds, as text.

    Args:
        group: Rows of `comparison`, of one pair.
    """
    means = [pd.DataFrame(found).agg(["mean", "std"]) for found in group["targets"]]
    names = list(dict.fromkeys(name for own in means for name in own))
    text = group[["method", "seeds"]].copy()
    for name in names:
        cells = [own.get(name, pd.Series({"mean": float("nan"), "std": float("nan")})) for own in means]
        text[name] = [mean_and_spread(cell["mean"], cell["std"], ".3f") for cell in cells]
    return text


def verdict_of(group: pd.DataFrame) -> Verdict | None:
    """The choice among the methods of one pair without target labels.

    Args:
        group: Rows of `comparison`.

    Returns:
        None if there is no source-only to compare with, the answers are for different samples, or no score is there
        that all runs have. In an open set there is no estimate.
    """
    asked = group[group["answers"].map(bool)]
    runs = dict(zip(asked["method"], asked["answers"], strict=True))
    lower = [name for name in runs if name.split(" ")[0] == LOWER]
    samples = {
        (data, np.size(own.predicted))
        for data, found in zip(asked["data"], asked["answers"], strict=True)
        for own in found
    }
    judges = judges_of(own for found in runs.values() for own in found)
    if not lower or len(runs) == len(lower) or len(samples) > 1 or not judges:
        return None
    found = verdict(runs, lower)
    if any(str(own.get("class_sets")) == "open" for own in group["settings"]):  # no score sees the answer `unknown`
        return replace(found, estimate=None, low=None, high=None)
    return found


def describe(found: Verdict) -> str:
    """The verdict in words."""
    judges = ", ".join(found.judges)
    clear = f"clearly above {found.baseline} by {len(found.clear)} of {len(found.judges)}"
    if found.method != found.baseline:
        reason = f"best by the scores {judges}; {clear}"
    elif found.best == found.baseline:
        reason = f"best by the scores {judges}: adaptation does not seem to pay"
    else:
        reason = f"{found.best} is best by the scores {judges}, but {clear} only"
    text = f"chosen without target labels: {found.method} ({reason})"
    if found.seeds == 1:
        text += "; with one seed, differences between trainings are not known: give more --seeds"
    if found.estimate is None:
        return text
    return (
        f"{text}\nits target accuracy is about {found.estimate:.2f}, from {found.low:.2f} to {found.high:.2f}; this is "
        "estimated from its accuracy on the source and how often it agrees with the other methods, and too high where "
        "all methods err alike"
    )


def learned_of(group: pd.DataFrame, runs: Sequence[Run]) -> Expected | None:
    """What the earlier pairs of the store say about the methods of a pair, without target labels of the pair.

    Earlier pairs with a target of this pair, or with the same data, are left out: their labels are those of this pair.

    Args:
        group: Rows of `comparison`, of one pair.
        runs: The runs in the table.
    """
    own = {run_id for ids in group["runs"] for run_id in ids}
    here = [run for run in runs if run.info.run_id in own and not _reads_target_labels(run)]
    targets = {target for run in here for target in run.data.params.get("target", "").split("+")}
    distances = [run.data.metrics.get(DISTANCE) for run in here if run.data.params["method"] == LOWER]
    known = [distance for distance in distances if distance is not None]
    if not known:
        return None
    stored = [run for experiment in client().search_experiments() for run in tested_runs(experiment.experiment_id)]
    others = [
        run
        for run in stored
        if PRIMARY_METRIC in run.data.metrics
        and not _reads_target_labels(run)
        and not targets & set(run.data.params.get("target", "").split("+"))
        and run.data.tags.get("data") not in set(group["data"])
    ]
    methods = dict.fromkeys(run.data.params["method"] for run in here)
    return expected(earlier_transfers(others), float(np.mean(known)), [name for name in methods if name != LOWER])


def earlier_transfers(runs: Sequence[Run]) -> list[Transfer]:
    """The gains over source-only on each pair, the mean over the runs with equal data, network and length.

    Args:
        runs: Tested runs without target labels in training.
    """
    alike: dict[Any, dict[str, list[Run]]] = {}
    for run in runs:
        terms = tuple(term for term in _terms(run) if term[0] != "seed")
        alike.setdefault(terms, {}).setdefault(run.data.params["method"], []).append(run)
    found = []
    for methods in alike.values():
        lower = [run for run in methods.pop(LOWER, []) if DISTANCE in run.data.metrics]
        if lower and methods:
            distance = float(np.mean([run.data.metrics[DISTANCE] for run in lower]))
            accuracies = {
                name: np.mean([run.data.metrics[PRIMARY_METRIC] for run in own]) for name, own in methods.items()
            }
            bound = np.mean([run.data.metrics[PRIMARY_METRIC] for run in lower])
            gains = {name: float(accuracy - bound) for name, accuracy in accuracies.items()}
            found.append(Transfer(pair_of(lower[0].data.params), distance, gains))
    return found


def describe_learned(found: Expected) -> str:
    """What was learned from earlier pairs, in words."""
    gain = f"{found.gain:+.3f} over {LOWER}, give or take {found.error:.3f}"
    what = f"{found.method} is expected to gain {gain}"
    if found.gain <= 0:
        what = f"no method is expected to gain; the best is {found.method} with {gain}"
    return (
        f"learned from {found.number} earlier comparisons in this store: {what} (it gained {found.mean:+.3f} in the "
        f"mean, and on {found.better} of them)"
    )


def _reads_target_labels(run: Run) -> bool:
    return run.data.params.get("train_on", "source") != "source" or "oracle" in run.data.tags.get("selection", "")


def warnings_of(runs: Sequence[Run]) -> list[str]:
    """What to look at before the figures: data or class sets that differ, missing classes, and signs of failure.

    Args:
        runs: Runs, the latest first.
    """
    found = [f"{pair}: {CHANGED}" for pair in changed_data(runs)]
    sets = settings_of(runs).items()
    for differing, pairs in sets:
        advice = ADVICE["partial" if differing.startswith("partial") else "open"]
        found.append(f"{', '.join(pairs)}: classes differ, {differing}; {CLOSED_SET}; {advice}")
    found += [
        f"{pair}: {LOWER} hardly predicts {share:.0%} of the source's classes on the target; {MISSING}"
        for pair, share in class_signs(runs, "sets/missing", LOWER).items()
    ]
    found += [f"{pair}: {FOREIGN.format(share)}" for pair, share in class_signs(runs, "sets/foreign").items()]
    for sign, names in signs_of(runs).items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found.append(f"{', '.join(names[:3])}{more}: {sign}")
    return found


def changed_data(runs: Sequence[Run]) -> list[str]:
    """The pairs of runs with the same settings and seed that were fitted on data with another content."""
    contents: dict[tuple[Any, ...], set[str]] = {}
    for run in reversed(runs):
        key = (pair_of(run.data.params), run.data.params["seed"], configuration(run))
        contents.setdefault(key, set()).update(filter(None, [run.data.tags.get("data")]))
    return list(dict.fromkeys(pair for (pair, *_), digests in contents.items() if len(digests) > 1))


def signs_of(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The signs of failure that were recorded in training, each with the names of the runs that have it.

    Args:
        runs: Runs, the latest first.
    """
    having: dict[str, list[str]] = {}
    for run in reversed(runs):
        for sign in filter(None, run.data.tags.get("warnings", "").split("\n")):
            having.setdefault(sign, []).append(str(run.info.run_name))
    return having


def settings_of(runs: Sequence[Run]) -> dict[str, list[str]]:
    """How the class sets of a pair differ, each with the pairs.

    Args:
        runs: Runs, the latest first.
    """
    found: dict[str, dict[str, None]] = {}
    for run in reversed(runs):
        if differing := run.data.tags.get(CLASS_SETS):
            found.setdefault(differing, {})[pair_of(run.data.params)] = None
    return {differing: list(pairs) for differing, pairs in found.items()}


def class_signs(runs: Sequence[Run], metric: str, method: str | None = None) -> dict[str, float]:
    """The mean of a sign that the domains have different classes, of pairs where it is large.

    Args:
        runs: Runs, the latest first.
        metric: Name of the sign.
        method: The method whose runs show it; None: those of all methods do.
    """
    found: dict[str, list[float]] = {}
    for run in runs:
        share = run.data.metrics.get(metric)
        if method in (None, run.data.params["method"]) and CLASS_SETS not in run.data.tags and share is not None:
            found.setdefault(pair_of(run.data.params), []).append(share)
    means = {pair: float(np.mean(shares)) for pair, shares in found.items()}
    return {pair: share for pair, share in means.items() if share > MANY}


def _gap(result: float | None, lower: float | None, upper: float | None, is_error: bool) -> float | None:
    """The share of the gap that a result closes; None if a number is not there, or there is no gap."""
    if result is None or lower is None or upper is None or (upper >= lower if is_error else upper <= lower):
        return None
    return (result - lower) / (upper - lower) + 0.0


def rows_of(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per configuration and seed: method, pair of domains and results.

    If several runs have the same configuration and seed, the latest is used. Runs of one pair on classes, on numbers
    and on masks are of several tasks, and `pair` says which. The gap closed is (acc - source-only) /
    (target-only - source-only) on the target, from runs with the same data, seed, backbone, batch size and length;
    there is none unless target-only is the better of the two. A target-only of few labels (`target_labels`) is no
    bound. In a regression acc is the root mean squared error, in a segmentation Dice.

    Args:
        runs: Tested runs, the latest first.
    """
    latest: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        latest.setdefault((configuration(run), run.data.params["seed"]), run)
    frame = pd.DataFrame(
        {
            "configuration": key,
            "seed": seed,
            "terms": _terms(run),
            "few labels": run.data.params.get("target_labels", "None") != "None",
            "method": run.data.params["method"]
            + (" (oracle)" if "oracle" in run.data.tags.get("selection", "") else ""),
            "pair": pair_of(run.data.params),
            "source acc": run.data.metrics.get("test/source/acc"),
            "target acc": run.data.metrics.get(PRIMARY_METRIC),
            "published": float(run.data.params.get("published", "nan")),
            "target class acc": run.data.metrics.get("test/target/class_acc") if _uneven(run) else None,
            "h-score": run.data.metrics.get("test/target/h_score"),
            "source rmse": run.data.metrics.get("test/source/rmse"),
            "target rmse": run.data.metrics.get("test/target/rmse"),
            "target r2": run.data.metrics.get("test/target/r2"),
            "source dice": run.data.metrics.get("test/source/dice"),
            **{f"target {name}": run.data.metrics.get(f"test/target/{name}") for name in SCORES},
            "seconds": run.data.metrics.get("fit/seconds"),
            "targets": _of_domains(run.data.metrics),
            "answers": answers_of(run),
            "data": run.data.tags.get("data"),
            "run": run.info.run_id,
        }
        for (key, seed), run in reversed(latest.items())
    )
    frame["pair"] = _tasks(frame)
    bounds = frame[(frame["method"] != UPPER) | ~frame.pop("few labels")]
    measured = frame[[f"target {name}" for name in RESULTS]].astype(float).bfill(axis=1).iloc[:, 0]
    bounds = bounds.assign(measured=measured)
    ends = {(row["terms"], row["method"]): row["measured"] for row in bounds.to_dict("records")}
    lower = [ends.get((terms, LOWER)) for terms in frame["terms"]]
    upper = [ends.get((terms, UPPER)) for terms in frame["terms"]]
    errors = frame["target rmse"].notna()
    frame["gap closed"] = [_gap(*row) for row in zip(measured, lower, upper, errors, strict=True)]
    return frame


def answers_of(run: Run) -> Answers | None:
    """What the network answers for the target's sample; None if it has read target labels, or has not been asked."""
    scores = {name: run.data.metrics[f"score/{name}"] for name in JUDGES if f"score/{name}" in run.data.metrics}
    if _reads_target_labels(run) or not scores:
        return None
    try:
        given = json.loads(artifact_file(run, ANSWERS).read_text())
    except (OSError, MlflowException):
        return None
    return Answers(given["predicted"], scores, run.data.metrics.get("test/source/acc", 1.0))


def _of_domains(metrics: Mapping[str, float]) -> dict[str, float]:
    """The result (see `RESULTS`) on each of several targets, by their names in metrics.

    It is empty if there is one target.
    """
    parts = {tuple(key.split("/")): value for key, value in metrics.items() if key.startswith("test/target/")}
    return {key[2]: value for key, value in parts.items() if len(key) == 4 and key[3] in RESULTS}


def _uneven(run: Run) -> bool:
    return bool(run.data.metrics.get("test/target/imbalance", 1) > UNEVEN)


def configuration(run: Run) -> tuple[tuple[str, str], ...]:
    """The settings of a run, which are those of its other seeds."""
    return tuple(sorted((key, value) for key, value in params_of(run).items() if key != "seed"))


def _terms(run: Run) -> tuple[tuple[str, str], ...]:
    """The settings that must be equal if one run is the lower or upper bound of another."""
    shared = ("seed", "source", "target", "batch_size", "max_steps", "max_epochs", "backbone", "bottleneck",
              "standardize", "precision")  # fmt: skip
    terms = {k: v for k, v in params_of(run).items() if k in shared or k.startswith(("backbone.", "bottleneck."))}
    if (weights := run.data.params.get("source_weights", "size")) != "size":  # older runs do not have it
        terms["source_weights"] = weights
    return tuple(sorted((terms | {"data": run.data.tags.get("data", "")}).items()))


def _tell_apart(table: pd.DataFrame) -> None:
    """Adds the differing settings to the names of methods that occur several times for a pair of domains."""
    for _, group in table.groupby(["pair", "method"]):
        if len(group) > 1:
            settings = list(group["settings"])
            keys = sorted({key for s in settings for key in s if len({other.get(key) for other in settings}) > 1})
            for index, own in zip(group.index, settings, strict=True):
                differing = ", ".join(f"{key}={own[key]}" for key in keys if key in own)
                if differing:
                    table.loc[index, "method"] += f" ({differing})"
