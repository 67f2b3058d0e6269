"""A fit that is asked to end keeps its progress."""

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L

from lightning_da.errors import InterruptionError
from lightning_da.tracking import Tracker, checkpoints_folder, deciding_checkpoint

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
CHECKPOINT = "interrupted.ckpt"


class StopAtSignal(L.Callback):
    """Ends a fit after the current step if the process gets Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2; saves it first.

    A second Ctrl-C ends it at once.

    Attributes:
        always: Whether a fit that keeps no checkpoints is saved too, in the folder of its run.

    Raises:
        InterruptionError: With the command that goes on.
    """

    def __init__(self) -> None:
        self.always = False
        self._asked = False
        self._said: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if threading.current_thread() is threading.main_thread():
            # a signal that is ignored, as Ctrl-C is by the processes of a sweep, stays ignored
            own = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in own}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ARG002
        if trainer.fit_loop._should_accumulate():
            return  # half of a step cannot be saved
        if not trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            return
        said = f"interrupted at step {trainer.global_step}"
        path = trainer.strategy.broadcast(self._path(trainer))
        if path is None:
            self._said = f"{said}; there is no checkpoint to go on from"
            return
        trainer.save_checkpoint(path, weights_only=False)
        named = trainer.logger.run_id if isinstance(trainer.logger, Tracker) else f"{path}, with the same options"
        self._said = f"{said}; to go on: lightning-da fit --ckpt_path {named}"

    def on_train_batch_start(self, *args: Any) -> None:  # noqa: ARG002
        self._stop()  # by now the metrics of the step are logged

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._stop()

    def _stop(self) -> None:
        if self._said is not None:
            raise InterruptionError(self._said)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._restore()
        path = self._path(trainer)
        if path is not None:
            path.unlink(missing_ok=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        self._restore()

    def _path(self, trainer: L.Trainer) -> Path | None:
        """The file of this fit in the first process; None in the others, and where a fit is not saved."""
        if not trainer.is_global_zero:
            return None
        checkpoint = deciding_checkpoint(trainer)
        if checkpoint is not None and checkpoint.dirpath is not None:
            return Path(checkpoint.dirpath) / CHECKPOINT
        if self.always and isinstance(trainer.logger, Tracker):
            return checkpoints_folder(trainer.logger.info) / CHECKPOINT
        return None

    def _note(self, number: int, _frame: Any) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
