from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_da.errors import ConfigError
from lightning_da.methods.classifier import Classifier


class MarginEnsemble(Classifier):
    """An ensemble of trained networks: each sample is classified by the network with the largest margin.

    The margin is the difference between the two largest class probabilities. In a regression, which has no margin, the
    answer is the mean of all networks. Nothing is trained.

    Source: Huang et al., CCPR 2016, with two network sizes.

    Args:
        num_classes: Number of classes; set by the data module.
        input_shape: Shape of one sample; set by the data module.
        members: The networks, at least two. If margins are equal, the earlier network decides.

    Raises:
        ConfigError: If there are fewer than two members.
    """

    can_regress = True

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], members: list[Classifier]) -> None:
        super().__init__(num_classes, input_shape)
        self.save_hyperparameters(logger=False)
        if len(members) < 2:
            raise ConfigError(f"members: an ensemble needs at least two runs, not {len(members)}")
        if any(member.segments for member in members):
            raise ConfigError("members: an ensemble joins answers for a sample, and a segmentation answers for a pixel")
        self._members = members
        self.networks = nn.ModuleList(members)
        if self.regresses:
            self.label_scale = members[0].label_scale

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the concatenated features of all members, and log-probabilities (B, num_classes).

        In a regression the latter are the mean answer (B, 1), in the scale of the first member.
        """
        features, outputs = zip(*[member.classify(x) for member in self._members], strict=True)
        if self.regresses:
            answers = [member.label_scale.inverse(own) for member, own in zip(self._members, outputs, strict=True)]
            joined = self.label_scale(torch.stack(answers).mean(dim=0))
        else:
            joined = join_by_margin([logits.softmax(dim=1) for logits in outputs]).log()
        return torch.cat(features, dim=1), joined

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        for member in self._members:
            member.set_domain(domain)


def join_by_margin(probabilities: Sequence[Tensor]) -> Tensor:
    """Chooses, for each sample, the probabilities with the largest margin; the earlier member if margins are equal.

    Args:
        probabilities: Class probabilities of each member, shape (n, num_classes).

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
