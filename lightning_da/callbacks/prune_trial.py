"""Ends a trial of `lightning-da search` early."""

from typing import Any

import lightning as L
from optuna.pruners import MedianPruner
from optuna.trial import Trial


class PruneTrial(L.Callback):
    """Reports the score of a trial at each tenth of the training, and ends a fit below the median of the others.

    It is the median of the trials that have come as far; there must be five. The first 40 % are left.

    Args:
        trial: The trial, whose study is in a storage that all processes share.
        metric: The metric to report, higher is better.

    Attributes:
        pruned: Whether the fit was ended.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self._trial, self.metric, self.pruned = trial, metric, False
        self._place = 0
        trial.study.pruner = MedianPruner(n_startup_trials=5, n_warmup_steps=4, n_min_trials=5)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:  # noqa: ARG002
        value = trainer.callback_metrics.get(self.metric)
        place = int(10 * trainer.global_step / trainer.estimated_stepping_batches)
        if trainer.state.fn != "fit" or place == self._place or value is None or not value.isfinite():
            return
        self._place = place
        self._trial.report(float(value), place)
        if self._trial.should_prune():
            self.pruned = trainer.should_stop = True
