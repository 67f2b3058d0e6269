"""MLflow tracking: the store, the recorded parameters, and the search for earlier runs."""

import os
import re
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlparse

import mlflow
from filelock import FileLock
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_da.errors import ConfigError, InterruptionError, one_line
from lightning_da.networks.weights import read_checkpoint
from lightning_da.paths import PROJECT

EXPERIMENT = "lightning_da"
PRIMARY_METRIC = "test/target/acc"
LENGTHS = ("max_steps", "max_epochs")
"""Settings that may grow when a fit goes on."""
EXTENDED = "extended."
"""Prefix of the tags with the settings of a fit that was made longer."""
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}
"""Settings of MLflow for the first call of a store, unless they are set: a dead server is named within seconds."""


class TrackingError(ConfigError):
    """A missing run or checkpoint; the message names it and the place of the search."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the sqlite store in the project's folder `mlruns`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{PROJECT / 'mlruns' / 'mlflow.db'}"


def store_folder() -> Path:
    """The folder of an sqlite store; for a store on a server, the project's folder `mlruns`."""
    uri = tracking_uri()
    return Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else PROJECT / "mlruns"


def shown_uri() -> str:
    """`tracking_uri()` for messages: without the password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", tracking_uri())


@cache
def _client(uri: str) -> mlflow.MlflowClient:
    if not uri.startswith("sqlite:///"):
        return _answering(uri)
    path = Path(uri.removeprefix("sqlite:///"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as store:
            store.execute("PRAGMA schema_version")
        with FileLock(f"{path}.lock"):  # two processes must not create the tables at the same time
            return _answering(uri)
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"the MLflow store {shown_uri()} cannot be opened ({error}); correct MLFLOW_TRACKING_URI"
        ) from error


def _answering(uri: str) -> mlflow.MlflowClient:
    """A client of a store that answers: the first call does not wait and retry for minutes."""
    patient = {name: os.environ.get(name) for name in IMPATIENT}
    os.environ.update({name: value for name, value in IMPATIENT.items() if patient[name] is None})
    try:
        made = mlflow.MlflowClient(uri)
        made.search_experiments(max_results=1)
        return made
    except Exception as error:  # each kind of store has exceptions of its own
        short = re.search(r"\[Errno -?\d+\] [^\"')]*|timed out", str(error))
        cause = re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", short.group(0) if short else one_line(error))
        raise TrackingError(
            f"the MLflow store {shown_uri()} does not answer ({cause}); start it, or correct MLFLOW_TRACKING_URI"
        ) from error
    finally:
        for name in (name for name in IMPATIENT if patient[name] is None):
            del os.environ[name]


def client() -> mlflow.MlflowClient:
    """A client of the store at `tracking_uri()`; an sqlite store is created if it does not exist."""
    return _client(tracking_uri())


def search_runs(experiment_id: str, wanted: str = "", newest_first: bool = False) -> list[Run]:
    """The runs of an experiment that match an MLflow filter (all if empty), in order of their start."""
    runs: list[Run] = []
    order, token = [f"start_time {'DESC' if newest_first else 'ASC'}"], None
    while True:
        page = client().search_runs([experiment_id], wanted, order_by=order, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def charts_url(experiment_id: str) -> str:
    """Address of the chart view of an experiment, the runs sorted by `PRIMARY_METRIC`.

    In the order of their start, MLflow hides child runs below their parent.
    """
    server = tracking_uri() if tracking_uri().startswith("http") else "http://127.0.0.1:5000"
    order = quote(f"metrics.`{PRIMARY_METRIC}`", safe="")
    return f"{server}/#/experiments/{experiment_id}/runs?orderByKey={order}&orderByAsc=false&compareRunsMode=CHART"


class Tracker(MLFlowLogger):
    """Lightning's MLflow logger for the store at `tracking_uri()`; artifacts of an sqlite store are next to its file.

    Args:
        experiment_name: Name of the MLflow experiment.
        run_name: Name of the run; None uses method, domains and seed.
        run_id: Id of an existing run to continue; None starts a new run.
        synchronous: Whether each call of MLflow waits until the values are written.
        tags: Tags of the run; the tag `mlflow.parentRunId` makes it a child of another run.
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
            # Another process may create it first.
            try:
                made = tracked.create_experiment(experiment_name, artifact_location=artifacts)
                tracked.set_experiment_tag(made, "mlflow.experiment.primaryMetric.name", PRIMARY_METRIC)
            except MlflowException:
                if tracked.get_experiment_by_name(experiment_name) is None:
                    raise
        super().__init__(experiment_name, run_name, uri, tags, run_id=run_id, synchronous=synchronous)
        self._joined = run_id is not None
        self.resumed: dict[str, int] | None = None

    def resume(self, checkpoint: str) -> None:
        """Goes on with the run of `run_id`: what it has logged already is not logged twice.

        Args:
            checkpoint: The checkpoint file that the fit goes on from.
        """
        self._joined, self.resumed = False, {}
        self.experiment.update_run(self.run_id, "RUNNING")
        self.experiment.set_tag(self.run_id, "resumed_from", checkpoint)
        if "failure" in self.experiment.get_run(str(self.run_id)).data.tags:
            self.experiment.delete_tag(self.run_id, "failure")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.resumed is not None and step is not None:
            for key in metrics.keys() - self.resumed.keys():
                logged = self.experiment.get_metric_history(self.run_id, key)
                self.resumed[key] = max((point.step for point in logged), default=-1)
            metrics = {key: value for key, value in metrics.items() if step > self.resumed[key]}
        super().log_metrics(metrics, step)

    def name_run(self, name: str) -> None:
        """Sets the name of the run, unless it has one."""
        self._run_name = self._run_name or name

    def discard(self) -> None:
        """Deletes the run if it was begun here: its configuration is refused."""
        if self._run_id is not None and not self._joined and self.resumed is None:
            self.experiment.delete_run(self._run_id)

    def fail(self, error: BaseException) -> None:
        """Records why the fit of the run ended: it was interrupted, or it failed."""
        if self._run_id is not None and not self._joined:
            if isinstance(error, InterruptionError):
                self.experiment.set_terminated(self._run_id, "KILLED")
            self.experiment.set_tag(self._run_id, "failure", f"{type(error).__name__}: {one_line(error)}")

    def finalize(self, status: str = "success") -> None:
        # a failed test does not change the status of the fit's run
        if not (self._joined and status == "failed"):
            super().finalize(status)


def deciding_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """The callback that chooses the final checkpoint of a fit: the first with a `monitor`, otherwise the first."""
    there = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback for callback in there if callback.monitor is not None), there[0] if there else None)


def chosen_checkpoint(trainer: Trainer) -> str:
    """The final checkpoint of a fit: the best one if a metric is monitored, otherwise the last one."""
    checkpoint = deciding_checkpoint(trainer)
    return "" if checkpoint is None else checkpoint.best_model_path or checkpoint.last_model_path


def is_local(uri: str) -> bool:
    """Whether an artifact URI is a folder on this machine."""
    return urlparse(uri).scheme in ("", "file")


def artifacts_folder(logger: Tracker) -> Path:
    """The local folder of a run's artifacts; for a remote store, a folder to upload from."""
    run = logger.experiment.get_run(logger.run_id)
    local = is_local(run.info.artifact_uri)
    return artifact_file(run, "") if local else _upload_folder(str(logger.run_id)).parent


def parameters(config: dict[str, Any], parts: tuple[str, ...] = ("model", "data")) -> dict[str, str]:
    """The parameters that MLflow records for a configuration, with short names.

    A class is recorded by its name (`backbone: LeNet`), and its arguments with this prefix (`backbone.batch_norm:
    True`).

    Args:
        config: The configuration of a fit, as in its YAML file.
        parts: Sections of the configuration to include, `model` or `data`.
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
    if "data" in parts and config.get("published") is not None:
        found["published"] = config["published"]
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
        checkpoint: Path of the checkpoint file.
        run_id: Id of the run; None if the run is not in this store.
        config: Path of the YAML file with the configuration; None if the run is not in this store.
    """

    checkpoint: str
    run_id: str | None
    config: Path | None


def find_fit(reference: str, experiment: str | None = None, settings: dict[str, str] | None = None) -> Fit:
    """Finds a fit by checkpoint file, MLflow run id or run name.

    If several runs have the name, runs with these settings and with a checkpoint are preferred, then the latest run.

    Args:
        reference: Path, run id or run name.
        experiment: Experiment for the search by name; None searches all experiments.
        settings: Required parameters of the run.

    Raises:
        TrackingError: If the file or run does not exist, or the run has no checkpoint or other parameters.
    """
    if Path(reference).is_file():
        state = read_checkpoint(reference).get("callbacks", {})
        # A file that holds weights only is known by its place below the artifacts of its run.
        run = _run(state.get("RecordRun", {}).get("run_id") or Path(reference).absolute().parent.parent.parent.name)
        return Fit(reference, run.info.run_id if run else None, _config(run) if run else None)
    run = _run(reference) or _latest(reference, experiment, settings or {})
    if run is None:
        place = f"experiment {experiment!r} of {shown_uri()}" if experiment else shown_uri()
        raise TrackingError(
            f"{reference!r} is no checkpoint file, and neither id nor name of a run in {place}; fit it first, or give "
            "an existing run"
        )
    if "checkpoint" not in run.data.tags:
        resume = f", or go on with `lightning-da fit --ckpt_path {run.info.run_id}`" if _left_of(run) else ""
        raise TrackingError(f"run {reference!r} has no checkpoint: its fit did not end; fit it again{resume}")
    differing = [key for key, value in (settings or {}).items() if run.data.params.get(key, value) != value]
    if differing:
        key = differing[0]
        raise TrackingError(
            f"run {reference!r} was fitted with {key}={run.data.params[key]}, not {(settings or {})[key]}; fit it with "
            f"that value first, or use the existing run with --ckpt_path {run.info.run_id}"
        )
    path = artifact_file(run, f"checkpoints/{run.data.tags['checkpoint']}")
    if not path.is_file():
        raise TrackingError(f"run {reference!r}: its checkpoint {path} is gone; fit it again")
    return Fit(str(path), run.info.run_id, _config(run))


def params_of(run: Run) -> dict[str, str]:
    """The parameters of a run, with the length to which it was extended."""
    longer = {key.removeprefix(EXTENDED): value for key, value in run.data.tags.items() if key.startswith(EXTENDED)}
    return {**run.data.params, **longer}


def find_resumable(reference: str, experiment: str | None = None, settings: dict[str, str] | None = None) -> Fit:
    """Finds a fit to go on with, and its latest checkpoint; for the arguments see `find_fit`.

    If several runs have the name, the latest one is taken, with these settings but for its length.

    Raises:
        TrackingError: If the file or run does not exist, or the run has no checkpoint.
    """
    if Path(reference).is_file():
        return find_fit(reference)
    same = {key: value for key, value in (settings or {}).items() if key not in LENGTHS}
    run = _run(reference) or _latest(reference, experiment, same, finished_first=False)
    if run is None:
        raise TrackingError(f"{reference!r} is no checkpoint file, and neither id nor name of a run in {shown_uri()}")
    left = _left_of(run)
    if not left:
        raise TrackingError(f"run {reference!r} has no checkpoint to go on from; fit it again")
    return Fit(str(max(left, key=lambda path: path.stat().st_mtime)), run.info.run_id, _config(run))


def _left_of(run: Run) -> list[Path]:
    """The checkpoint files of a run on this machine."""
    folder = artifact_file(run, "checkpoints") if is_local(run.info.artifact_uri) else _upload_folder(run.info.run_id)
    return sorted(folder.glob("*.ckpt"))


def _upload_folder(run_id: str) -> Path:
    """The folder for the checkpoints of a run in a remote store."""
    return PROJECT / "mlruns" / "upload" / run_id / "checkpoints"


def _run(run_id: str) -> Run | None:
    try:
        return client().get_run(run_id)
    except MlflowException:
        return None


def artifact_file(run: Run, path: str) -> Path:
    """Local path of an artifact; downloads it from a remote store to `RUN_ID/artifacts` in a new folder."""
    if is_local(run.info.artifact_uri):
        return Path(unquote(urlparse(run.info.artifact_uri).path)) / path
    folder = Path(tempfile.mkdtemp(prefix="lightning_da-")) / run.info.run_id / "artifacts"
    folder.mkdir(parents=True)
    return Path(client().download_artifacts(run.info.run_id, path, str(folder)))


def _latest(name: str, experiment: str | None, settings: dict[str, str], finished_first: bool = True) -> Run | None:
    """The best match among the runs with a name: with these settings, then finished if asked for, then the latest."""
    places = [e.experiment_id for e in client().search_experiments() if experiment in (None, e.name)]
    if not places:
        return None
    quoted = name.replace("'", "")
    runs = client().search_runs(places, f"run_name = '{quoted}'", order_by=["start_time DESC"])

    def fitness(run: Run) -> tuple[bool, bool]:
        alike = all(run.data.params.get(key, value) == value for key, value in settings.items())
        return alike, finished_first and "checkpoint" in run.data.tags

    return max(runs, key=fitness, default=None)


def _config(run: Run) -> Path:
    return artifact_file(run, "config.yaml")
