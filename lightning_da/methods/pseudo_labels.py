from typing import Any

import torch
from torch import Tensor

from lightning_da.data.base import UNKNOWN
from lightning_da.errors import check_range
from lightning_da.methods.semi_supervised import SemiSupervised


class PseudoLabels(SemiSupervised):
    """Pseudo-labels: the network's own predictions as labels of the samples without a label, where it is certain.

    The loss of samples without labels is `1/n sum_i [max_c p_c(x_i) >= threshold] * cross_entropy(x_i, argmax_c p_c)`.

    Source: Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks", ICML
    workshop 2013, equation 15; the threshold is that of Sohn et al., "FixMatch", NeurIPS 2020, equation 4.
    https://arxiv.org/abs/2001.07685

    Args:
        threshold: The least probability of a pseudo-label; 0 takes all.
        **kwargs: Arguments of `SemiSupervised`.

    Raises:
        ConfigError: If `threshold` is not in [0, 1].
    """

    def __init__(self, threshold: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("threshold", threshold, 0, 1)
        self._threshold = threshold

    def unlabelled_loss(self, x: Tensor) -> Tensor:
        """Cross-entropy of the pseudo-labels; for the shapes see `SemiSupervised.unlabelled_loss`."""
        logits = self.classify(x)[1]
        certainty, labels = logits.detach().float().softmax(dim=1).max(dim=1)
        labels = torch.where(certainty >= self._threshold, labels, UNKNOWN)
        self.log("train/pseudo_labelled", (labels != UNKNOWN).float().mean())
        return self.loss_of_made_labels(logits, labels)
