"""Scores without target labels, in the course of training."""

import math
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import ConfigError, list_choices
from lightning_da.methods import TransferModule
from lightning_da.tracking import Tracker
from lightning_da.transferability.class_sets import FOREIGN, MANY, foreign, missing
from lightning_da.transferability.depth import FEWEST, Features, one_thread
from lightning_da.transferability.features import collect
from lightning_da.transferability.scores import SCORES, Outputs

DEFAULT_SCORES = tuple(SCORES)
ANSWERS = "target_sample.json"
"""Artifact with the answers of the trained network for the target's sample: the verdict of `sweep` compares them."""


class LabelFreeScores(L.Callback):
    """Logs scores that choose a checkpoint or a method without target labels: `score/<name>`, higher is better.

    With labels of the source it logs `sets/missing`, too: the share of the source's classes that the target seems to
    lack. If the network is pretrained and the target has no labels, `sets/foreign` is logged before training: the share
    of target samples that are near no class of the source (see `lightning_da.transferability.class_sets`).

    They are computed after a validation and at the end of a fit, from a fixed sample of both validation splits; wide
    features are projected to 256 dimensions. `trainer.callback_metrics` has them, so that a `ModelCheckpoint` can
    monitor them. Labels of the target are not used. There are no scores if there is one domain, with labels, or if the
    network gives embeddings, numbers or masks.

    Args:
        scores: Names in `lightning_da.transferability.scores.SCORES`.
        samples: The largest number of samples of each domain.
        every_n_steps: A validation with fewer training steps since the last scores is passed over: on small data an
            epoch is shorter than the computation.

    Raises:
        ConfigError: If a score is not known, none or one twice is named, or a number is too small.
    """

    def __init__(self, scores: tuple[str, ...] = DEFAULT_SCORES, samples: int = 1000, every_n_steps: int = 50) -> None:
        for name in scores:
            if name not in SCORES:
                raise ConfigError(f"scores: no score {name!r}; {list_choices(name, SCORES)}")
        if not scores or len(set(scores)) < len(scores):
            raise ConfigError(f"scores: name at least one score, and each once, not {list(scores)}")
        if samples < FEWEST or every_n_steps < 1:
            raise ConfigError(
                f"samples: at least {FEWEST}, not {samples}; every_n_steps: at least 1, not {every_n_steps}"
            )
        self.scores, self.samples, self.every_n_steps = tuple(scores), samples, every_n_steps
        self._last: int | None = None
        self._answers: dict[str, list[Any]] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = cast(TransferModule, pl_module)
        data = cast(DomainPairDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        if trainer.ckpt_path is not None or module.starts_random() or data.class_sets != "closed":
            return
        if data.classes_in("target"):  # their names have been compared
            return
        found = self._collect(trainer, module, ("bottleneck",)).get("bottleneck")
        if found is None:
            return
        share = foreign(found.source, found.y_source, found.target)
        if math.isnan(share):
            return
        if trainer.logger is not None:
            trainer.logger.log_metrics({"sets/foreign": share}, trainer.global_step)
        if share > MANY:
            rank_zero_warn(FOREIGN.format(share))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        training = trainer.state.fn == "fit"
        due = not training or self._last is None or trainer.global_step >= self._last + self.every_n_steps
        if due and not trainer.sanity_checking:
            pl_module.log_dict(self._compute(trainer, pl_module), sync_dist=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Training may end within an epoch, without a validation.
        if trainer.global_step != self._last:
            values = self._compute(trainer, pl_module)
            if trainer.logger is not None and values:
                trainer.logger.log_metrics(values, trainer.global_step)
        if isinstance(trainer.logger, Tracker) and trainer.is_global_zero and self._answers is not None:
            trainer.logger.experiment.log_dict(trainer.logger.run_id, self._answers, ANSWERS)

    def _compute(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
        """The scores of the present weights; none if there are too few samples or the network has diverged."""
        self._last, self._answers = trainer.global_step, None
        found = self._collect(trainer, cast(TransferModule, module), ("bottleneck", "head"))
        if not found:
            return {}
        features, logits = found["bottleneck"], found["head"]
        outputs = Outputs(features.source, logits.source, features.y_source, features.target, logits.target)
        self._answers = {"predicted": logits.target.argmax(dim=1).tolist()}
        with one_thread():
            values = {f"score/{name}": SCORES[name](outputs) for name in self.scores}
        if outputs.known.any():
            values["sets/missing"] = missing(outputs.source_labels, outputs.target_logits)
        return values

    def _collect(self, trainer: L.Trainer, module: TransferModule, layers: tuple[str, ...]) -> dict[str, Features]:
        """Features of two domains with classes; none of other data, and none if the network has diverged."""
        data = cast(DomainPairDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        if len(data.domains) < 2 or getattr(module, "embeds", False) or data.regression or data.masks:
            return {}
        found = collect(trainer, module, data, layers, self.samples)
        is_whole = all(part.isfinite().all() for own in found.values() for part in (own.source, own.target))
        return found if is_whole else {}

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = state_dict["last"]
