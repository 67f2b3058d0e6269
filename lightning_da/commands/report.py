"""`lightning-da report`: one HTML page about an experiment, to send to somebody."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from PIL import Image

from lightning_da.commands.compare import (
    RESULTS,
    as_text,
    comparison,
    describe,
    heading_of_each,
    of_each_target,
    rows_of,
    tested_runs,
    verdict_of,
    warnings_of,
)
from lightning_da.errors import ConfigError
from lightning_da.pages import picture, render, svg
from lightning_da.parser import CommandParser
from lightning_da.paths import check_output, write_whole
from lightning_da.store import client, search_runs
from lightning_da.tracking import artifact_file, find_experiment

LARGEST = 2_900_000
"""Size of the page in bytes that no figure may exceed."""
DRAWN = 8
"""Rows of a table in one figure of curves, the best ones."""
POINTS = 40
"""Points of a curve over training."""
OVER_TIME = (
    *("val/target/acc", "val/source/acc", "val/target/rmse", "val/source/rmse"),
    *("val/target/dice", "val/source/dice"),
    *("train/task_loss", "train/domain_loss", "score/neighbours"),
)
PICTURES = {"confusion.png": "Confusion matrix", "embedding.png": "Embedding", "masks.png": "Masks"}
"""The pictures of a run's test, and what they are."""
WIDTH = 1000
"""Largest width of a picture in pixels."""
LABEL = 40
"""Largest length of a name in a legend."""
PAGE_START = "<!doctype html>"
"""How a page begins."""


def run(args: Sequence[str]) -> Path:
    """Writes the page.

    Args:
        args: The arguments after `report`.

    Returns:
        The file.

    Raises:
        ConfigError: If there is no such experiment, it has no tested run, or the file cannot be written.
    """
    parser = CommandParser(
        "lightning-da report",
        description="Write one HTML page about the tested runs of an experiment: the table over seeds, the verdict, "
        "curves, confusion matrices, embeddings, and the settings that differ. It needs no network and no script, is "
        "smaller than 3 MB, and replaces an earlier page.",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of the experiment")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="file to write (default: %(default)s)"
    )
    given = parser.parse_args(args)
    check_output("out", given.out, [".html", ".htm"], PAGE_START)
    experiment = find_experiment(given.experiment)
    runs = tested_runs(experiment.experiment_id)
    if not runs:
        raise ConfigError(f"experiment {experiment.name!r} has no tested runs: run `fit` and `test` first, or `sweep`")
    with rc_context({"text.parse_math": False}):  # a name may have dollar signs
        page = page_of(experiment.name, runs, len(search_runs(experiment.experiment_id)))
    with write_whole(given.out) as part:
        part.write_text(page, encoding="utf-8")
    print(f"{given.out}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser, or send it")
    return Path(given.out)


def page_of(name: str, runs: Sequence[Run], number: int) -> str:
    """The HTML text about the tested runs of an experiment.

    Args:
        name: Name of the experiment.
        runs: Its tested runs, the latest first.
        number: Number of all its runs.
    """
    table = comparison(rows_of(runs))
    by_id = {run.info.run_id: run for run in runs}
    groups = [group for _, group in table.groupby("pair", sort=False)]
    pairs = [_described(group) for group in groups]
    values: dict[str, Any] = {
        "title": name,
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "shown": (shown := int(table["seeds"].sum())),
        "repeated": len(runs) - shown,
        "untested": number - len(runs),
        "pairs": pairs,
        "left_out": 0,
        "warnings": warnings_of(runs),
    }
    room = LARGEST - len(render("report.html.jinja", **values).encode())

    def add(place: list[Any], figure: object) -> None:
        """Adds a figure to a list of the page if there is one, and room for it."""
        nonlocal room
        if figure is None:
            return
        if (size := len(str(figure).encode())) > room:
            values["left_out"] += 1
        else:
            place.append(figure)
            room -= size

    for pair, group in zip(pairs, groups, strict=True):
        success = group["target acc"].fillna(group["target dice"]).fillna(-group["target rmse"]).fillna(-np.inf)
        best = group.loc[success.nlargest(DRAWN).index.sort_values()]
        names = list(best["method"])
        for title, curves in _over_depth(best, by_id).groupby("title", sort=False):
            add(pair["depth"], _drawn(curves, names, str(title)))
        for metric in OVER_TIME:
            add(pair["time"], _drawn(_over_time(best, metric), names, metric))
    for pair, group in zip(pairs, groups, strict=True):
        for row in group.to_dict("records"):
            if files := _files(by_id[_median_run(row["runs"], by_id)]):
                add(pair["pictures"], _pictures(str(row["method"]), files))
    return render("report.html.jinja", **values)


def _described(group: pd.DataFrame) -> dict[str, Any]:
    """What the page says of a pair in words and numbers, with empty lists for its figures."""
    text, said = as_text(group), verdict_of(group)
    settings = list(group["settings"])
    keys = sorted({key for own in settings for key in own} - {"method"})
    differing = [key for key in keys if len({own.get(key) for own in settings}) > 1]
    return {
        "name": group["pair"].iloc[0],
        "columns": list(text.columns),
        "rows": text.to_numpy().tolist(),
        "heading_of_each": heading_of_each(group),
        "each": of_each_target(group) if any(map(any, group["targets"])) else None,
        "drawn": min(DRAWN, len(group)),
        "verdict": "" if said is None else describe(said),
        "differing": [
            (name, ", ".join(f"{key}={own[key]}" for key in differing if own.get(key, "None") != "None"))
            for name, own in zip(group["method"], settings, strict=True)
            if differing
        ],
        "same": ", ".join(f"{key}={settings[0][key]}" for key in keys if key not in differing),
        "depth": [],
        "time": [],
        "pictures": [],
    }


def _over_depth(group: pd.DataFrame, by_id: dict[str, Run]) -> pd.DataFrame:
    """The curves of the trained networks, means over seeds: `title`, `name`, `x` (the layer) and `value`."""
    parts = []
    for name, runs in group[["method", "runs"]].itertuples(index=False):
        for run in runs:
            try:
                table = pd.read_csv(artifact_file(by_id[run], "curve/curve.csv"))
            except (OSError, MlflowException):  # a fit without curves
                continue
            parts.append(table[table["network"] == table["network"].iloc[-1]].assign(name=name))
    if not parts:
        return pd.DataFrame({"title": []})
    rows = pd.concat(parts).dropna(subset="value").rename(columns={"layer": "x"})
    several = rows.groupby("panel")["measure"].transform("nunique") > 1
    rows["title"] = rows["panel"].mask(several, rows["panel"] + ": " + rows["measure"])
    means: pd.DataFrame = rows.groupby(["title", "name", "x"], sort=False)[["depth", "value"]].mean().reset_index()
    return means.sort_values("depth", kind="stable")


def _over_time(group: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric over the steps, the mean over seeds: `name`, `x` (the step) and `value`."""
    points = [
        (name, point.step, point.value)
        for name, runs in group[["method", "runs"]].itertuples(index=False)
        for run in runs
        for point in client().get_metric_history(run, metric)
    ]
    frame = pd.DataFrame(points, columns=["name", "x", "value"])
    frame = frame[np.isfinite(frame["value"].astype(float))]
    return frame.groupby(["name", "x"])["value"].mean().reset_index()


def _drawn(curves: pd.DataFrame, names: Sequence[str], title: str) -> Markup | None:
    """The curves as an element of the page; None if there are none."""
    return None if curves.empty else svg(_lines(curves, names, title), title)


def _lines(curves: pd.DataFrame, names: Sequence[str], title: str) -> Figure:
    """A line for each of the names, in the same colours whatever is missing."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    places = list(dict.fromkeys(curves["x"]))
    if layers := isinstance(places[0], str):
        axes.set_xticks(range(len(places)), places, rotation=0 if len(places) < 8 else 90)
    for colour, name in enumerate(names):
        own = curves[curves["name"] == name]
        kept = own.iloc[np.unique(np.linspace(0, len(own) - 1, POINTS).astype(int))] if len(own) else own
        x = [places.index(layer) for layer in kept["x"]] if layers else kept["x"]
        axes.plot(x, kept["value"], "-o", color=f"C{colour}", ms=3, lw=1.5, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("" if layers else "step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, [_short(label) for label in labels], fontsize=6.5, framealpha=0.5, edgecolor="none")
    return figure


def _short(name: str) -> str:
    """A name that fits into a legend; its row in the table has the whole one."""
    return name if len(name) <= LABEL else f"{name[: LABEL // 2]}…{name[-LABEL // 2 + 1 :]}"


def _median_run(runs: Sequence[str], by_id: dict[str, Run]) -> str:
    """The run with the median result on the target: the accuracy, Dice, or the error of a regression."""

    def result(run: str) -> float:
        metrics = by_id[run].data.metrics
        return next((metrics[key] for name in RESULTS if (key := f"test/target/{name}") in metrics), 0.0)

    ordered = sorted(runs, key=result)
    return ordered[(len(ordered) - 1) // 2]


def _files(run: Run) -> list[Path]:
    """The pictures of a run's test."""
    there = {artifact.path for artifact in client().list_artifacts(run.info.run_id)}
    return [artifact_file(run, name) for name in PICTURES if name in there]


def _pictures(name: str, files: Sequence[Path]) -> dict[str, Any] | None:
    """The pictures of a row; None if one cannot be read."""
    try:
        return {"name": name, "images": [(PICTURES[file.name], picture(file, WIDTH)) for file in files]}
    except (OSError, Image.DecompressionBombError):
        return None
