import lightning as L
import torch
from torch import Tensor

from lightning_da.errors import RunError
from lightning_da.networks.weights import not_finite

REMEDY = "try a smaller learning rate, a smaller weight of the domain loss, or --trainer.gradient_clip_val 1"


class StopAtDivergence(L.Callback):
    """Stops a fit at the step whose loss is not finite, or at the end if a weight is not: such a network is no result.

    Raises:
        RunError: With the step, the part of the loss, and what to try.
    """

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        if trainer.strategy.reduce_boolean_decision(bool(loss.isfinite().all())):
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("_loss")}
        broken = [f"{name} is {value}" for name, value in logged.items() if not torch.tensor(value).isfinite()]
        named = ", ".join(broken) or f"the loss is {float(loss)}"
        raise RunError(f"training diverged at step {trainer.global_step + 1}: {named}; {REMEDY}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if broken := not_finite(pl_module.state_dict()):
            raise RunError(
                f"training diverged by step {trainer.global_step}: {len(broken)} tensors of the network are not "
                f"finite, the first is {broken[0]}; {REMEDY}"
            )
