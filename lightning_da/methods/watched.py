"""The base of the methods that may fail in the midst of training, and say so."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_da.methods.base import TransferModule
from lightning_da.methods.hooks import essential
from lightning_da.methods.signs import Signs


class WatchedModule(TransferModule):
    """A method that names the signs of its failure (see `Signs`); a training step puts values into `_watched`.

    Args:
        **kwargs: Arguments of `TransferModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.signs = Signs()
        self._watched: dict[str, Tensor] | None = None

    @property
    def logs_now(self) -> bool:
        """Whether the values that this step logs are written."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the trainer itself
        whole = (self.trainer.fit_loop.batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        return (whole or self.trainer.is_last_batch) and (self.trainer.global_step + 1) % max(every, 1) == 0

    @essential
    def on_after_backward(self) -> None:
        """Logs what is watched, and warns once of each sign of failure; the first tenth of training is passed over."""
        values, self._watched = self._watched, None
        if values is None:
            return
        shown = ("domain_gradient", "target_top_class", "discriminator_acc", "real_or_made_acc", "made_spread")
        self.log_dict({f"train/{name}": value for name, value in values.items() if name in shown})
        if self.progress >= 0.1:
            for sign in self.signs.add({k: float(value) for k, value in values.items()}, self.trainer.global_step):
                rank_zero_warn(f"{type(self).__name__}, step {self.trainer.global_step + 1}: {sign}")

    @essential
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["signs"] = dict(self.signs.found)

    @essential
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.signs.found |= checkpoint.get("signs", {})
