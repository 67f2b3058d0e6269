"""MLflow: the store of the runs, the parameters of a run, and how a run is found again."""

import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import mlflow
import torch
from filelock import FileLock
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_da.errors import ConfigError
from lightning_da.paths import PROJECT

EXPERIMENT = "lightning_da"
PRIMARY_METRIC = "test/target/acc"


class TrackingError(ConfigError):
    """A run or checkpoint that cannot be found; the message says what was looked for and where."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the sqlite store in the project's `mlruns` folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{PROJECT / 'mlruns' / 'mlflow.db'}"


@cache
def _client(uri: str) -> mlflow.MlflowClient:
    if not uri.startswith("sqlite:///"):
        return mlflow.MlflowClient(uri)
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # two processes must not make the same tables
        made = mlflow.MlflowClient(uri)
        made.search_experiments(max_results=1)
        return made


def client() -> mlflow.MlflowClient:
    """A client of the store that runs land in; an sqlite store is made where there is none."""
    return _client(tracking_uri())


def search_runs(experiment_id: str, wanted: str = "", newest_first: bool = False) -> list[Run]:
    """All runs of an experiment, or those that fit an MLflow filter, in the order of their start."""
    runs: list[Run] = []
    order, token = [f"start_time {'DESC' if newest_first else 'ASC'}"], None
    while True:
        page = client().search_runs([experiment_id], wanted, order_by=order, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


class Tracker(MLFlowLogger):
    """MLflow's logger, at `tracking_uri()`; the artifacts of an sqlite store lie beside the database.

    Args:
        experiment_name: The experiment that runs are compared in.
        run_name: Name of the run; the command line makes one of method, domains and seed.
        run_id: The run to join, instead of starting one.
        synchronous: Whether each call of MLflow waits until it is written.
        tags: Tags of the run; `mlflow.parentRunId` puts it below another.
    """

    def __init__(
        self,
        experiment_name: str = EXPERIMENT,
        run_name: str | None = None,
        run_id: str | None = None,
        synchronous: bool = True,
        tags: dict[str, str] | None = None,
    ) -> None:
        uri, artifacts = tracking_uri(), None
        if uri.startswith("sqlite:///"):
            artifacts = (
                (Path(uri.removeprefix("sqlite:///")).parent / "artifacts" / experiment_name).absolute().as_uri()
            )
        tracked = client()
        if tracked.get_experiment_by_name(experiment_name) is None:
            # Another process may make it first.
            try:
                made = tracked.create_experiment(experiment_name, artifact_location=artifacts)
                tracked.set_experiment_tag(made, "mlflow.experiment.primaryMetric.name", PRIMARY_METRIC)
            except MlflowException:
                if tracked.get_experiment_by_name(experiment_name) is None:
                    raise
        super().__init__(experiment_name, run_name, uri, tags, run_id=run_id, synchronous=synchronous)
        self._joined = run_id is not None

    def name_run(self, name: str) -> None:
        """Names the run to come, if it has no name yet."""
        self._run_name = self._run_name or name

    def finalize(self, status: str = "success") -> None:
        # a test that fails does not make the fit that it joined a failure
        if not (self._joined and status == "failed"):
            super().finalize(status)


def chosen_checkpoint(trainer: Trainer) -> str:
    """The file that a fit ends with: the best by the monitored metric if there is one, else the last."""
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, ModelCheckpoint):
        return ""
    return checkpoint.best_model_path or checkpoint.last_model_path


def is_local(uri: str) -> bool:
    """Whether the artifacts of a run lie in a folder of this machine."""
    return urlparse(uri).scheme in ("", "file")


def artifacts_folder(logger: Tracker) -> Path:
    """The local folder of a run's artifacts: the store's own, or one to upload from."""
    run = logger.experiment.get_run(logger.run_id)
    return (
        artifact_file(run, "")
        if is_local(run.info.artifact_uri)
        else PROJECT / "mlruns" / "upload" / str(logger.run_id)
    )


def parameters(config: dict[str, Any], parts: tuple[str, ...] = ("model", "data")) -> dict[str, str]:
    """What of a configuration is recorded as parameters, with short names and values as typed.

    A class in the configuration is recorded by its name (`backbone: LeNet`), its arguments below it
    (`backbone.batch_norm: True`).

    Args:
        config: The configuration of a fit, as written to YAML.
        parts: Whose arguments are wanted.
    """
    trainer = (
        "max_steps",
        "max_epochs",
        "precision",
        "devices",
        "strategy",
        "accumulate_grad_batches",
        "gradient_clip_val",
    )
    found = {"method": config["name"], "after": config["after"], "seed": config["seed_everything"]}
    if "data" in parts:
        found |= {key: config["trainer"][key] for key in trainer if config["trainer"].get(key) is not None}
    for part in parts:
        found[part] = config[part]["class_path"].rsplit(".", 1)[-1]
        inner: dict[str, Any] = {}
        _flatten(config[part].get("init_args", {}), "", inner)
        found |= {f"{part}.{key}" if key in found else key: value for key, value in inner.items()}
    return {key: str(value) for key, value in found.items()}


def _flatten(values: dict[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and "class_path" in value:
            found[prefix + key] = value["class_path"].rsplit(".", 1)[-1]
            given = {k: v for k, v in value.get("init_args", {}).items() if v is not None and v is not False}
            _flatten(given, f"{prefix}{key}.", found)
        else:
            found[prefix + key] = value


class Fit(NamedTuple):
    """A finished fit.

    Attributes:
        checkpoint: Its checkpoint file.
        run_id: Id of its run; None where the run is not in this store.
        config: The YAML file of its configuration, where the run is known.
    """

    checkpoint: str
    run_id: str | None
    config: Path | None


_run_of_file: dict[str, str] = {}
"""Ids of the runs whose checkpoint files were found by name; files that hold weights only do not know their run."""


def find_fit(reference: str, experiment: str | None = None, settings: dict[str, str] | None = None) -> Fit:
    """Finds a fit by its checkpoint file, its MLflow run id, or its run's name (of several, the latest).

    Args:
        reference: Path, run id or run name.
        experiment: The experiment in which a name is looked up; None looks in all.
        settings: Parameters that the run must have been fitted with.

    Raises:
        TrackingError: If there is no such file or run, the run has no checkpoint, or it has other parameters.
    """
    if Path(reference).is_file():
        state = torch.load(reference, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
        run_id = state.get("RecordRun", {}).get("run_id") or _run_of_file.get(reference)
        run = _run(run_id) if run_id else None
        return Fit(reference, run.info.run_id if run else None, _config(run) if run else None)
    run = _run(reference) or _latest(reference, experiment, settings or {})
    if run is None:
        place = f"experiment {experiment!r} of {tracking_uri()}" if experiment else tracking_uri()
        raise TrackingError(
            f"{reference!r} is no checkpoint file, and neither id nor name of a run in {place}; fit it first, or name "
            "one that is there"
        )
    if "checkpoint" not in run.data.tags:
        left = sorted(artifact_file(run, "checkpoints").glob("*.ckpt")) if is_local(run.info.artifact_uri) else []
        resume = f", or go on with `lightning-da fit ... --ckpt_path {left[-1]}`" if left else ""
        raise TrackingError(f"run {reference!r} has no checkpoint: its fit did not end; fit it again{resume}")
    differing = [key for key, value in (settings or {}).items() if run.data.params.get(key, value) != value]
    if differing:
        key = differing[0]
        raise TrackingError(
            f"run {reference!r} was fitted with {key}={run.data.params[key]}, not {(settings or {})[key]}; fit it so "
            f"first, or test that run with --ckpt_path {run.info.run_id}"
        )
    path = artifact_file(run, f"checkpoints/{run.data.tags['checkpoint']}")
    if not path.is_file():
        raise TrackingError(f"run {reference!r}: its checkpoint {path} is gone; fit it again")
    _run_of_file[str(path)] = run.info.run_id
    return Fit(str(path), run.info.run_id, _config(run))


def _run(run_id: str) -> Run | None:
    try:
        return client().get_run(run_id)
    except MlflowException:
        return None


def artifact_file(run: Run, path: str) -> Path:
    """An artifact of a run as a local file."""
    if is_local(run.info.artifact_uri):
        return Path(unquote(urlparse(run.info.artifact_uri).path)) / path
    return Path(client().download_artifacts(run.info.run_id, path))


def _latest(name: str, experiment: str | None, settings: dict[str, str]) -> Run | None:
    """Of the runs of a name the one that fits best: with these settings, with a checkpoint, the latest."""
    places = [e.experiment_id for e in client().search_experiments() if experiment in (None, e.name)]
    if not places:
        return None
    quoted = name.replace("'", "")
    runs = client().search_runs(places, f"run_name = '{quoted}'", order_by=["start_time DESC"])

    def fitness(run: Run) -> tuple[bool, bool]:
        alike = all(run.data.params.get(key, value) == value for key, value in settings.items())
        return alike, "checkpoint" in run.data.tags

    return max(runs, key=fitness, default=None)


def _config(run: Run) -> Path:
    return artifact_file(run, "config.yaml")
