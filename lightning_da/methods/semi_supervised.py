from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from lightning_da.data.base import DOMAINS
from lightning_da.errors import check_range
from lightning_da.methods.base import TransferModule, samples_of
from lightning_da.schedules import check_schedule, ramp


class SemiSupervised(TransferModule):
    """The base of semi-supervised learning: the task loss of few labels, and a loss of samples without labels.

    A subclass fills `unlabelled_loss`. With weight 0 the samples without labels are not looked at.

    Args:
        read_unlabelled: The domains whose samples are all read, without labels.
        unlabelled_weight: Final weight of the loss of samples without labels.
        unlabelled_schedule: From the progress of training in [0, 1] to a factor of that weight.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If the weight is negative.
    """

    reads_unlabelled = True

    def __init__(
        self,
        read_unlabelled: Literal["source", "target", "both"] = "target",
        unlabelled_weight: float = 1.0,
        unlabelled_schedule: Callable[[float], float] = ramp,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("unlabelled_weight", unlabelled_weight, 0)
        check_schedule("unlabelled_schedule", unlabelled_schedule)
        self._weight, self._schedule = unlabelled_weight, unlabelled_schedule
        self.without_labels: tuple[str, ...] = DOMAINS if read_unlabelled == "both" else (read_unlabelled,)
        self.unlabelled = tuple(domain for domain in self.without_labels if domain not in self.supervised)

    def unlabelled_loss(self, x: Tensor) -> Tensor:
        """The loss of samples without labels.

        Args:
            x: Samples of the domain that is set, shape (n, *input_shape).

        Returns:
            A scalar, the mean over the samples of all processes.
        """
        raise NotImplementedError

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        weight = self._weight * self._schedule(self.progress)
        for domain in self.without_labels if weight > 0 else ():
            self.set_domain(domain)
            extra = self.unlabelled_loss(samples_of(batch[domain]))
            self.log(f"train/{domain}_unlabelled_loss", extra)
            loss = loss + weight * extra
        self.set_domain("target")
        return loss
