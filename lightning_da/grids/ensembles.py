"""Ensembles of finished fits."""

import copy
from collections.abc import Sequence
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_da.callbacks.log_model import LogModel
from lightning_da.callbacks.record_run import RecordRun, keep_checkpoint
from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError
from lightning_da.networks.weights import read_checkpoint
from lightning_da.store import client
from lightning_da.tracking import Fit, Tracker, checkpoints_folder


def join(members: Sequence[str], fits: Sequence[Fit], config: dict[str, Any]) -> Trainer:
    """Combines the networks of finished fits into a `MarginEnsemble`, tests it, and records it as a run.

    Args:
        members: Names of the members in messages.
        fits: The members.
        config: The configuration of a fit with the test data; its method is ignored.

    Returns:
        The trainer, whose logger has the run of the ensemble.

    Raises:
        ConfigError: If there are fewer than two members, a member is given twice, was not fitted by the command line,
            or was fitted on other classes, features or splits.
    """
    if len({fit.checkpoint for fit in fits}) < max(2, len(fits)):
        raise ConfigError(f"members: an ensemble needs two runs or more, each once, not {list(members)}")
    contents = [read_checkpoint(fit.checkpoint) for fit in fits]
    networks = []
    for member, content in zip(members, contents, strict=True):
        settings = content.get("hyper_parameters", {})
        if "_class_path" not in settings:
            raise ConfigError(f"members: {member!r} has no network arguments; create it with `lightning-da fit`")
        given = {key: value for key, value in settings.items() if not key.startswith("_")}
        networks.append({"class_path": settings["_class_path"], "init_args": given})
    config = copy.deepcopy(config)
    config["model"] = {"class_path": "lightning_da.methods.MarginEnsemble", "init_args": {"members": networks}}
    cli = TransferCLI("fit", config).build()
    for member, content in zip(members, contents, strict=True):
        cli.model.check_shapes(content["hyper_parameters"], f"members: {member!r}")
    _check_data(members, fits, cli)
    for network, content in zip(cli.model.networks, contents, strict=True):
        network.load_state_dict(content["state_dict"])
    trainer: Trainer = cli.trainer
    trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    if isinstance(trainer.logger, Tracker):
        (recorder,) = [callback for callback in trainer.callbacks if isinstance(callback, RecordRun)]  # type: ignore[attr-defined]
        names = [client().get_run(fit.run_id).info.run_name if fit.run_id else fit.checkpoint for fit in fits]
        started = [fit.checkpoint for fit in fits]
        recorder.record(trainer, cli.model, started, {"members": ", ".join(map(str, names))})
        path = checkpoints_folder(trainer.logger.info) / "last.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        keep_checkpoint(trainer.logger, str(path), f"joined by the {'mean' if cli.model.regresses else 'margin'}")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LogModel):
                callback.record(trainer, cli.model, str(path))
    return trainer


def _check_data(members: Sequence[str], fits: Sequence[Fit], cli: TransferCLI) -> None:
    here = cli.datamodule.fingerprint()
    for member, fit in zip(members, fits, strict=True):
        if fit.run_id is None:
            rank_zero_warn(f"the training samples of {member!r} are unknown: its run is not in this MLflow store")
        elif client().get_run(fit.run_id).data.tags.get("data") != here:
            raise ConfigError(
                f"members: {member!r} was fitted on other data or other splits, and may have been trained on test "
                "samples; combine runs with the same data configuration"
            )
