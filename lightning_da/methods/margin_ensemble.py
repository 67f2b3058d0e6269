from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_da.errors import ConfigError
from lightning_da.methods.classifier import Classifier


class MarginEnsemble(Classifier):
    """Several trained networks; for each sample the network with the largest margin decides.

    The margin is the difference of the two largest class probabilities. Nothing is trained.

    Source: Huang et al., CCPR 2016, who join two sizes of a network.

    Args:
        num_classes: Number of classes; the data module gives it.
        input_shape: Shape of one sample; the data module gives it.
        members: The networks, at least two. Of equal margins the earlier member's counts.

    Raises:
        ConfigError: If there are fewer than two members.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], members: list[Classifier]) -> None:
        super().__init__(num_classes, input_shape)
        self.save_hyperparameters(logger=False)
        if len(members) < 2:
            raise ConfigError(f"members: an ensemble needs two runs or more, not {len(members)}")
        self._members = members
        self.networks = nn.ModuleList(members)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (B, *input_shape) to the members' features, side by side, and log-probabilities (B, num_classes)."""
        found = [member.classify(x) for member in self._members]
        joined = join_by_margin([logits.softmax(dim=1) for _, logits in found])
        return torch.cat([features for features, _ in found], dim=1), joined.log()

    def set_domain(self, domain: str) -> None:
        for member in self._members:
            member.set_domain(domain)


def join_by_margin(probabilities: Sequence[Tensor]) -> Tensor:
    """Class probabilities of the member whose two likeliest classes are furthest apart; of equals, the earlier one's.

    Args:
        probabilities: The class probabilities of each member, shape (n, num_classes).

    Returns:
        Shape (n, num_classes).
    """
    chosen = probabilities[0]
    for other in probabilities[1:]:
        chosen = torch.where((_margin(chosen) >= _margin(other))[:, None], chosen, other)
    return chosen


def _margin(probabilities: Tensor) -> Tensor:
    best = probabilities.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
