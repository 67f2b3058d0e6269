"""Boosting with many samples of the source and few labelled ones of the target."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.model_selection import KFold
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.validation import check_is_fitted

from lightning_da.classical.base import (
    Array,
    Labels,
    check_labels,
    check_rows,
    check_settings,
    find_source,
    fit_weighted,
)
from lightning_da.classical.source_only import SourceOnly
from lightning_da.errors import ConfigError, check_range, one_line

SHARES = (1 / 20, 1 / 2)
"""The shares of the weight at the start that `TrAdaBoost` chooses from."""
LEAST = 1e-10
"""The smallest error of a hypothesis: one without an error would have all the votes."""


def is_better(errors: Array, others: Array) -> bool:
    """Whether the mean of errors, (m,), is below that of others on the same rows by more than its standard error."""
    gain = others - errors
    return bool(gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5)


@dataclass(eq=False, repr=False, kw_only=True)
class TrAdaBoost(SourceOnly):
    """A vote of classifiers, of which each follows the source less where the one before erred, and the target more.

    In round t of N the hypothesis `h_t` learns from the n source rows and the labelled target rows with their weights,
    and has the weighted error `e_t` on those of the target. With `b = 1 / (1 + sqrt(2 ln n / N))` and
    `b_t = e_t / (1 - e_t)`, the weight of a source row on which it errs is multiplied by b, that of such a target row
    by `1 / b_t`. The hypotheses of the second half of the rounds vote with weight `ln(1 / b_t)`. The algorithm needs an
    error below 1/2: boosting ends before the first hypothesis with a larger one, as AdaBoost.M1 does.

    Source: Dai et al., "Boosting for transfer learning", ICML 2007, algorithm 1, which leaves the weights of the first
    round to the user. The paper has two classes; with more the vote is that of AdaBoost.M1.
    https://doi.org/10.1145/1273496.1273521

    Args:
        iterations: N, the largest number of rounds; the paper has 100.
        share: Share of the weight that the target rows have together in the first round; if they are a larger share
            of the rows, they keep that one. Rows of one domain begin with equal weights. `None` tries 1/20 and 1/2 on
            held-out folds of the target, and takes 1/2 if it errs less by more than the standard error.
        folds: Number of folds, at most that of the labelled target rows.
        random_state: Seed of the folds, and of the default classifier.
        estimator: The classifier, whose `fit` takes `sample_weight`. `None` is a linear support vector machine, as in
            the paper.

    Raises:
        ConfigError: In `fit`, if no target row has a label, or one of a class that the source does not have, or if -1
            is a class of the source.
    """

    iterations: int = 10
    share: float | None = None
    folds: int = 5
    random_state: int = 0
    estimator: BaseEstimator | None = None

    @property
    def reads_target_labels(self) -> bool:
        return True

    def fit(self, X: ArrayLike, y: ArrayLike, sample_domain: ArrayLike) -> Self:
        """Learns from labelled rows of both domains, in any order.

        Args:
            X: (n, d), float64.
            y: (n,), labels; -1 for rows of the target whose class is not known, which are not read. Beside labels that
                are text it is an array of objects.
            sample_domain: (n,), integers: positive for rows of the source, negative for those of the target.
        """
        check_range("iterations", self.iterations, 1)
        check_range("folds", self.folds, low=2)
        if self.share is not None:
            check_range("share", self.share, low=0, high=0.99)
        source, given, _ = self.split(X, y, sample_domain)
        labels = self.name_classes(given)
        target, positions = self.labelled_target(X, y, sample_domain)
        order = np.lexsort((positions, *target.T))  # so that the order of rows has no say in the folds
        self.features_ = np.concatenate([source, target[order]])
        self.labels_ = np.concatenate([labels, positions[order]])
        self.share_ = self._choice(len(source)) if self.share is None else self.share
        self.weights_, self.votes_ = self._boosted(np.arange(len(self.labels_)), len(source), self.share_)
        self.fit_estimator()
        return self

    def _choice(self, n: int) -> float:
        """The share that errs less on held-out target rows; n rows are of the source."""
        rows, wrong = np.arange(len(self.labels_)), np.empty((len(SHARES), len(self.labels_) - n))
        if wrong.shape[1] < 2:
            return SHARES[0]
        splits = KFold(min(self.folds, wrong.shape[1]), shuffle=True, random_state=self.random_state)
        for train, test in splits.split(rows[n:]):
            used = np.concatenate([rows[:n], n + train])
            for errors, share in zip(wrong, SHARES, strict=True):
                vote = self._vote(used, *self._boosted(used, n, share))
                errors[test] = vote.predict(self.features_[n + test]) != self.labels_[n + test]
        return SHARES[int(is_better(wrong[1], wrong[0]))]

    def _boosted(self, rows: Labels, n: int, share: float) -> tuple[Array, Array]:
        """The weights of rows, the first n of the source, in the rounds that vote, (rounds, rows), and their votes."""
        own, labels = np.arange(len(rows)) >= n, self.labels_[rows]
        share = max(share, own.mean())
        weights = np.where(own, share / own.sum(), (1 - share) / n)
        less = 1 / (1 + (2 * np.log(n) / self.iterations) ** 0.5)
        kept: list[Array] = []
        votes: list[float] = []
        for _ in range(self.iterations):
            weights = weights / weights.mean()
            wrong = self._hypothesis(rows, weights).predict(self.features_[rows]) != labels
            error = np.clip(weights[own] @ wrong[own] / weights[own].sum(), LEAST, 0.5)
            if kept and error > 0.5 - 1e-9:
                break
            kept.append(weights)
            votes.append(np.log((1 - error) / error))
            weights = weights * np.where(own, np.exp(votes[-1] * wrong), less**wrong)
        first = (len(kept) + 1) // 2 - 1  # of the rounds that vote
        return np.array(kept[first:]), np.array(votes[first:])

    def _hypothesis(self, rows: Labels, weights: Array) -> Any:
        default = LinearSVC(random_state=self.random_state)
        learner = default if self.estimator is None else clone(self.estimator)
        return fit_weighted(learner, self.features_[rows], self.labels_[rows], weights)

    def _vote(self, rows: Labels, weights: Array, votes: Array) -> "Vote":
        return Vote([self._hypothesis(rows, own) for own in weights], votes, len(self.classes_))

    def fit_estimator(self) -> None:
        self.estimator_ = self._vote(np.arange(len(self.labels_)), self.weights_, self.votes_)

    def predict_proba(self, X: ArrayLike, sample_domain: ArrayLike | None = None) -> Array:
        """The share of the votes for each class, (n, C); the arguments are those of `transform`."""
        rows = self.transform(X, sample_domain)
        shares: Array = self.estimator_.predict_proba(rows)
        return shares


class Vote:
    """A weighted vote of fitted classifiers.

    Args:
        hypotheses: The classifiers, whose classes are 0 to `classes` - 1.
        votes: Their weights, (rounds,); if all are 0, each has the same.
        classes: The number of classes.
    """

    def __init__(self, hypotheses: list[Any], votes: Array, classes: int) -> None:
        self.hypotheses, self.votes, self.classes = hypotheses, votes if votes.any() else np.ones_like(votes), classes

    def predict_proba(self, X: Array) -> Array:
        """The share of the votes for each class, (n, classes)."""
        found = np.zeros((len(X), self.classes))
        for hypothesis, vote in zip(self.hypotheses, self.votes, strict=True):
            found[np.arange(len(X)), hypothesis.predict(X)] += vote
        shares: Array = found / self.votes.sum()
        return shares

    def predict(self, X: Array) -> Labels:
        """The class with most votes, (n,)."""
        most: Labels = self.predict_proba(X).argmax(axis=1)
        return most


@dataclass(eq=False, repr=False, kw_only=True)
class TrAdaBoostR2(RegressorMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Boosting of a regression in two stages: the source's weights fall in steps; each step boosts the target.

    Step t of S gives the target rows the share `m / (n + m) + t / (S - 1) (1 - m / (n + m))` of the weight, t = 0 to
    S - 1. It takes that from the source rows by factors `b^e_i`, where `e_i` is the error of row i as a share of the
    largest. Held-out folds of the target choose the step by the squared error of its AdaBoost.R2, in which the source's
    weights are fixed: a later step takes the place of an earlier one if the mean difference is more than its standard
    error, so that few rows do not choose by chance. AdaBoost.R2 predicts the weighted median of its members.

    Source: Pardoe and Stone, "Boosting for regression transfer", ICML 2010, algorithm 3, which takes the smallest error
    as it is; Drucker, "Improving regressors using boosting techniques", ICML 1997. The error of a member is that on the
    target rows.
    https://www.cs.utexas.edu/~dpardoe/papers/ICML10.pdf, https://dl.acm.org/doi/10.5555/645526.657132

    Args:
        steps: S.
        iterations: Members of an AdaBoost.R2.
        folds: Number of folds, at most that of the labelled target rows.
        estimator: The regressor, whose `fit` takes `sample_weight`. `None` is a tree of depth 6.
        random_state: Seed of the folds.

    Raises:
        ConfigError: In `fit`, if a source row or all but one of the target rows have no value.
    """

    steps: int = 10
    iterations: int = 10
    folds: int = 5
    estimator: BaseEstimator | None = None
    random_state: int = 0

    def fit(self, X: ArrayLike, y: ArrayLike, sample_domain: ArrayLike) -> Self:
        """Learns from rows of both domains, in any order.

        Args:
            X: (n, d).
            y: (n,), values; NaN for rows of the target whose value is not known, which are not read.
            sample_domain: (n,), integers: positive for rows of the source, negative for those of the target.
        """
        check_settings(self)
        check_range("steps", self.steps, low=2)
        check_range("iterations", self.iterations, low=1)
        check_range("folds", self.folds, low=2)
        x = check_rows(self, X, reset=True)
        values = _numbers(check_labels(self, y, len(x)))
        source, known = find_source(sample_domain, len(x)), ~np.isnan(values)
        if (source & ~known).any():
            raise ConfigError(f"y: {int((source & ~known).sum())} source rows have no value; fill or drop them")
        n, m = int(source.sum()), int((~source & known).sum())
        if m < 2 or n < 1:
            raise ConfigError(f"y: {n} source rows and {m} target rows have a value; give 1 sample and 2 or more")
        x, values = (np.concatenate([part[source], part[~source & known]]) for part in (x, values))
        weights, best = np.full(n + m, 1 / (n + m)), np.zeros(m)
        folds = list(KFold(min(self.folds, m), shuffle=True, random_state=self.random_state).split(x[n:]))
        for step in range(self.steps):
            held_out = self._held_out(x, values, weights, n, folds)
            if step == 0 or is_better(held_out, best):
                best, kept, self.share_ = held_out, weights, float(weights[n:].sum())
            if step + 1 < self.steps:
                share = m / (n + m) + (step + 1) / (self.steps - 1) * (1 - m / (n + m))
                errors = _shares(values, self._learnt(x, values, weights).predict(x))
                weights = _lowered(weights, errors, n, share)
        self.members_, self.votes_ = self._boosted(x, values, kept, n)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """The values, (n,), of target rows (n, d)."""
        check_is_fitted(self)
        return _median(self.members_, self.votes_, check_rows(self, X, reset=False))

    def _learnt(self, x: Array, y: Array, weights: Array) -> Any:
        default = DecisionTreeRegressor(max_depth=6, random_state=self.random_state)
        learner = default if self.estimator is None else clone(self.estimator)
        return fit_weighted(learner, x, y, weights * len(x))

    def _held_out(self, x: Array, y: Array, weights: Array, n: int, folds: list[Any]) -> Array:
        """The squared errors of the target rows, (m,), each of its own fold."""
        errors = np.empty(len(x) - n)
        for train, test in folds:
            rows = np.concatenate([np.arange(n), n + train])
            own = weights[rows]
            own[n:] *= weights[n:].sum() / own[n:].sum()
            found = _median(*self._boosted(x[rows], y[rows], own, n), x[n + test])
            errors[test] = (found - y[n + test]) ** 2
        return errors

    def _boosted(self, x: Array, y: Array, weights: Array, n: int) -> tuple[list[Any], Array]:
        """The members of AdaBoost.R2, which changes the weights of the target rows alone, and their votes."""
        members: list[Any] = []
        total, votes = weights[n:].sum(), []
        for _ in range(self.iterations):
            member = self._learnt(x, y, weights)
            errors = _shares(y[n:], member.predict(x[n:]))
            error = float(np.clip(weights[n:] @ errors / total, LEAST, None))
            if error >= 0.5 and members:
                break
            members.append(member)
            votes.append(np.log((1 - error) / error) if error < 0.5 else 1.0)
            if not LEAST < error < 0.5:
                break
            own = weights[n:] * (error / (1 - error)) ** (1 - errors)
            weights = np.concatenate([weights[:n], own * total / own.sum()])
        return members, np.array(votes)


def _numbers(y: Any) -> Array:
    try:
        values: Array = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"y: {one_line(error)}; give numbers, and NaN where the value is not known") from error
    if np.isinf(values).any():
        raise ConfigError("y: a value is infinite; fill or drop its row")
    return values


def _shares(y: Array, found: Array) -> Array:
    """Errors as shares of the largest, (n,)."""
    errors = np.abs(y - found)
    shares: Array = errors / max(errors.max(), 1e-300)
    return shares


def _lowered(weights: Array, errors: Array, n: int, share: float) -> Array:
    """The weights after a step: those of the first n rows times `b^errors`, such that the others have the share."""
    own, others = weights[:n], weights[n:].sum()

    def excess(log_b: float) -> float:
        rest = (own * np.exp(log_b * errors[:n])).sum()
        return float(others / (others + rest) - share)

    lowest = -1e6
    log_b = lowest if excess(lowest) <= 0 else brentq(excess, lowest, 0)  # rows without an error keep their weight
    lowered: Array = np.concatenate([own * np.exp(log_b * errors[:n]), weights[n:]])
    lowered /= lowered.sum()
    return lowered


def _median(members: list[Any], votes: Array, x: Array) -> Array:
    """The weighted median of what the members predict, (n,)."""
    found = np.array([member.predict(x) for member in members])
    order = found.argsort(axis=0)
    above = votes[order].cumsum(axis=0) >= votes.sum() / 2
    chosen = np.take_along_axis(order, above.argmax(axis=0)[None], axis=0)
    median: Array = np.take_along_axis(found, chosen, axis=0)[0]
    return median
