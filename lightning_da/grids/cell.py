"""One training of a grid, in a separate process.

With several devices, the process runs `python -m lightning_da.grids.cell FILE`, which starts one copy per device.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_da.callbacks.prune_trial import PruneTrial
from lightning_da.callbacks.stop_at_signal import CHECKPOINT as INTERRUPTED
from lightning_da.callbacks.stop_at_signal import StopAtSignal
from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError, InterruptionError, RunError
from lightning_da.grids.ensembles import join
from lightning_da.paths import write_whole
from lightning_da.process import prepare
from lightning_da.store import TrackingError, client, search_runs
from lightning_da.tracking import chosen_checkpoint, deciding_checkpoint, find_fit, find_resumable


class Order(NamedTuple):
    """The input of a process that runs a cell.

    Attributes:
        config: The configuration of the fit.
        start: Checkpoint file of the first stage; None without a first stage.
        members: Run ids of the members if the cell is an ensemble, otherwise empty.
        devices: Number of devices for the training.
    """

    config: dict[str, Any]
    start: str | None
    members: tuple[str, ...]
    devices: int


class Done(NamedTuple):
    """The result of a process: run id, and warnings from the project and the user's code."""

    run_id: str
    warnings: list[str]


def run_cell(order: Order, trial: PruneTrial | None = None) -> Done:
    """Fits and tests one cell; sets the tag `whole` of its run at the end.

    A cell that was interrupted goes on from its checkpoint, in the same run.

    Args:
        order: The cell.
        trial: If the cell is a trial of a search: the callback that may end it. Such a cell is not tested.

    Raises:
        ConfigError: If the cell cannot run.
        RunError: If the store does not take its results.
        KeyboardInterrupt: If the process receives SIGTERM.
    """
    order = _resumed(order)
    return _in_its_own_processes(order) if order.devices > 1 else _train(order, trial)


def _train(order: Order, trial: PruneTrial | None = None) -> Done:
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        try:
            trainer = _fit_and_test(order, trial)
        except (SIGTERMException, InterruptionError):
            raise KeyboardInterrupt from None
        except SystemExit as stop:
            raise ConfigError(str(stop).removeprefix("lightning-da: error: ")) from stop
    run_id: str = trainer.logger.run_id
    if trainer.is_global_zero:
        tracked = trainer.logger.experiment
        tracked.set_tag(run_id, "seconds", f"{time.monotonic() - start:.1f}")
        tracked.set_tag(run_id, "whole", "true")
        if not tracked.finish(wait=True):
            raise RunError("the MLflow store does not take its results; run the same command again when it answers")
    own = [str(w.message) for w in caught if "site-packages" not in w.filename and w.category is not DeprecationWarning]
    return Done(run_id, list(dict.fromkeys(own)))


def _resumed(order: Order) -> Order:
    """The order to go on with an interrupted run of the cell, if there is one; marks its other runs as killed."""
    tracker = order.config["trainer"]["logger"]["init_args"]
    experiment = client().get_experiment_by_name(tracker["experiment_name"])
    assert experiment is not None  # there is the grid's run
    parent = tracker["tags"]["mlflow.parentRunId"]
    unfinished = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status != 'FINISHED'"
    for run in search_runs(experiment.experiment_id, unfinished):
        if run.data.tags.get("cell") != tracker["tags"]["cell"] or "whole" in run.data.tags:
            continue
        try:
            checkpoint = find_resumable(run.info.run_id).checkpoint
        except TrackingError:
            checkpoint = ""
        if Path(checkpoint).name == INTERRUPTED:
            order = order._replace(config={**order.config, "ckpt_path": checkpoint}, start=None)
        elif run.info.status == "RUNNING":
            client().set_terminated(run.info.run_id, "KILLED")
    return order


def _fit_and_test(order: Order, trial: PruneTrial | None) -> Any:
    if order.members:
        return join(order.members, [find_fit(member) for member in order.members], order.config)
    cli = TransferCLI("fit", order.config).build(order.start)
    trainer = cli.trainer
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StopAtSignal):
            callback.always = True
    if trial is not None:
        trainer.callbacks.append(trial)  # type: ignore[attr-defined]
    cli.run()
    checkpoint = deciding_checkpoint(trainer)
    selected = checkpoint is not None and checkpoint.monitor is not None
    # the scores of the last step are there; those of a selected checkpoint, and accuracies, are not
    if trial is None or (not trial.pruned and (selected or trial.metric.startswith("val/"))):
        path = chosen_checkpoint(trainer) or None
        evaluate = trainer.test if trial is None else trainer.validate
        evaluate(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True, verbose=False)
    return trainer


def _in_its_own_processes(order: Order) -> Done:
    """Runs a cell on several devices, in a new program."""
    with TemporaryDirectory() as folder:
        path, answer = Path(folder) / "order.yaml", Path(folder) / "done.json"
        path.write_text(yaml.safe_dump([*order]))
        command = [sys.executable, "-m", "lightning_da.grids.cell", str(path)]
        with (Path(folder) / "log").open("w+") as log:
            # The processes end when this one does, however it ends: they read from a pipe that ends with it.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
            try:
                status = process.wait()
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGUSR2)  # they save a checkpoint; SIGTERM is ignored in a job
                process.wait()
                raise
            log.seek(0)
            said = log.read().strip()[-1000:]
        if status or not answer.exists():
            kind = ConfigError if status == 2 else RunError
            raise kind(said or f"its process ended with status {status}")
        return Done(*json.loads(answer.read_text()))


def _end_with_order() -> None:
    """Ends all processes of the cell when the process that ordered it is gone."""
    sys.stdin.read()
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _main(path: Path) -> None:
    prepare()
    threading.Thread(target=_end_with_order, daemon=True).start()
    done = _train(Order(*yaml.safe_load(path.read_text())))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with write_whole(path.parent / "done.json") as part:
            part.write_text(json.dumps(done))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
