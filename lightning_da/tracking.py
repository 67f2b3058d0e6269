"""MLflow tracking: the logger, the recorded parameters, and the search for earlier runs."""

import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

from lightning import Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, RunInfo
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException

from lightning_da.errors import InterruptionError, list_choices, one_line
from lightning_da.mlflow_view import prepare_experiment
from lightning_da.names import joined_name
from lightning_da.networks.weights import read_checkpoint
from lightning_da.outbox import STORE, WRITES, OutboxClient
from lightning_da.paths import work_folder
from lightning_da.store import TrackingError, by_name, cause, client, shown_uri, tracking_uri

EXPERIMENT = "lightning_da"
LENGTHS = ("max_steps", "max_epochs")
"""Settings that may grow when a fit goes on."""
EXTENDED = "extended."
"""Prefix of the tags with the settings of a fit that was made longer."""
CLASS_SETS = "class_sets"
"""Tag with the setting of a run whose domains have different classes, and these classes."""
UNSENT = "unsent"
"""Folder beside the checkpoints of a run for its writes that wait for the store."""


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
                tracked.create_experiment(experiment_name, artifact_location=artifacts)
            except MlflowException:
                if tracked.get_experiment_by_name(experiment_name) is None:
                    raise
        prepare_experiment(find_experiment(experiment_name))
        super().__init__(experiment_name, run_name, uri, tags, run_id=run_id, synchronous=synchronous)
        self._mlflow_client = tracked
        self._joined = run_id is not None
        self._outbox: OutboxClient | None = None
        self._monitor: Any = None
        self._monitored = bool(MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get())  # type: ignore[no-untyped-call]
        if self._monitored and find_spec("psutil") is None:
            raise TrackingError(
                "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING: the package psutil is missing; install the extra "
                "system-metrics: .venv/bin/pip install -e '.[system-metrics]'"
            )
        self._info: RunInfo | None = None
        self.resumed: dict[str, int] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """A client for the run, whose writes wait in a folder beside its checkpoints while the store fails."""
        opened = super().experiment
        if self._outbox is None:
            self._info = opened.get_run(self._run_id).info
            self._outbox = OutboxClient(tracking_uri(), checkpoints_folder(self._info) / UNSENT)
            if self._monitored and not self._joined:
                self._watch_system()
        return self._outbox

    @property
    def info(self) -> RunInfo:
        """Name, experiment and artifact folder of the run, as the store had them when the run was opened."""
        assert self.experiment is not None
        assert self._info is not None
        return self._info

    def _watch_system(self) -> None:
        """Logs load and memory of the machine every ten seconds, in a thread of MLflow that ends with the run."""
        from mlflow.system_metrics import system_metrics_monitor as system  # noqa: PLC0415  # an extra

        monitor: Any = system.SystemMetricsMonitor
        self._monitor = monitor(self._run_id, resume_logging=True, tracking_uri=tracking_uri())
        self._monitor.start()

    @rank_zero_only
    def resume(self, checkpoint: str) -> None:
        """Goes on with the run of `run_id`: what it has logged already is not logged twice.

        Args:
            checkpoint: The checkpoint file that the fit goes on from.
        """
        assert self.run_id is not None
        if not self.experiment.finish(wait=True):
            raise TrackingError(
                f"run {self.run_id}: {shown_uri()} does not take its waiting writes; go on when it does"
            )
        run = self.experiment.get_run(self.run_id)
        histories = {key: self.experiment.get_metric_history(self.run_id, key) for key in run.data.metrics}
        self._joined = False
        self.resumed = {key: max(point.step for point in history) for key, history in histories.items()}
        self.experiment.update_run(self.run_id, "RUNNING")
        if self._monitored:
            self._watch_system()
        self.experiment.set_tag(self.run_id, "resumed_from", checkpoint)
        for tag in {"failure", "no_model"} & set(run.data.tags):
            self.experiment.delete_tag(self.run_id, tag)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.resumed is not None and step is not None:
            metrics = {key: value for key, value in metrics.items() if step > self.resumed.get(key, -1)}
        super().log_metrics(metrics, step)

    @property
    def run_name(self) -> str:
        """Name of the run; without one, its id."""
        return str(self._run_name or self.run_id)

    def name_run(self, name: str) -> None:
        """Sets the name of the run, unless it has one."""
        self._run_name = self._run_name or name

    def discard(self) -> None:
        """Deletes the run if it was begun here: its configuration is refused."""
        if self._run_id is not None and not self._joined and self.resumed is None:
            self.experiment.delete_run(self._run_id)

    def fail(self, error: BaseException) -> None:
        """Records why the fit of the run ended: it was interrupted, or it failed."""
        self._end_monitor()
        if self._run_id is None or self._joined:
            return
        with suppress(OSError):  # a full disk, which is the error
            status = "KILLED" if isinstance(error, InterruptionError) else "FAILED"
            self.experiment.set_terminated(self._run_id, status)
            self.experiment.set_tag(self._run_id, "failure", f"{type(error).__name__}: {one_line(error)}")

    def _end_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        failed = status == "failed"
        if self._outbox is None:
            return
        self._end_monitor()
        with suppress(OSError) if failed else nullcontext():  # a full disk must not hide the error
            if not (failed and self._joined):  # a failed test does not change the status of the fit's run
                self._outbox.set_terminated(str(self._run_id), "FAILED" if failed else "FINISHED")
            self._outbox.finish(wait=not failed)


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
    for role in ("source", "target"):
        if isinstance(found.get(role), list):
            found[role] = joined_name(found[role])
    return {key: str(value) for key, value in found.items()}


def pair_of(params: Mapping[str, str]) -> str:
    """The domains of a run, from its parameters; a folder that is the only domain is named once."""
    names = [name for role in ("source", "target") if (name := params.get(role, "None")) != "None"]
    return " -> ".join(names or [Path(params.get("root", "")).name])


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


def find_experiment(name: str) -> Experiment:
    """The experiment with a name.

    Raises:
        TrackingError: If the store has none.
    """
    found = client().get_experiment_by_name(name)
    if found is None:
        names = [experiment.name for experiment in client().search_experiments()]
        raise TrackingError(f"no experiment {name!r} in {shown_uri()}; {list_choices(name, names)}")
    return found


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
        if (checkpoints_folder(run.info) / UNSENT / WRITES).exists():
            raise TrackingError(
                f"run {reference!r} is not complete in the store; send the rest with `lightning-da sync`"
            )
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


def find_run(reference: str) -> Run | None:
    """A run by its id or name, the latest one of that name, a finished fit first; None if there is none."""
    return _run(reference) or _latest(reference, None, {})


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
    left, here = _left_of(run), is_local(run.info.artifact_uri)
    if not (left or here) and "checkpoint" in run.data.tags:  # it ended on another machine
        left = [artifact_file(run, f"checkpoints/{run.data.tags['checkpoint']}")]
    if not left:
        where = "; fit it again" if here else "; go on on the machine where it was interrupted, or fit it again"
        raise TrackingError(f"run {reference!r} has no checkpoint to go on from{where}")
    return Fit(str(max(left, key=lambda path: path.stat().st_mtime)), run.info.run_id, _config(run))


def _left_of(run: Run) -> list[Path]:
    """The checkpoint files of a run on this machine."""
    return sorted(checkpoints_folder(run.info).glob("*.ckpt"))


def checkpoints_folder(info: RunInfo) -> Path:
    """The local folder of a run's checkpoints; for a remote store, a folder to upload from."""
    if is_local(info.artifact_uri):
        return _local(info.artifact_uri) / "checkpoints"
    return _uploads() / str(info.run_id) / "checkpoints"


def _uploads() -> Path:
    """The parent of the local folders of the runs whose artifacts are in a remote store."""
    return work_folder() / "mlruns" / "upload"


def _local(uri: str) -> Path:
    path: str = urlparse(uri).path
    return Path(unquote(path))


def send_waiting() -> int:
    """Sends the writes of all runs that wait on this machine for the store, and prints a line for each run.

    Returns:
        The number of runs whose writes the store does not take; they stay in their folder.
    """
    places = [_local(e.artifact_location) for e in client().search_experiments() if is_local(e.artifact_location)]
    found = [path for place in places for path in place.glob(f"*/artifacts/checkpoints/{UNSENT}/{WRITES}")]
    left = 0
    for folder in (path.parent for path in (*found, *_uploads().glob(f"*/checkpoints/{UNSENT}/{WRITES}"))):
        place = folder / STORE
        if place.exists() and (store := place.read_text()) != shown_uri():
            print(f"{folder} waits for {store}: set MLFLOW_TRACKING_URI to it to send its writes", file=sys.stderr)
            continue
        try:
            sent = OutboxClient(tracking_uri(), folder).send()
            print(f"{sent} writes sent, which waited in {folder}")
        except Exception as error:  # each kind of store has exceptions of its own
            left += 1
            print(f"{shown_uri()} does not take the writes in {folder} ({cause(error)})", file=sys.stderr)
    return left


def _run(run_id: str) -> Run | None:
    try:
        return client().get_run(run_id)
    except MlflowException:
        return None


def artifact_file(run: Run, path: str) -> Path:
    """Local path of an artifact; downloads it from a remote store to `RUN_ID/artifacts` in a new folder."""
    if is_local(run.info.artifact_uri):
        return _local(run.info.artifact_uri) / path
    folder = Path(tempfile.mkdtemp(prefix="lightning_da-")) / run.info.run_id / "artifacts"
    folder.mkdir(parents=True)
    return Path(client().download_artifacts(run.info.run_id, path, str(folder)))


def _latest(name: str, experiment: str | None, settings: dict[str, str], finished_first: bool = True) -> Run | None:
    """The best match among the runs with a name: with these settings, then finished if asked for, then the latest.

    A warning says so if another run matches as well.
    """
    places = [e.experiment_id for e in client().search_experiments() if experiment in (None, e.name)]
    if not places:
        return None
    runs = client().search_runs(places, by_name("run_name", name), order_by=["start_time DESC"])

    def fitness(run: Run) -> tuple[bool, bool]:
        alike = all(run.data.params.get(key, value) == value for key, value in settings.items())
        return alike, finished_first and "checkpoint" in run.data.tags

    best = max(runs, key=fitness, default=None)
    if best is not None and (equal := sum(fitness(run) == fitness(best) for run in runs)) > 1:
        rank_zero_warn(
            f"{equal} runs have the name {name!r}; the latest is taken, {best.info.run_id} of "
            f"{datetime.fromtimestamp(best.info.start_time / 1000):%Y-%m-%d %H:%M}. To use another one, give its id"
        )
    return best


def _config(run: Run) -> Path:
    return artifact_file(run, "config.yaml")
