"""`lightning-da register`: puts the model of a run into MLflow's registry."""

from collections.abc import Sequence
from shlex import quote
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_da.callbacks.log_model import NO_MODEL
from lightning_da.commands.compare import (
    as_text,
    comparison,
    configuration,
    describe,
    rows_of,
    tested_runs,
    verdict_of,
)
from lightning_da.errors import ConfigError, one_line
from lightning_da.logged_models import models_of
from lightning_da.names import short_name
from lightning_da.parser import CommandParser
from lightning_da.store import by_name, client, shown_uri, tracking_uri
from lightning_da.tracking import find_fit, find_run
from lightning_da.transferability.verdict import mean_ranks


def run(args: Sequence[str]) -> Any:
    """Registers the model of a fit, or of the fit of a grid that is chosen without target labels.

    Args:
        args: The arguments after `register`.

    Returns:
        The version of the registered model.

    Raises:
        ConfigError: If the run has no model or is not tested, or the name or the alias is not allowed.
    """
    parser = CommandParser(
        "lightning-da register",
        description="Put the model of a run into the registry, with the row of `lightning-da compare` as tags. Of a "
        "sweep, it is the model of the method that is chosen without target labels; of its seeds, the one with the "
        "highest score.",
    )
    parser.add_argument("run", metavar="RUN", help="checkpoint file, run id or run name of a fit or of a sweep")
    parser.add_argument("--alias", help="alias of the version, for example champion; it leaves the earlier version")
    parser.add_argument("--name", help="name of the registered model (default: the pair of domains)")
    given = parser.parse_args(args)
    named = find_run(given.run)
    if named is not None and "grid" in named.data.tags:
        fit, row, reason = _chosen(named)
    else:
        fit, row = _single(given.run)
        reason = fit.data.tags.get("selection", "")
    models = models_of(client(), fit)
    if not models:
        why = fit.data.tags.get(NO_MODEL, "it was fitted without LogModel among the callbacks")
        raise ConfigError(f"run {fit.info.run_name!r} has no model: {why}")
    model_id = models[0].model_id
    name = given.name or "-".join(map(short_name, row["pair"].split(" -> "))).replace("/", "-").replace(":", "-")
    tags = {str(key): str(value) for key, value in row.items()} | {"seed": fit.data.params["seed"], "chosen": reason}
    try:
        version, is_new = _version(name, model_id, tags)
        if given.alias is not None:
            try:
                client().set_registered_model_alias(name, given.alias, version.version)
            except MlflowException:
                if is_new:
                    client().delete_model_version(name, version.version)
                    if not client().search_model_versions(by_name("name", name)):
                        client().delete_registered_model(name)
                raise
    except MlflowException as error:
        raise ConfigError(f"register: MLflow refuses it ({one_line(error)}); give another --name or --alias") from error
    place = f"models:/{name}{f'@{given.alias}' if given.alias is not None else f'/{version.version}'}"
    print(f"version {version.version} of {name}: the model of {fit.info.run_name} ({reason})")
    serve = f"mlflow models serve --model-uri {quote(place)} --env-manager local --port 5001"
    print(f"MLFLOW_TRACKING_URI={quote(shown_uri())} {serve}")
    return version


def _single(reference: str) -> tuple[Run, pd.Series]:
    """A fit, and its row in the table of its experiment, which has other seeds with the same settings too."""
    fit = find_fit(reference)
    if fit.run_id is None:
        raise ConfigError(f"the run of {reference!r} is not in this MLflow store, and so is its model")
    found = client().get_run(fit.run_id)
    tested = tested_runs(found.info.experiment_id)
    if all(run.info.run_id != fit.run_id for run in tested):
        raise ConfigError(
            f"run {reference!r} is not tested; run `lightning-da test --ckpt_path {quote(reference)}` first"
        )
    table = comparison(rows_of([found, *tested]))  # of runs with the same settings and seed, the first counts
    return found, _row(table[table["runs"].map(lambda runs: fit.run_id in runs)])


def _chosen(grid: Run) -> tuple[Run, pd.Series, str]:
    """The fit of a grid that is chosen without target labels, its row in the table, and the reason."""
    runs = [
        found
        for found in tested_runs(grid.info.experiment_id)
        if found.data.tags.get("mlflow.parentRunId") == grid.info.run_id
    ]
    table = comparison(rows_of(runs)) if runs else pd.DataFrame()
    found = verdict_of(table) if runs and table["pair"].nunique() == 1 else None
    if found is None:
        raise ConfigError(
            f"run {grid.info.run_name!r}: its runs do not tell which one to choose without target labels, for which "
            "source_only and another method of one pair, and labels that are classes, are needed; name the run of a fit"
        )
    row = table[table["method"] == found.method]
    settings = row["settings"].iloc[0]
    judges = [f"score/{name}" for name in found.judges]
    seeds = [own for own in runs if dict(configuration(own)) == settings and own.data.metrics.keys() >= set(judges)]
    scores = [[own.data.metrics[name] for name in judges] for own in seeds]
    return seeds[mean_ranks(scores).argmax()], _row(row), describe(found).partition("\n")[0]


def _row(rows: pd.DataFrame) -> pd.Series:
    """The first row of the table of `compare`, as it is printed."""
    return as_text(rows).assign(pair=rows["pair"]).iloc[0]


def _version(name: str, model_id: str, tags: dict[str, str]) -> tuple[Any, bool]:
    """The version of a registered model, and whether it is new; a model that is registered already keeps its own."""
    source = f"models:/{model_id}"
    there = [found for found in client().search_model_versions(by_name("name", name)) if found.source == source]
    if not there:
        mlflow.set_tracking_uri(tracking_uri())  # the registry of an sqlite store looks for the model there
        return mlflow.register_model(source, name, tags=tags), True
    for key, value in tags.items():
        client().set_model_version_tag(name, there[0].version, key, value)
    return there[0], False
