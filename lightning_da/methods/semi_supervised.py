from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.errors import check_range
from lightning_da.gather import mean_over_processes
from lightning_da.losses.precision import full_precision
from lightning_da.methods.base import TransferModule, samples_of
from lightning_da.schedules import check_schedule, ramp

NEVER = 2.0
"""A bound that no probability reaches."""


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

    def loss_of_made_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of labels that were made, the mean over the samples of all processes.

        Args:
            logits: Shape (n, number of labels).
            labels: Shape (n,), int64; where they are `UNKNOWN`, the loss is 0.
        """
        loss = full_precision(cross_entropy)(logits, labels, ignore_index=UNKNOWN, reduction="sum")
        return mean_over_processes(loss, len(labels))

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


def bounds_of_classes(probabilities: Tensor, share: float) -> Tensor:
    """The smallest probability in a share of the samples of each predicted class, those with the largest ones.

    Args:
        probabilities: Shape (n, num_classes).
        share: In [0, 1].

    Returns:
        Shape (num_classes,); `NEVER` for a class without such a sample.

    Examples:
        >>> bounds_of_classes(torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]), 0.5)
        tensor([0.7500, 2.0000])
    """
    largest, labels = probabilities.max(dim=1)
    bounds = torch.full_like(probabilities[0], NEVER)
    for label in labels.unique().tolist():
        own = largest[labels == label].sort(descending=True).values
        if number := round(share * len(own)):
            bounds[label] = own[number - 1]
    return bounds


def certain(probabilities: Tensor, bounds: Tensor) -> Tensor:
    """The most probable class of each sample, (n,), int64; `UNKNOWN` where its probability is below a bound.

    Args:
        probabilities: Shape (n, num_classes).
        bounds: Of each class, shape (num_classes,).

    Examples:
        >>> certain(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0.7, 0.5]))
        tensor([ 0, -1])
    """
    largest, labels = probabilities.max(dim=1)
    return torch.where(largest >= bounds[labels], labels, UNKNOWN)
