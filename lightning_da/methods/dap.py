from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from lightning_da.errors import ConfigError, check_range
from lightning_da.methods.zero_shot import ZeroShot


class DAP(ZeroShot):
    """Direct attribute prediction: zero-shot learning by the attributes of a sample.

    The network predicts each attribute, beginning with its share among the seen classes. The score of a class is
    `sum_m log p(a_m | x) - log p(a_m)`, where a_m are its attributes and p(a_m) is the share of the seen classes that
    have the same value. An attribute that all seen classes share cannot be learnt and is left out.

    Source: Lampert, Nickisch and Harmeling, "Learning to detect unseen object classes by between-class attribute
    transfer", CVPR 2009, equation 2.
    https://doi.org/10.1109/CVPR.2009.5206594

    Args:
        num_attributes: As for `ZeroShot`.
        penalty: Weight of half the squared length of the head's weights in the loss of an attribute, `1 / (C n)` of a
            logistic regression with n samples. Other than the optimizer's `weight_decay` it leaves the intercepts out.
        **kwargs: Arguments of `ZeroShot`.

    Raises:
        ConfigError: If `penalty` is negative. When a fit begins, if an attribute is neither 0 nor 1, or the seen
            classes differ in none.
    """

    def __init__(self, num_attributes: int, penalty: float = 0.0, **kwargs: Any) -> None:
        super().__init__(num_attributes, **kwargs)
        check_range("penalty", penalty, 0)
        self._penalty = penalty
        self.set_head(num_attributes, AttributeScores(self.num_classes, num_attributes))

    @property
    def scores(self) -> "AttributeScores":
        """The second part of the head."""
        _, scores = self.head.children()
        return cast(AttributeScores, scores)

    def describe(self, descriptions: Tensor, seen: Tensor) -> None:
        wrong = descriptions[(descriptions != 0) & (descriptions != 1)]
        if len(wrong):
            raise ConfigError(
                f"data.descriptions: direct attribute prediction needs attributes of 0 and 1, not {wrong[0]:g}; change "
                "them, or use --config method/class_embedding.yaml"
            )
        share = descriptions[seen].mean(dim=0)
        if not ((share > 0) & (share < 1)).any():
            raise ConfigError("data.descriptions: the seen classes differ in no attribute; give more attributes")
        self.scores.descriptions.copy_(descriptions)
        self.scores.share.copy_(share)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the attributes and the penalty, the mean over attributes; for the shapes see `ZeroShot`."""
        wanted, logits = self.scores.descriptions[y], outputs + self.scores.offset
        losses = binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
        return losses + self._penalty / 2 * self.linear.weight.square().sum(dim=1).mean()


class AttributeScores(nn.Module):
    """From an output for each attribute (n, num_attributes) to the scores of the classes (n, num_classes)."""

    descriptions: Tensor
    share: Tensor

    def __init__(self, num_classes: int, num_attributes: int) -> None:
        super().__init__()
        self.register_buffer("descriptions", torch.zeros(num_classes, num_attributes))
        self.register_buffer("share", torch.zeros(num_attributes))

    @property
    def offset(self) -> Tensor:
        """The logit of an attribute that the network knows nothing of: that of its share among the seen classes."""
        return self.share.clamp(0.01, 0.99).logit()

    def forward(self, outputs: Tensor) -> Tensor:
        learnt = ((self.share > 0) & (self.share < 1)).float()
        has, has_not = self.descriptions * learnt, (1 - self.descriptions) * learnt
        share, logits = self.share.clamp(1e-6, 1 - 1e-6), (outputs + self.offset).float()
        prior = has @ share.log() + has_not @ (1 - share).log()
        return logsigmoid(logits) @ has.T + logsigmoid(-logits) @ has_not.T - prior
