import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_da.errors import RunError

REMEDY = "try a smaller learning rate, a smaller weight of the domain loss, or --trainer.gradient_clip_val 1"


SKIPPED = 50
"""Steps in a row that may be skipped: a scale of 65,536 that is too large is halved 16 times."""


class StopAtDivergence(L.Callback):
    """Stops a fit at the step whose loss or gradient is not finite, or at the end if a weight is not.

    Such a network is no result. With `16-mixed`, gradients overflow at times, and the precision plugin skips the step;
    `SKIPPED` such steps in a row end the fit.

    Raises:
        RunError: With the step, the part of the loss or the layer, and what to try.
    """

    _skipped = 0

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        if trainer.strategy.reduce_boolean_decision(bool(loss.isfinite().all())):
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("_loss")}
        broken = [f"{name} is {value}" for name, value in logged.items() if not torch.tensor(value).isfinite()]
        here = "in another process" if loss.isfinite().all() else f"the loss is {float(loss)}"
        named = ", ".join(broken) or here
        raise RunError(f"training diverged at step {trainer.global_step + 1}: {named}; {REMEDY}")

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: Optimizer,  # noqa: ARG002
    ) -> None:
        found = {name: value.grad for name, value in pl_module.named_parameters() if value.grad is not None}
        sizes = torch.stack([size.float() for size in torch._foreach_norm(list(found.values()))]) if found else None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._skipped = 0 if sizes is None or sizes.isfinite().all() else self._skipped + 1
        if self._skipped <= (SKIPPED if scaled else 0):
            return
        broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
        if broken:  # otherwise their squares are too large for a sum, but not they
            raise RunError(
                f"training diverged at step {trainer.global_step + 1}: the gradients of {len(broken)} of {len(found)} "
                f"tensors are not finite, the first is that of {broken[0]}; {REMEDY}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        broken = [name for name, value in pl_module.named_parameters() if not value.isfinite().all()]
        if broken:
            raise RunError(
                f"training diverged by step {trainer.global_step}: {len(broken)} tensors of the network are not "
                f"finite, the first is {broken[0]}; {REMEDY}"
            )
