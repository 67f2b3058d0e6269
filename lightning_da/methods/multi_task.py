from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.errors import check_range
from lightning_da.methods.own_classes import OwnClasses


class MultiTask(OwnClasses):
    """Multi-task learning: a shared backbone and bottleneck, and a head for each domain, both trained on labels.

    Source and target may have classes of their own. Each head chooses among the classes of its domain; the logits of
    the others are the smallest number there is.

    Source: Caruana, "Multitask learning", Machine Learning 1997, https://doi.org/10.1023/A:1007379606734

    Args:
        weighting: `given` adds the losses of the tasks with the weights below. `uncertainty` learns them (Kendall, Gal
            and Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, equation 10): the loss is
            `sum_i exp(-s_i) L_i + s_i / 2`, with a learned `s_i`, the logarithm of a variance; the weights below
            multiply each task's part.
        source_weight: Weight of the source's loss.
        target_weight: Weight of the target's loss.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If a weight is negative.
    """

    def __init__(
        self,
        weighting: Literal["given", "uncertainty"] = "given",
        source_weight: float = 1.0,
        target_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_on="both", **kwargs)
        weights = {"source_weight": source_weight, "target_weight": target_weight}
        for name, weight in weights.items():
            check_range(name, weight, 0)
        self.source_head = nn.Linear(self.head.in_features, self.num_classes)
        self.weights = tuple(weights.values())
        self.log_variances = nn.Parameter(torch.zeros(len(DOMAINS))) if weighting == "uncertainty" else None

    def head_of(self, domain: str) -> nn.Module:
        """The head of a domain."""
        return self.source_head if domain == "source" else self.head

    def module_name(self, layer: str, domain: str) -> str:
        return "source_head" if layer == "head" and domain == "source" else super().module_name(layer, domain)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        logits: Tensor = self.head_of(self._domain)(features)
        return features, self.among_own(logits)

    def own_loss(self, features: Tensor, y: Tensor, domain: str) -> Tensor:
        """The task loss of a domain among its own classes.

        Args:
            features: Shape (n, width).
            y: Labels, shape (n,), int64, `UNKNOWN` where the class is not known.
            domain: `source` or `target`.
        """
        own = self.own_classes(domain)
        place = torch.where(y == UNKNOWN, UNKNOWN, (own.cumsum(dim=0) - 1)[y])
        return self.task_loss(self.head_of(domain)(features)[:, own], place)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        x, ys, sizes = self.joined_samples(batch)
        features = self.features(x).split(list(sizes.values()))
        self.set_domain("target")
        losses = torch.stack([self.own_loss(*part) for part in zip(features, ys, DOMAINS, strict=True)])
        self.log_dict({f"train/{domain}_loss": loss for domain, loss in zip(DOMAINS, losses, strict=True)})
        if self.log_variances is not None:
            losses = (-self.log_variances).exp() * losses + self.log_variances / 2
            learned = zip(DOMAINS, self.log_variances, strict=True)
            self.log_dict({f"train/{domain}_log_variance": value for domain, value in learned})
        loss = (losses.new_tensor(self.weights) * losses).sum()
        self.log("train/task_loss", loss)
        return loss
