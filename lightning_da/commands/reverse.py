"""`lightning-da reverse`: reverse validation of earlier runs, a score without target labels."""

import argparse
import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run

from lightning_da.cli import TransferCLI
from lightning_da.commands.compare import tested_runs
from lightning_da.data.base import SPLITS
from lightning_da.errors import ConfigError
from lightning_da.grids.engine import Cell, Grid, Result, add_fit, digest, run_grid
from lightning_da.grids.pool import add_options, workers_of
from lightning_da.grids.tables import print_table
from lightning_da.parser import CommandParser
from lightning_da.store import client, store_folder
from lightning_da.tracking import Fit, find_experiment, find_fit

EXPERIMENT = "reverse"
SCORE = "score/reverse"


def run(args: Sequence[str]) -> pd.DataFrame:
    """Trains the reverse of each run, logs its accuracy as a score of the run, and returns the table.

    Args:
        args: The arguments after `reverse`.

    Raises:
        ConfigError: If a run has no checkpoint or reads target labels, or a training failed.
    """
    given = _parser().parse_args(args)
    workers = workers_of(given)
    fits = [find_fit(run) for run in given.runs]
    if given.experiment is not None:
        fits += [find_fit(run.info.run_id) for run in _runs_in(given.experiment)]
    if not fits:
        if given.experiment is not None:
            raise ConfigError(f"experiment {given.experiment!r} has no tested run without target labels")
        raise ConfigError("give the runs to score, or --experiment NAME for all tested runs of an experiment")
    cells: dict[str, Cell] = {}
    scored: list[tuple[str, str]] = []
    first: TransferCLI | None = None
    for fit in {fit.checkpoint: fit for fit in fits}.values():
        if fit.run_id is None or fit.config is None:
            raise ConfigError(
                f"{fit.checkpoint}: its run is not in this MLflow store, so there is no place for a score"
            )
        name = str(client().get_run(fit.run_id).info.run_name)
        cli = TransferCLI("fit", _reversed(fit, name))
        first = first or cli
        cell = add_fit(cells, cli, cli.config.seed_everything, {"reverse of": fit.run_id, "weights": _weights(fit)})
        cells[cell.key] = replace(cell, name=f"{name}-reverse")
        scored.append((fit.run_id, _weights(fit)))
    assert first is not None
    first.build()
    grid = Grid(
        EXPERIMENT,
        first.plain(),
        digest({"model": None, "data": None, "trainer": {}}, EXPERIMENT),
        list(cells.values()),
        partial(_report, scored),
    )
    return run_grid(grid, first, workers)


def _runs_in(experiment: str) -> list[Run]:
    """The tested runs of an experiment that have read no target labels."""
    return [
        run
        for run in tested_runs(find_experiment(experiment).experiment_id)
        if run.data.params.get("train_on") == "source" and "checkpoint" in run.data.tags
    ]


def _reversed(fit: Fit, name: str) -> dict[str, Any]:
    """The configuration of a run with its domains reversed; the target's labels are predicted first."""
    assert fit.run_id is not None
    labels = store_folder() / "reverse" / f"{fit.run_id}-{_weights(fit)}.csv"
    cli = TransferCLI("predict", ["--ckpt_path", fit.run_id])
    config = cli.plain()
    data = config["data"]
    if config["model"]["init_args"].get("train_on") != "source" or data["init_args"].get("target_labels") is not None:
        raise ConfigError(f"run {name!r} has read target labels; reverse validation is for methods without them")
    if not labels.is_file():
        _predict(cli, labels)
    reverse = {"class_path": "lightning_da.data.Reversed", "init_args": {"data": data, "labels": str(labels)}}
    again: dict[str, Any] = copy.deepcopy(config)
    again |= {"ckpt_path": None, "data": reverse}
    again["trainer"] |= {"callbacks": [], "enable_progress_bar": False}
    again["trainer"]["logger"]["init_args"] |= {"experiment_name": EXPERIMENT, "run_name": None, "run_id": None}
    return again


def _weights(fit: Fit) -> str:
    """A digest of the checkpoint: a fit that goes on has another."""
    return hashlib.sha256(Path(fit.checkpoint).read_bytes()).hexdigest()[:8]


def _predict(cli: TransferCLI, path: Path) -> None:
    """Writes the predicted classes of all target samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cli.config.trainer.logger = False
    cli.config.predictions.path = str(path)
    cli.build()
    cli.datamodule.check_has_classes("reverse")
    cli.datamodule.predicted = SPLITS
    cli.run()


def _report(scored: Sequence[tuple[str, str]], results: Sequence[Result], parent: str) -> pd.DataFrame:
    """Logs the score of each run, and prints them."""
    rows = []
    for result in results:
        run_id, weights = result.factors["reverse of"], result.factors["weights"]
        if (run_id, weights) in scored:
            score = result.metrics["test/target/acc"]
            run = client().get_run(run_id)
            if run.data.metrics.get(SCORE) != score:
                client().log_metric(run_id, SCORE, score)
            rows.append({"run": run.info.run_name, SCORE: score, "seconds": result.seconds})
    table = pd.DataFrame(rows).sort_values(SCORE, ascending=False, ignore_index=True)
    print_table(
        "accuracy on the source of a network that was trained on the target with predicted labels",
        table.assign(**{SCORE: table[SCORE].map("{:.3f}".format), "seconds": table["seconds"].map("{:.0f}".format)}),
    )
    client().log_text(parent, table.to_csv(index=False), "reverse.csv")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "lightning-da reverse",
        description="Reverse validation (Zhong et al., ECML 2010; Ganin et al., JMLR 2016, section 5.1.2). The target "
        "gets the labels that a run predicts, and the same method is trained back, from the target to the source. Its "
        "accuracy on the source is a score of the run, which reads no target labels: score/reverse. After an "
        "interruption, the same command runs only the unfinished trainings.",
        usage="lightning-da reverse RUN [RUN ...]\n       lightning-da reverse --experiment NAME",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="checkpoint file, run id or run name")
    parser.add_argument("--experiment", metavar="NAME", help="all tested runs of an experiment without target labels")
    add_options(parser)
    return parser
