"""Scores without target labels, in the course of training."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError, list_choices
from lightning_da.gather import gather
from lightning_da.transferability.scores import SCORES, Outputs

DEFAULT_SCORES = tuple(SCORES)


class LabelFreeScores(L.Callback):
    """Logs scores that choose a checkpoint or a method without target labels: `score/<name>`, higher is better.

    They are computed from the outputs of a validation, on the CPU. `trainer.callback_metrics` has them, so that a
    `ModelCheckpoint` can monitor them. Labels of the target are not read.

    Args:
        scores: Names in `lightning_da.transferability.scores.SCORES`.
        samples: The largest number of samples of each domain.
        every_n_steps: A validation with fewer training steps since the last scores is passed over, unless training
            ends with it; on small data an epoch is shorter than the computation.

    Raises:
        ConfigError: If a score is not known, none or one twice is named, or a number is too small.
    """

    def __init__(self, scores: tuple[str, ...] = DEFAULT_SCORES, samples: int = 1000, every_n_steps: int = 50) -> None:
        for name in scores:
            if name not in SCORES:
                raise ConfigError(f"scores: no score {name!r}; {list_choices(name, SCORES)}")
        if not scores or len(set(scores)) < len(scores):
            raise ConfigError(f"scores: name at least one score, and each once, not {list(scores)}")
        if samples < 8 or every_n_steps < 1:
            raise ConfigError(f"samples: at least 8, not {samples}; every_n_steps: at least 1, not {every_n_steps}")
        self.scores, self.samples, self.every_n_steps = tuple(scores), samples, every_n_steps
        self._next = 0
        self._kept: dict[str, list[tuple[Tensor, ...]]] | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        ends = trainer.max_steps == trainer.global_step or trainer.max_epochs == trainer.current_epoch + 1
        due = ends or trainer.global_step >= self._next or trainer.state.fn != "fit"
        self._kept = {domain: [] for domain in DOMAINS} if due and not trainer.sanity_checking else None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        if self._kept is None:
            return
        kept = self._kept[DOMAINS[dataloader_idx]]
        missing = -(-self.samples // trainer.world_size) - sum(len(y) for *_, y in kept)
        if missing > 0:
            kept.append(tuple(outputs[name][:missing].detach() for name in ("features", "logits", "y")))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._kept is None or not all(self._kept.values()):
            return
        source, target = (
            [gather(torch.cat(part)).float().cpu() for part in zip(*self._kept[domain], strict=True)]
            for domain in DOMAINS
        )
        self._kept, self._next = None, trainer.global_step + self.every_n_steps
        outputs = Outputs(*source, *target[:2])
        if min(len(outputs.source), len(outputs.target)) < 8 or not all(part.isfinite().all() for part in outputs):
            return  # too few samples, or the network has diverged
        pl_module.log_dict({f"score/{name}": SCORES[name](outputs) for name in self.scores}, sync_dist=False)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next = state_dict["next"]
