"""Ends a trial of `lightning-da search` early."""

from typing import Any

import lightning as L
from optuna.pruners import MedianPruner
from optuna.trial import Trial


class PruneTrial(L.Callback):
    """Reports the score of a trial after each validation, and ends a fit that is worse than the median of the others.

    The first third of the steps and the first five trials are not ended.

    Args:
        trial: The trial, whose study is in a storage that all processes share.
        metric: The metric to report, higher is better.

    Attributes:
        pruned: Whether the fit was ended.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self._trial, self._metric, self.pruned = trial, metric, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        steps = int(trainer.estimated_stepping_batches)
        self._trial.study.pruner = MedianPruner(n_startup_trials=5, n_warmup_steps=steps // 3)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:  # noqa: ARG002
        value = trainer.callback_metrics.get(self._metric)
        if trainer.state.fn != "fit" or value is None or not value.isfinite():
            return
        self._trial.report(float(value), trainer.global_step)
        if self._trial.should_prune():
            self.pruned = trainer.should_stop = True
