from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_da.errors import RunError, check_range

REMEDY = "try a smaller learning rate, a smaller weight of the domain loss, or --trainer.gradient_clip_val 1"


SKIPPED = 50
"""Steps in a row that `16-mixed` may skip: a scale of 65,536 that is too large is halved 16 times."""


class StopAtDivergence(L.Callback):
    """Stops a fit at the step whose loss or gradient is not finite, or at the end if a weight is not.

    Such a network is no result. With `16-mixed`, gradients overflow at times, and the precision plugin skips the step;
    `SKIPPED` such steps in a row end the fit.

    Args:
        skip: How many steps of a fit may be skipped instead. A skipped step leaves the weights, and the statistics of
            batch norm and other buffers, as they were; it counts as a step. Their number is the metric
            `train/skipped_steps`, and a warning at the end.

    Raises:
        ConfigError: If `skip` is negative.
        RunError: With the step, the part of the loss or the layer, and what to try.
    """

    def __init__(self, skip: int = 0) -> None:
        check_range("skip", skip, 0)
        self.skip = skip
        self.skipped = 0
        """Steps of the fit that were skipped."""
        self._overflows, self._kept_at, self._broken = 0, -1, False
        self._buffers: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.skip and self._kept_at != trainer.global_step:  # with accumulation, as the step's first batch begins
            self._kept_at = trainer.global_step
            self._buffers = {name: value.clone() for name, value in pl_module.named_buffers()}

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        if trainer.strategy.reduce_boolean_decision(bool(loss.isfinite().all())):
            return
        if self._may_skip():
            self._broken = True
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("_loss")}
        broken = [f"{name} is {value}" for name, value in logged.items() if not torch.tensor(value).isfinite()]
        here = "in another process" if loss.isfinite().all() else f"the loss is {float(loss)}"
        raise self._diverged(trainer, ", ".join(broken) or here)

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: Optimizer,  # noqa: ARG002
    ) -> None:
        found = {name: value.grad for name, value in pl_module.named_parameters() if value.grad is not None}
        sizes = torch.stack([size.float() for size in torch._foreach_norm(list(found.values()))]) if found else None
        if sizes is None or (sizes.isfinite().all() and not self._broken):
            self._overflows = 0
            return
        self._overflows += 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and not self._broken and self._overflows <= SKIPPED:
            return
        broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
        if not (broken or self._broken):  # their squares are too large for a sum, but not they
            return
        if not self._may_skip():
            raise self._diverged(
                trainer,
                f"the gradients of {len(broken)} of {len(found)} tensors are not finite, the first is that of "
                f"{broken[0]}",
            )
        self.skipped, self._broken = self.skipped + 1, False
        pl_module.log("train/skipped_steps", float(self.skipped))
        for parameter in pl_module.parameters():
            parameter.grad = None
        for name, value in pl_module.named_buffers():
            if name in self._buffers:
                value.copy_(self._buffers[name])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        broken = [name for name, value in pl_module.state_dict().items() if not value.isfinite().all()]
        if broken:
            raise RunError(
                f"training diverged by step {trainer.global_step}: {len(broken)} tensors of the network are not "
                f"finite, the first is {broken[0]}; {REMEDY}"
            )
        if self.skipped:
            rank_zero_warn(f"{self.skipped} step(s) were skipped, since their loss or gradient was not finite")

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _may_skip(self) -> bool:
        return self.skipped < self.skip

    def _diverged(self, trainer: L.Trainer, reason: str) -> RunError:
        after = f" (after {self.skipped} skipped steps)" if self.skipped else ""
        return RunError(f"training diverged at step {trainer.global_step + 1}{after}: {reason}; {REMEDY}")
