"""Signs that adaptation fails, from values that are logged in training."""

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from functools import partial

from torch import Tensor

LOGGED_STEPS = 4
"""The number of logged steps over which a value is averaged."""
START_STEPS = 30
"""The first steps, in which a healthy network may predict one class too."""

PICTURE_STEPS = 200
"""The first steps, in which a healthy generator may make no pictures yet."""
LEAST_SPREAD = 0.05
"""The least share of the differences of real pictures that healthy made ones have."""


class Signs:
    """Watches an adaptation, and names what goes wrong and what to try.

    Attributes:
        found: The text of each sign that was seen so far, by its name, in the order of their first appearance.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._recent: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=LOGGED_STEPS))

    def add(self, values: dict[str, float], step: int) -> list[str]:
        """Adds the values of a logged step.

        Args:
            values: `target_top_class`, the largest share of the target that is predicted as one class, in [0, 1];
                `source_top_class`, the largest share of a class among the known source labels, in [0, 1];
                `domain_gradient`, the norm of the gradient of the domain loss at the adapted layers, without its
                weight; `discriminator_acc`, the accuracy of the domain discriminators, in [0, 1];
                `discriminator_loss`, their mean loss; `real_or_made_acc`, the accuracy of discriminators that tell
                made pictures from real ones, in [0, 1]; and `made_spread`, how much made pictures differ from each
                other, as a fraction of what real ones do. Any of them may be missing.
            step: The number of training steps so far.

        Returns:
            The texts of the signs that appear for the first time.
        """
        for name, value in values.items():
            self._recent[name].append(value)
        mean = {name: sum(seen) / len(seen) for name, seen in self._recent.items() if len(seen) == LOGGED_STEPS}
        new = {name: text for name, text in _read(mean, step) if name not in self.found}
        self.found |= new
        return list(new.values())


def _read(mean: dict[str, float], step: int) -> Iterator[tuple[str, str]]:
    """Names and texts of the signs in mean values at a step."""
    if not all(math.isfinite(value) for value in mean.values()):
        yield "not finite", "the domain loss or its gradient is not finite: lower the learning rate"
        return
    if mean.get("domain_gradient") == 0:
        yield (
            "no gradient",
            "the domain loss sends no gradient into the network, so nothing is adapted: look for a `detach`, a "
            "`no_grad` or a constant output in domain_loss, or for frozen adapted layers",
        )
    one_class = mean.get("target_top_class", 0) > 0.95 and mean.get("source_top_class", 0) < 0.8
    if one_class and step >= START_STEPS:
        yield (
            "one class",
            "one class is predicted for nearly all target samples, so the network has collapsed: lower the learning "
            "rate or --model.domain_weight",
        )
    if mean.get("discriminator_acc", 0) > 0.995:
        yield (
            "discriminator wins",
            "the discriminator is at 100 % accuracy and gives no useful gradient: use a smaller --model.discriminator, "
            "or --model.standardize per_domain if the inputs differ in scale",
        )
    if mean.get("discriminator_loss", 0) > 1.1 * 2 * math.log(2):
        yield (
            "discriminator loses",
            "the loss of the discriminator stays above 2 log 2 = 1.39, so it is worse than a guess, and the game of "
            "network and discriminator diverges: lower the learning rate or --model.domain_weight, or use batch norm "
            "in the backbone",
        )
    if step < PICTURE_STEPS:
        return
    if mean.get("made_spread", 1) < LEAST_SPREAD:
        yield (
            "one picture",
            "the generator makes nearly the same picture each time, so it has collapsed: lower the learning rate, or "
            "use a smaller discriminator (the backbone; of translations --model.width)",
        )
    if mean.get("real_or_made_acc", 0) > 0.995:
        yield (
            "made is told from real",
            "the discriminator tells made pictures from real ones without an error and gives no useful gradient: lower "
            "the learning rate, or use a larger generator (--model.generator; of translations --model.width)",
        )


def largest_share(classes: Tensor) -> Tensor:
    """The share of the most frequent class, from classes of any shape, int64."""
    return classes.flatten().bincount().max() / classes.numel()
