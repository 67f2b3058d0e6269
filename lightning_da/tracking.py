"""MLflow: where runs land, what is recorded of them, and how they are found again."""

import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import mlflow
import torch
import yaml
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


def client() -> mlflow.MlflowClient:
    """A client of the store that runs land in; an sqlite store's folder is made."""
    uri = tracking_uri()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(uri)


class Tracker(MLFlowLogger):
    """MLflow's logger, at `tracking_uri()`; the artifacts of an sqlite store lie beside the database.

    Args:
        experiment_name: The experiment that runs are compared in.
        run_name: Name of the run; the command line makes one of method, domains and seed.
        run_id: The run to join, instead of starting one.
        synchronous: Whether each call of MLflow waits until it is written.
    """

    def __init__(
        self,
        experiment_name: str = EXPERIMENT,
        run_name: str | None = None,
        run_id: str | None = None,
        synchronous: bool = True,
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
        super().__init__(experiment_name, run_name, uri, run_id=run_id, synchronous=synchronous)


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
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        if stage != "fit" or not isinstance(trainer.logger, Tracker):
            return
        logger = trainer.logger
        text = self.parser.dump(self.config, skip_none=False)
        config = yaml.safe_load(text)
        logger.log_hyperparams(parameters(config))
        logger.experiment.log_text(logger.run_id, text, "config.yaml")
        checkpoint = trainer.checkpoint_callback
        monitor = getattr(checkpoint, "monitor", None)
        selection = f"best {monitor}" if monitor else "last epoch"
        if monitor and monitor.startswith(("val/target", "test/")):
            selection = f"oracle ({monitor}: target labels choose the checkpoint)"
        tags = {
            **_git(),
            "versions": ", ".join(
                f"{name} {version(name)}" for name in ("lightning", "torch", "torchvision", "timm", "mlflow")
            ),
            "data": trainer.datamodule.fingerprint() if hasattr(trainer, "datamodule") else "",
            "selection": selection,
        }
        if config["ckpt_path"] is not None:
            tags["resumed_from"] = config["ckpt_path"]
        for key, value in tags.items():
            logger.experiment.set_tag(logger.run_id, key, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._start = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if isinstance(trainer.logger, Tracker):
            trainer.logger.log_metrics({"fit/seconds": time.monotonic() - self._start}, trainer.global_step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        checkpoint = trainer.checkpoint_callback
        if stage != "fit" or not isinstance(checkpoint, ModelCheckpoint) or not trainer.is_global_zero:
            return
        path = checkpoint.best_model_path or checkpoint.last_model_path
        if path and isinstance(trainer.logger, Tracker):
            run_id, tracked = trainer.logger.run_id, trainer.logger.experiment
            if not _local(tracked.get_run(run_id).info.artifact_uri):
                tracked.log_artifact(run_id, path, "checkpoints")
            tracked.set_tag(run_id, "checkpoint", Path(path).name)

    def state_dict(self) -> dict[str, Any]:
        # The checkpoint knows its run, so that a later `test` can join it.
        return {"run_id": self._run_id}


def _local(uri: str) -> bool:
    return urlparse(uri).scheme in ("", "file")


def _artifacts(logger: Tracker) -> Path:
    """The local folder of a run's artifacts: the store's own, or one to upload from."""
    uri = logger.experiment.get_run(logger.run_id).info.artifact_uri
    return Path(unquote(urlparse(uri).path)) if _local(uri) else PROJECT / "mlruns" / "upload" / str(logger.run_id)


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


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """What of a configuration is recorded as parameters, with short names and values as typed.

    A class in the configuration is recorded by its name (`backbone: LeNet`), its arguments below it
    (`backbone.batch_norm: True`).

    Args:
        config: The configuration of a fit, as written to YAML.
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
    found = {"method": config["name"], "seed": config["seed_everything"]}
    found |= {key: config["trainer"][key] for key in trainer if config["trainer"].get(key) is not None}
    for part in ("model", "data"):
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


def find_fit(reference: str, experiment: str = EXPERIMENT) -> Fit:
    """Finds a fit by its checkpoint file, its MLflow run id, or its run's name (of several, the latest).

    Args:
        reference: Path, run id or run name.
        experiment: The experiment in which a name is looked up.

    Raises:
        TrackingError: If there is no such file or run, or the run has no checkpoint.
    """
    if Path(reference).is_file():
        state = torch.load(reference, map_location="cpu", weights_only=True, mmap=True).get("callbacks", {})
        run_id = state.get("RecordRun", {}).get("run_id")
        run = _run(run_id) if run_id else None
        return Fit(reference, run.info.run_id if run else None, _config(run) if run else None)
    run = _run(reference) or _latest(reference, experiment)
    if run is None:
        raise TrackingError(
            f"{reference!r} is no checkpoint file, and neither id nor name of a run in experiment {experiment!r} of "
            f"{tracking_uri()}; fit it first, or give --ckpt_path a file, a run id or a run name"
        )
    if "checkpoint" not in run.data.tags:
        raise TrackingError(f"run {reference!r} has no checkpoint: its fit did not end; fit it again")
    path = client().download_artifacts(run.info.run_id, f"checkpoints/{run.data.tags['checkpoint']}")
    return Fit(path, run.info.run_id, _config(run))


def _run(run_id: str) -> Run | None:
    try:
        return client().get_run(run_id)
    except MlflowException:
        return None


def _latest(name: str, experiment: str) -> Run | None:
    found = client().get_experiment_by_name(experiment)
    if found is None:
        return None
    quoted = name.replace("'", "")
    runs = client().search_runs([found.experiment_id], f"run_name = '{quoted}'", order_by=["start_time DESC"])
    fitted = [run for run in runs if "checkpoint" in run.data.tags]
    return fitted[0] if fitted else runs[0] if runs else None


def _config(run: Run) -> str | None:
    return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml")


def load_weights(module: torch.nn.Module, reference: str, prefixes: tuple[str, ...]) -> None:
    """Copies the weights of an earlier fit whose names begin with one of the prefixes.

    Args:
        module: The network to copy into.
        reference: Checkpoint file, MLflow run id or run name.
        prefixes: Of parameter and buffer names.

    Raises:
        TrackingError: If there is no such fit, or its layers are not those of the network.
    """
    checkpoint = find_fit(reference).checkpoint
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    wanted = {key: value for key, value in module.state_dict().items() if key.startswith(prefixes)}
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        theirs = tuple(state[wrong[0]].shape) if wrong[0] in state else "missing"
        raise TrackingError(
            f"init_from {reference!r}: its network differs from this one, {len(wrong)} tensors do not "
            "fit, the first is "
            f"{wrong[0]}: {theirs} there, {tuple(wanted[wrong[0]].shape)} here; use the same backbone and bottleneck"
        )
    module.load_state_dict({key: state[key] for key in wanted}, strict=False)
