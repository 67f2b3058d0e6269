"""Does adaptation pay? The verdict over several methods, without target labels."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

JUDGES = ("neighbours", "class_ami", "mmd", "bnm")
"""The scores that judge together, one of each kind: of source labels, of clusters, of distances, of predictions."""
SHARE = 0.75
"""In so many of them the chosen method must be clearly above the baseline."""
CHANCE = 0.025
"""Probability that one of several equal methods is clearly above the baseline by one score."""
MARGIN = 0.15
"""So far an accuracy lies outside the agreements with other methods: the largest distance on the embedded digits."""


@dataclass(frozen=True)
class Answers:
    """The answers of a trained network for a fixed sample of the target.

    Attributes:
        predicted: Predicted classes, shape (n,).
        scores: Scores without target labels by name, higher is better.
        source_acc: Accuracy on test samples of the source; 1 if it is not known.
    """

    predicted: ArrayLike
    scores: Mapping[str, float]
    source_acc: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """The chosen method and an estimate of its target accuracy.

    Attributes:
        method: The chosen method.
        best: The method with the best mean rank, which is not chosen if it is not clearly above the baseline.
        baseline: The method without adaptation.
        clear: The judges by which `best` is clearly above the baseline.
        judges: The scores that all runs have.
        seeds: The smallest number of seeds of a method; with one, differences between trainings are not known.
        estimate: Estimated accuracy of the chosen method; None with fewer than three methods.
        low: Lower end of its range.
        high: Upper end of its range.
    """

    method: str
    best: str
    baseline: str
    clear: tuple[str, ...]
    judges: tuple[str, ...]
    seeds: int
    estimate: float | None
    low: float | None
    high: float | None


def judges_of(runs: Iterable[Answers]) -> tuple[str, ...]:
    """The `JUDGES` that each run has a value of."""
    runs = list(runs)
    return tuple(name for name in JUDGES if all(math.isfinite(own.scores.get(name, math.nan)) for own in runs))


def mean_ranks(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean rank over scores, shape (m,), the best has the highest; equal values share a rank.

    Args:
        scores: A row for each of m candidates, a column for each score.

    Examples:
        >>> mean_ranks([[0.9, 0.2], [0.8, 0.1]]).tolist()
        [2.0, 1.0]
    """
    return np.asarray(rankdata(np.asarray(scores), axis=0).mean(axis=1))


def verdict(answers: Mapping[str, Sequence[Answers]], baselines: Collection[str]) -> Verdict:
    """Chooses a method, and estimates its accuracy.

    The candidate is the method with the best mean rank over `JUDGES`, each a mean over seeds: single scores err, each
    in its own way. It is chosen if it is clearly above the baseline by `SHARE` of them, and the baseline otherwise.
    Clearly is by so many standard errors that the best of as many equal methods is so with a probability of at most
    `CHANCE` (Bonferroni); the error is that of the seeds, whose variance is pooled over the methods. With one seed each
    difference counts.

    The estimate is the median agreement of the chosen networks with the networks of another method: networks with
    different errors agree on a sample mostly where they are right. The range goes from the lowest to the highest
    agreement, `MARGIN` wider at both ends. A network is seldom better on the target than on the source: both are at
    most the accuracy on the source, the range `MARGIN` wider. It is no bound: errors that all methods share are not
    seen.

    Source: the estimate by disagreement is that of Jiang et al., "Assessing generalization of SGD via disagreement",
    ICLR 2022, with other methods in place of other seeds.
    https://arxiv.org/abs/2106.13799

    Args:
        answers: The answers of each method, one for each seed, all for the same samples and with a judge in common.
        baselines: The methods without adaptation; the baseline is the one with the best mean rank.

    Examples:
        >>> poor, good = Answers([0] * 100, {"mmd": -0.3}), Answers([0, 1] * 50, {"mmd": -0.1})
        >>> verdict({"source_only": [poor], "dann": [good]}, ["source_only"]).method
        'dann'
    """
    judges = judges_of(own for runs in answers.values() for own in runs)
    values = [np.array([[own.scores[name] for name in judges] for own in runs]) for runs in answers.values()]
    means = {name: own.mean(axis=0) for name, own in zip(answers, values, strict=True)}
    rank = dict(zip(means, mean_ranks(list(means.values())), strict=True))
    baseline = max(baselines, key=rank.__getitem__)
    best = max([baseline, *answers], key=rank.__getitem__)
    spreads = [own.var(axis=0, ddof=1) for own in values if len(own) > 1]
    number = sum(1 / len(answers[name]) for name in (best, baseline))
    error = (np.mean(spreads, axis=0) * number) ** 0.5 if spreads else np.zeros(len(judges))
    beyond = means[best] - means[baseline] > NormalDist().inv_cdf(1 - CHANCE / max(len(answers) - 1, 1)) * error
    clear = tuple(name for name, is_clear in zip(judges, beyond, strict=True) if is_clear)
    method, seeds = best if len(clear) >= SHARE * len(judges) else baseline, min(map(len, answers.values()))
    found = Verdict(method, best, baseline, clear, judges, seeds, None, None, None)
    others = {name: _agreement(answers[method], runs) for name, runs in answers.items() if name != method}
    if len(others) < 2:
        return found
    on_source = np.mean([own.source_acc for own in answers[method]])
    agreements = np.array(list(others.values()))
    low, estimate, high = np.minimum([agreements.min(), np.median(agreements), agreements.max()], on_source)
    low, high = max(0.0, low - MARGIN), min(1.0, high + MARGIN)
    return replace(found, estimate=float(estimate), low=float(low), high=float(high))


def _agreement(one: Sequence[Answers], other: Sequence[Answers]) -> float:
    """How often networks of two methods predict the same class, the mean over all pairs of seeds."""
    return float(np.mean([np.equal(a.predicted, b.predicted).mean() for a in one for b in other]))
