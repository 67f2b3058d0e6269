"""MLflow: where runs land, what is recorded of them, and how they are found again."""

import os
import subprocess
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlparse

import mlflow
import torch
import yaml
from filelock import FileLock
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import MLFlowLogger
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_da.errors import ConfigError

PROJECT = Path(__file__).resolve().parent.parent
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


class RecordRun(SaveConfigCallback):
    """Records a fit so that it can be compared and repeated: parameters, tags, configuration, checkpoint, seconds."""

    _run_id: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.logger, Tracker) and trainer.is_global_zero:
            self._run_id = trainer.logger.run_id
            folder = _artifacts(trainer.logger) / "checkpoints"
            for checkpoint in trainer.checkpoint_callbacks:
                if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is None:
                    checkpoint.dirpath = str(folder)
            self._check_data(trainer, stage)
        super().setup(trainer, pl_module, stage)

    def _check_data(self, trainer: Trainer, stage: str) -> None:
        """Refuses to write figures of other data into a run."""
        logger = cast(Tracker, trainer.logger)
        fitted_on = logger.experiment.get_run(logger.run_id).data.tags.get("data")
        if stage in ("validate", "test") and fitted_on not in (None, trainer.datamodule.fingerprint()):  # type: ignore[attr-defined]
            raise TrackingError(
                f"run {logger.run_id} was fitted on other data, and these figures would take the place of its own; add "
                "--trainer.logger false to print them only"
            )

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not isinstance(trainer.logger, Tracker):
            return
        logger = trainer.logger
        text = self.parser.dump(self.config, skip_none=False)
        config = yaml.safe_load(text)
        logger.log_hyperparams(parameters(config))
        logger.experiment.log_text(logger.run_id, text, "config.yaml")
        tags = {
            **_git(),
            "versions": ", ".join(
                f"{name} {version(name)}" for name in ("lightning", "torch", "torchvision", "timm", "mlflow")
            ),
            "data": trainer.datamodule.fingerprint() if hasattr(trainer, "datamodule") else "",
            "trained_on": ", ".join(
                sorted({*getattr(pl_module, "supervised", ()), *getattr(pl_module, "unlabelled", ())})
            ),
        }
        if config["ckpt_path"] is not None:
            tags["resumed_from"] = config["ckpt_path"]
        elif starts := [find_fit(run) for run in getattr(pl_module, "starts_from", ())]:
            tags["started_from"] = ", ".join(start.run_id or start.checkpoint for start in starts)
        for key, value in tags.items():
            logger.experiment.set_tag(logger.run_id, key, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._start = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if isinstance(trainer.logger, Tracker):
            trainer.logger.log_metrics({"fit/seconds": time.monotonic() - self._start}, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        checkpoint = trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and trainer.global_step == 0:
            # A fit that takes no step leaves the network as it starts; Lightning would leave nothing.
            checkpoint.last_model_path = str(Path(str(checkpoint.dirpath)) / "last.ckpt")
            trainer.save_checkpoint(checkpoint.last_model_path, weights_only=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        checkpoint = trainer.checkpoint_callback
        if stage != "fit" or not isinstance(checkpoint, ModelCheckpoint) or not trainer.is_global_zero:
            return
        path = chosen_checkpoint(trainer)
        if path and isinstance(trainer.logger, Tracker):
            run_id, tracked = trainer.logger.run_id, trainer.logger.experiment
            if not _local(tracked.get_run(run_id).info.artifact_uri):
                tracked.log_artifact(run_id, path, "checkpoints")
            tracked.set_tag(run_id, "checkpoint", Path(path).name)
            tracked.set_tag(run_id, "selection", _selection(checkpoint))

    def state_dict(self) -> dict[str, Any]:
        # The checkpoint knows its run, so that a later `test` can join it.
        return {"run_id": self._run_id}


def chosen_checkpoint(trainer: Trainer) -> str:
    """The file that a fit ends with: the best by the monitored metric if there is one, else the last."""
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, ModelCheckpoint):
        return ""
    return checkpoint.best_model_path or checkpoint.last_model_path


def _selection(checkpoint: ModelCheckpoint) -> str:
    """What chose the weights that are tested."""
    if not checkpoint.best_model_path or checkpoint.monitor is None:
        return "last epoch"
    if checkpoint.monitor.startswith("val/target"):
        return f"oracle ({checkpoint.monitor}: target labels choose the checkpoint)"
    return f"best {checkpoint.monitor}"


def _local(uri: str) -> bool:
    return urlparse(uri).scheme in ("", "file")


def _artifacts(logger: Tracker) -> Path:
    """The local folder of a run's artifacts: the store's own, or one to upload from."""
    run = logger.experiment.get_run(logger.run_id)
    return _file(run, "") if _local(run.info.artifact_uri) else PROJECT / "mlruns" / "upload" / str(logger.run_id)


def _git() -> dict[str, str]:
    """The commit of the project and whether files differ from it; nothing where there is no git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PROJECT), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "git.dirty": str(bool(git("status", "--porcelain"))),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


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
    """A finished fit: its checkpoint file, its run, and the YAML of its configuration where the run is known."""

    checkpoint: str
    run_id: str | None
    config: str | None


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
        run_id = state.get("RecordRun", {}).get("run_id")
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
        left = sorted(_file(run, "checkpoints").glob("*.ckpt")) if _local(run.info.artifact_uri) else []
        resume = f", or go on with `lightning-da fit ... --ckpt_path {left[-1]}`" if left else ""
        raise TrackingError(f"run {reference!r} has no checkpoint: its fit did not end; fit it again{resume}")
    differing = [key for key, value in (settings or {}).items() if run.data.params.get(key, value) != value]
    if differing:
        key = differing[0]
        raise TrackingError(
            f"run {reference!r} was fitted with {key}={run.data.params[key]}, not {(settings or {})[key]}; fit it so "
            f"first, or test that run with --ckpt_path {run.info.run_id}"
        )
    path = _file(run, f"checkpoints/{run.data.tags['checkpoint']}")
    if not path.is_file():
        raise TrackingError(f"run {reference!r}: its checkpoint {path} is gone; fit it again")
    return Fit(str(path), run.info.run_id, _config(run))


def _run(run_id: str) -> Run | None:
    try:
        return client().get_run(run_id)
    except MlflowException:
        return None


def _file(run: Run, path: str) -> Path:
    """An artifact of a run as a local file."""
    if _local(run.info.artifact_uri):
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


def _config(run: Run) -> str:
    return _file(run, "config.yaml").read_text()


def load_weights(module: torch.nn.Module, reference: str, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Copies the weights of an earlier fit whose names begin with one of the prefixes.

    Args:
        module: The network to copy into.
        reference: Checkpoint file, MLflow run id or run name.
        prefixes: Of parameter and buffer names.

    Returns:
        The arguments of that fit's method, as far as its checkpoint has them.

    Raises:
        TrackingError: If there is no such fit, or its layers are not those of the network.
    """
    checkpoint = torch.load(find_fit(reference).checkpoint, map_location="cpu", weights_only=True)
    theirs = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefixes)}
    ours = {key: value for key, value in module.state_dict().items() if key.startswith(prefixes)}
    shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in (theirs, ours)]
    wrong = [key for key in {**ours, **theirs} if shapes[0].get(key) != shapes[1].get(key)]
    if wrong:
        there, here = (shape.get(wrong[0], "missing") for shape in shapes)
        raise TrackingError(
            f"init_from {reference!r}: its network differs from this one, {len(wrong)} tensors do not fit, the first "
            f"is {wrong[0]}: {there} there, {here} here; use the same backbone and bottleneck"
        )
    module.load_state_dict(theirs, strict=False)
    settings: dict[str, Any] = checkpoint.get("hyper_parameters", {})
    return settings
