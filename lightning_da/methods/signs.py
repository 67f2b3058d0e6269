"""Signs that adaptation fails, from values that are logged in training."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

LOGGED_STEPS = 3
"""The number of logged steps over which a value is averaged."""


class Signs:
    """Watches an adaptation, and names what goes wrong and what to try.

    Attributes:
        found: The signs that were seen so far, each with what to try, in the order of their first appearance.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LOGGED_STEPS))

    def add(self, values: dict[str, float]) -> list[str]:
        """Adds the values of a logged step.

        Args:
            values: `target_top_class`, the largest share of the target that is predicted as one class, in [0, 1];
                `domain_gradient`, the norm of the gradient that the domain loss sends into the network;
                `discriminator_acc`, the accuracy of the domain discriminators, in [0, 1]; and `discriminator_loss`,
                their mean loss. Any of them may be missing.

        Returns:
            The signs that appear for the first time.
        """
        for name, value in values.items():
            self._recent[name].append(value)
        mean = {name: sum(seen) / len(seen) for name, seen in self._recent.items() if len(seen) == LOGGED_STEPS}
        new = [text for text in _read(mean) if text not in self.found]
        self.found += new
        return new


def _read(mean: dict[str, float]) -> Iterable[str]:
    if mean.get("domain_gradient") == 0:
        yield (
            "the domain loss sends no gradient into the network, so nothing is adapted: look for a `detach`, a "
            "`no_grad` or a constant output in domain_loss, or for frozen adapted layers"
        )
    if mean.get("target_top_class", 0) > 0.95:
        yield (
            "one class is predicted for nearly all target samples, so the network has collapsed: lower the learning "
            "rate or --model.domain_weight"
        )
    if mean.get("discriminator_acc", 0) > 0.995:
        yield (
            "the discriminator is at 100 % accuracy and gives no useful gradient: use a smaller --model.discriminator, "
            "or --model.standardize per_domain if the inputs differ in scale"
        )
    if mean.get("discriminator_loss", 0) > 1.25 * 2 * math.log(2):
        yield (
            f"the discriminator is worse than a guess (loss {mean['discriminator_loss']:.2f}, a guess has "
            f"{2 * math.log(2):.2f}), so the game of network and discriminator diverges: lower the learning rate or "
            "--model.domain_weight, or use batch norm in the backbone"
        )


def top_class_share(logits: Tensor) -> Tensor:
    """The largest share of samples that are predicted as one class, from logits (n, classes)."""
    return logits.argmax(dim=1).bincount().max() / len(logits)


def discriminator_accuracy(
    source: Sequence[Tensor], target: Sequence[Tensor], discriminators: Iterable[nn.Module]
) -> Tensor:
    """The mean accuracy of domain discriminators, each for the features (n, d) of a layer; positive is source."""
    right = [
        torch.cat([discriminator(s) > 0, discriminator(t) <= 0])
        for s, t, discriminator in zip(source, target, discriminators, strict=True)
    ]
    return torch.cat(right).float().mean()
