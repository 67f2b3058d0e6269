"""Does adaptation pay? The verdict over several methods, without target labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHANCE = 0.025
"""Probability that a method is chosen if all have the same score."""
MARGIN = 0.15
"""So far an accuracy lies outside the agreements with other methods: the largest distance on the embedded digits."""


@dataclass(frozen=True)
class Answers:
    """The answers of a trained network for a fixed sample of the target.

    Attributes:
        predicted: Predicted classes, shape (n,).
        neighbours: Classes by the vote of the nearest source samples, shape (n,).
        source_acc: Accuracy on test samples of the source; 1 if it is not known.
    """

    predicted: ArrayLike
    neighbours: ArrayLike
    source_acc: float = 1.0

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether the two agree, shape (n,); the mean is the score `neighbours`."""
        return np.equal(self.predicted, self.neighbours)


@dataclass(frozen=True)
class Verdict:
    """The chosen method and an estimate of its target accuracy.

    Attributes:
        method: The chosen method.
        best: The method with the highest score, which is not chosen if the score is not clearly higher.
        scores: The score `neighbours` of each method, the mean over seeds.
        seeds: The smallest number of seeds of a method; with one, differences between trainings are not known.
        estimate: Estimated accuracy of the chosen method; None with fewer than three methods.
        low: Lower end of its range.
        high: Upper end of its range.
    """

    method: str
    best: str
    scores: dict[str, float]
    seeds: int
    estimate: float | None
    low: float | None
    high: float | None


def verdict(answers: Mapping[str, Sequence[Answers]], baseline: str) -> Verdict:
    """Chooses a method, and estimates its accuracy.

    The method with the highest score `neighbours` is chosen if its score is clearly higher than that of the baseline:
    by so many standard errors that the best of as many equal methods is so with a probability of at most `CHANCE`
    (Bonferroni). The error is that of the samples, which are the same for all, and of the seeds, whose variance is
    pooled over the methods. Otherwise the baseline is chosen.

    The estimate is the median agreement of the chosen networks with the networks of another method: networks with
    different errors agree on a sample mostly where they are right. The range goes from the lowest to the highest
    agreement, `MARGIN` wider at both ends. A network is seldom better on the target than on the source: both are at
    most the accuracy on the source, the range `MARGIN` wider. It is no bound: errors that all methods share are not
    seen.

    Source: the estimate by disagreement is that of Jiang et al., "Assessing generalization of SGD via disagreement",
    ICLR 2022, with other methods in place of other seeds.
    https://arxiv.org/abs/2106.13799

    Args:
        answers: The answers of each method, one for each seed, all for the same samples.
        baseline: The method without adaptation.

    Examples:
        >>> right, wrong = Answers([0, 1] * 50, [0, 1] * 50), Answers([0, 0] * 50, [0, 1] * 50)
        >>> verdict({"source_only": [wrong], "dann": [right]}, "source_only").method
        'dann'
    """
    hits = {name: np.mean([own.hits for own in runs], axis=0) for name, runs in answers.items()}
    scores = {name: float(own.mean()) for name, own in hits.items()}
    best = max([baseline, *scores], key=scores.__getitem__)
    gain = hits[best] - hits[baseline]
    spreads = [np.var([own.hits.mean() for own in runs], ddof=1) for runs in answers.values() if len(runs) > 1]
    between = float(np.mean(spreads)) * sum(1 / len(answers[name]) for name in (best, baseline)) if spreads else 0.0
    error = (gain.var() / len(gain) + between) ** 0.5
    certain = gain.mean() > NormalDist().inv_cdf(1 - CHANCE / max(len(answers) - 1, 1)) * error
    method, seeds = best if certain else baseline, min(map(len, answers.values()))
    others = {name: _agreement(answers[method], runs) for name, runs in answers.items() if name != method}
    if len(others) < 2:
        return Verdict(method, best, scores, seeds, None, None, None)
    on_source = np.mean([own.source_acc for own in answers[method]])
    agreements = np.array(list(others.values()))
    low, estimate, high = np.minimum([agreements.min(), np.median(agreements), agreements.max()], on_source)
    low, high = max(0.0, low - MARGIN), min(1.0, high + MARGIN)
    return Verdict(method, best, scores, seeds, float(estimate), float(low), float(high))


def _agreement(one: Sequence[Answers], other: Sequence[Answers]) -> float:
    """How often networks of two methods predict the same class, the mean over all pairs of seeds."""
    return float(np.mean([np.equal(a.predicted, b.predicted).mean() for a in one for b in other]))
