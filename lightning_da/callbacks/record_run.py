import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback

from lightning_da.mlflow_view import PAIR
from lightning_da.paths import work_folder
from lightning_da.store import TrackingError
from lightning_da.tracking import (
    CLASS_SETS,
    EXTENDED,
    LENGTHS,
    Tracker,
    checkpoints_folder,
    chosen_checkpoint,
    deciding_checkpoint,
    find_fit,
    is_local,
    pair_of,
    parameters,
)


class RecordRun(SaveConfigCallback):
    """Records the parameters, tags, configuration, checkpoint and duration of a fit, for comparison and repetition."""

    _run_id: str | None = None
    _signs = 0
    _seconds, _start = 0.0, 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.logger, Tracker) and trainer.is_global_zero:
            self._run_id = trainer.logger.run_id
            folder = checkpoints_folder(trainer.logger.info)
            for checkpoint in trainer.checkpoint_callbacks:
                if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is None:
                    checkpoint.dirpath = str(folder)
            if stage != "predict":
                self._check_data(trainer, stage)
        super().setup(trainer, pl_module, stage)

    def _check_data(self, trainer: Trainer, stage: str) -> None:
        """Refuses to add results on other data to a run, and to go on with other data."""
        logger = cast(Tracker, trainer.logger)
        fitted_on = logger.experiment.get_run(logger.run_id).data.tags.get("data")
        if fitted_on is None or fitted_on == trainer.datamodule.fingerprint():  # type: ignore[attr-defined]
            return
        remedy = (
            "go on with the same data"
            if stage == "fit"
            else ("these results would replace its own; add --trainer.logger false to print them without recording")
        )
        raise TrackingError(f"run {logger.run_id} was fitted on other data; {remedy}")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not isinstance(trainer.logger, Tracker):
            return
        if trainer.logger.resumed is None:
            self.record(trainer, pl_module, getattr(pl_module, "starts_from", ()))
        else:
            self._record_length(trainer.logger)

    def _record_length(self, logger: Tracker) -> None:
        """Records that a fit which goes on is longer: a parameter cannot change, so that it is a tag."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        recorded, now = logger.experiment.get_run(logger.run_id).data.params, parameters(config)
        config |= {"ckpt_path": None}
        config["trainer"]["logger"]["init_args"] |= {"run_id": None}
        for key in LENGTHS:
            if recorded.get(key) != now.get(key):
                logger.experiment.set_tag(logger.run_id, f"{EXTENDED}{key}", now.get(key, "None"))
                logger.experiment.log_text(logger.run_id, yaml.safe_dump(config), "config.yaml")

    def record(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        starts_from: Sequence[str],
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Records parameters, tags and configuration in the run of the trainer's logger.

        Args:
            trainer: The trainer, whose logger is a `Tracker`.
            pl_module: The trained module.
            starts_from: Checkpoint files of the earlier runs that the fit starts from.
            more: Parameters that override parameters of the configuration.
        """
        logger = cast(Tracker, trainer.logger)
        text = self.parser.dump(self.config, skip_none=False)
        config = yaml.safe_load(text)
        params = parameters(config) | dict(more)
        logger.log_hyperparams(params)
        logger.experiment.log_text(logger.run_id, text, "config.yaml")
        tags = {
            **_git(),
            PAIR: pair_of(params),
            "versions": ", ".join(
                f"{name} {version(name)}" for name in ("lightning", "torch", "torchvision", "timm", "mlflow")
            ),
            "data": trainer.datamodule.fingerprint() if hasattr(trainer, "datamodule") else "",
            "trained_on": ", ".join(
                sorted({*getattr(pl_module, "supervised", ()), *getattr(pl_module, "unlabelled", ())})
            ),
        }
        if config["ckpt_path"] is not None:  # of a run in another store
            tags["resumed_from"] = config["ckpt_path"]
        elif starts := [find_fit(checkpoint) for checkpoint in starts_from]:
            tags["started_from"] = ", ".join(start.run_id or start.checkpoint for start in starts)
        if left_out := getattr(getattr(trainer, "datamodule", None), "left_out", {}):
            tags["left_out"] = ", ".join(f"{number} damaged of {domain}" for domain, number in left_out.items())
        data = getattr(trainer, "datamodule", None)
        if data is not None and data.class_sets != "closed":
            tags[CLASS_SETS] = data.setting
        if data is not None and len(data.named["source"]) > 1 and "source" in tags["trained_on"]:
            tags["source_weights"] = ", ".join(f"{name} {weight:.3f}" for name, weight in data.weights.items())
        for key, value in tags.items():
            logger.experiment.set_tag(logger.run_id, key, value)
        if data is not None:
            logger.experiment.log_data(logger.run_id, data.sets(pl_module.supervised, pl_module.unlabelled))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._start = time.monotonic() - self._seconds

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ARG002
        signs = getattr(pl_module, "signs", None)
        if signs is None or len(signs.found) == self._signs or not trainer.is_global_zero:
            return
        self._signs = len(signs.found)
        if isinstance(trainer.logger, Tracker):
            text = "\n".join(signs.found.values())
            trainer.logger.experiment.set_tag(trainer.logger.run_id, "warnings", text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if isinstance(trainer.logger, Tracker):
            trainer.logger.log_metrics({"fit/seconds": time.monotonic() - self._start}, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        checkpoint = deciding_checkpoint(trainer)
        if checkpoint is None:
            return
        # Lightning saves nothing at the end of a fit of 0 steps, or between two steps of `every_n_train_steps`.
        behind = checkpoint.monitor is None and checkpoint._last_global_step_saved != trainer.global_step
        if trainer.global_step == 0 or behind:
            checkpoint.last_model_path = str(Path(str(checkpoint.dirpath)) / "last.ckpt")
            trainer.save_checkpoint(checkpoint.last_model_path, weights_only=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        if stage != "fit" or not trainer.is_global_zero or not isinstance(trainer.logger, Tracker):
            return
        checkpoint = deciding_checkpoint(trainer)
        if checkpoint is not None and (path := chosen_checkpoint(trainer)):
            keep_checkpoint(trainer.logger, path, _selection(checkpoint))

    def state_dict(self) -> dict[str, Any]:
        # The checkpoint stores its run id, so that a later `test` adds its results to that run.
        return {"run_id": self._run_id, "seconds": time.monotonic() - self._start if self._start else 0.0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = state_dict.get("seconds", 0.0)


def keep_checkpoint(logger: Tracker, path: str, selection: str) -> None:
    """Records the final checkpoint of a run as a tag, and uploads the file if the store is on another machine.

    Args:
        logger: Logger of the run.
        path: The file, in `checkpoints_folder(logger.info)`.
        selection: How the checkpoint was selected, for example `last epoch`.
    """
    run_id, tracked = logger.run_id, logger.experiment
    if not is_local(logger.info.artifact_uri):
        tracked.log_artifact(run_id, path, "checkpoints")
    tracked.set_tag(run_id, "checkpoint", Path(path).name)
    tracked.set_tag(run_id, "selection", selection)


def _selection(checkpoint: ModelCheckpoint) -> str:
    """How the tested checkpoint was selected."""
    if not checkpoint.best_model_path or checkpoint.monitor is None:
        return "last epoch"
    if checkpoint.monitor.startswith("val/target"):
        return f"oracle ({checkpoint.monitor}: target labels choose the checkpoint)"
    return f"best {checkpoint.monitor}"


def _git() -> dict[str, str]:
    """The commit of the project, and whether there are uncommitted changes; empty without git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(work_folder()), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "git.dirty": str(bool(git("status", "--porcelain"))),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
