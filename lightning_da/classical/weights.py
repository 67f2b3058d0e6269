"""Weights of the source's samples, for a classifier that learns as if they were of the target."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

from lightning_da.classical.base import Array, Labels, check_probabilities, fit_weighted
from lightning_da.classical.source_only import SourceOnly
from lightning_da.errors import check_range


class Weighted(SourceOnly):
    """A classifier that learns from weighted samples of the source; `_fit` of a subclass sets `weights_`.

    Args:
        estimator: The classifier, whose `fit` takes `sample_weight`. `None` is logistic regression.
    """

    target_share: float = 0.0
    """Share of the weight that labelled samples of the target have together; with 0 no label of the target is read."""
    weights_: Array
    """The weight of each sample of `features_`, (n,), not negative: those of the source, then those of the target."""

    @property
    def reads_target_labels(self) -> bool:
        return self.target_share > 0

    def fit(self, X: ArrayLike, y: ArrayLike, sample_domain: ArrayLike) -> Self:
        """Learns from the rows of both domains, in any order.

        Args:
            X: (n, d), float64.
            y: (n,), labels; -1 for rows of the target whose class is not known. With `target_share` 0 the labels of
                target rows are not read.
            sample_domain: (n,), integers: positive for rows of the source, negative for those of the target.

        Raises:
            ConfigError: As `Adapter.fit` and, with `target_share`, as `labelled_target`.
        """
        check_range("target_share", self.target_share, low=0, high=0.99)
        return super().fit(X, y, sample_domain)

    def _add(self, rows: Array, labels: Labels) -> None:
        """Gives labelled rows of the target their share of the weight; the mean weight stays."""
        mean, number = self.weights_.mean(), len(self.labels_) + len(labels)
        self.features_, self.labels_ = np.concatenate([self.features_, rows]), np.append(self.labels_, labels)
        own = np.full(len(labels), self.target_share / len(labels))
        shares = np.append((1 - self.target_share) * self.weights_ / self.weights_.sum(), own)
        self.weights_ = mean * number * shares

    def final_estimator(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.estimator is None else clone(self.estimator)

    def fit_estimator(self) -> None:
        self._learn(self.features_)

    def _learn(self, rows: Array) -> None:
        """Fits the classifier to the rows, (n, k), of `features_` with their weights."""
        self.estimator_ = fit_weighted(self.final_estimator(), rows, self.labels_, self.weights_)


@dataclass(eq=False, repr=False, kw_only=True)
class KMM(Weighted):
    """Kernel mean matching: the weighted mean of the source and the mean of the target agree in the kernel's space.

    The weights `b` minimise `b^T K b / 2 - k^T b` with `k_i = n_s / n_t sum_j k(x_i, x_j)`, subject to
    `0 <= b_i <= bound` and `|sum_i b_i - n_s| <= n_s slack`. The kernel is `exp(-gamma ||x - x'||^2)`.

    Source: Huang et al., "Correcting sample selection bias by unlabeled data", NIPS 2006. Solved by
    accelerated projected gradients (Beck and Teboulle, 2009), which start anew where the objective grows.
    https://papers.nips.cc/paper_files/paper/2006/hash/a2186aa7c086b46ad4e8bf81e2a3a19b-Abstract.html,
    https://doi.org/10.1137/080716542

    Args:
        bound: Largest weight.
        slack: Largest deviation of the mean weight from 1. `None` is the paper's `(sqrt(n_s) - 1) / sqrt(n_s)`.
        gamma: Of the kernel. `None` is 1 / median of the squared distances.
        steps: Largest number of gradient steps.
        target_share: As for `Weighted`.
        estimator: As for `Weighted`.
    """

    bound: float = 1000.0
    slack: float | None = None
    gamma: float | None = None
    steps: int = 5000
    target_share: float = 0.0
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:  # noqa: ARG002
        check_range("bound", self.bound, 1)
        n = len(source)
        slack = 1 - n**-0.5 if self.slack is None else self.slack
        gamma = _gamma(source, target) if self.gamma is None else self.gamma
        K = rbf_kernel(source, gamma=gamma)
        k = n * rbf_kernel(source, target, gamma=gamma).mean(axis=1)
        limits = (n * max(1 - slack, 0.0), n * (1 + slack))
        rate = 1 / np.linalg.eigvalsh(K)[-1]
        weights = ahead = np.ones(n)
        speed = 1.0
        for _ in range(self.steps):
            before, weights = weights, _project(ahead - rate * (K @ ahead - k), self.bound, limits)
            change = weights - before
            if (ahead - weights) @ change > 0:  # against the gradient
                ahead, speed = weights, 1.0
                continue
            if np.abs(change).max() < 1e-9 * max(weights.max(), 1):
                break
            faster = (1 + (1 + 4 * speed**2) ** 0.5) / 2
            ahead, speed = weights + (speed - 1) / faster * change, faster
        self.weights_ = weights


def _project(b: Array, bound: float, limits: tuple[float, float]) -> Array:
    """The nearest point with values in [0, bound], whose sum is within limits."""

    def moved(shift: float) -> Array:
        clipped: Array = np.clip(b - shift, 0, bound)
        return clipped

    total = moved(0).sum()
    wanted = min(max(total, limits[0]), limits[1])
    if wanted == total:
        return moved(0)
    shift = brentq(lambda shift: moved(shift).sum() - wanted, b.min() - bound, b.max(), xtol=1e-14)
    return moved(shift)


def _gamma(source: Array, target: Array) -> float:
    """1 / median of the squared distances of source to target."""
    return float(1 / max(np.median(euclidean_distances(source, target, squared=True)), 1e-12))


@dataclass(eq=False, repr=False, kw_only=True)
class KLIEP(Weighted):
    """Kullback-Leibler importance estimation: the weights that bring the source nearest to the target.

    The weight is a mixture `w(x) = sum_l a_l k(x, c_l)` of kernels `exp(-gamma ||x - c_l||^2)` at target samples. It
    maximises `sum_j log w(x_j)` over the target, subject to `a >= 0` and a mean of 1 over the source.

    Source: Sugiyama et al., "Direct importance estimation for covariate shift adaptation", AISM 2008. It is the
    likelihood of a mixture, whose maximum the steps of expectation maximisation find; they keep both constraints.
    https://doi.org/10.1007/s10463-008-0197-x

    Args:
        gamma: Of the kernel. `None` chooses, by the likelihood of five held-out folds of the target,
            among 1 / median of the squared distances, times 0.1 to 100.
        centres: Largest number of kernels.
        steps: Number of steps.
        random_state: Seed that draws the centres and the folds.
        target_share: As for `Weighted`.
        estimator: As for `Weighted`.
    """

    gamma: float | None = None
    centres: int = 100
    steps: int = 200
    random_state: int = 0
    target_share: float = 0.0
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:  # noqa: ARG002
        check_range("centres", self.centres, 1)
        by_value = np.lexsort(target.T)  # so that the order of rows has no say
        order = by_value[np.random.default_rng(self.random_state).permutation(len(target))]
        centres, gamma = target[order[: self.centres]], self.gamma
        if gamma is None:
            folds = np.array_split(order, min(5, len(target)))

            def likelihood(gamma: float) -> float:
                held = [self._mixture(source, np.delete(target, fold, axis=0), centres, gamma) for fold in folds]
                likelihoods = [
                    np.log(rbf_kernel(target[fold], centres, gamma) @ a + 1e-300).mean()
                    for fold, a in zip(folds, held, strict=True)
                ]
                return float(np.mean(likelihoods))

            gamma = max(_gamma(source, target) * np.logspace(-1, 2, 7), key=likelihood)
        self.weights_ = rbf_kernel(source, centres, gamma) @ self._mixture(source, target, centres, gamma)

    def _mixture(self, source: Array, target: Array, centres: Array, gamma: float) -> Array:
        """The shares of the kernels, (number of centres,)."""
        norm = rbf_kernel(source, centres, gamma).mean(axis=0) + 1e-300
        likely = rbf_kernel(target, centres, gamma) / norm
        shares = np.full(len(centres), 1 / len(centres))  # of kernels whose mean over the source is 1
        for _ in range(self.steps):
            shares = shares * (likely / (likely @ shares + 1e-300)[:, None]).mean(axis=0)
            shares /= shares.sum()
        a: Array = shares / norm
        return a


@dataclass(eq=False, repr=False, kw_only=True)
class InstanceWeighting(Weighted):
    """Weights from a classifier of domains: `w(x) = P(target | x) / P(source | x)`, both domains equally likely.

    Source: Bickel, Brückner and Scheffer, "Discriminative learning for differing training and test distributions",
    ICML 2007. The mean of the weights is 1.
    https://doi.org/10.1145/1273496.1273507

    Args:
        discriminator: The classifier of domains, with `predict_proba`. `None` is logistic regression.
        largest: Largest weight before the mean is brought to 1.
        target_share: As for `Weighted`.
        estimator: As for `Weighted`.
    """

    discriminator: BaseEstimator | None = None
    largest: float = 1000.0
    target_share: float = 0.0
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:  # noqa: ARG002
        check_range("largest", self.largest, 1)
        default = LogisticRegression(max_iter=1000, class_weight="balanced")
        discriminator = default if self.discriminator is None else clone(self.discriminator)
        check_probabilities("discriminator", discriminator)
        domain = np.repeat([0, 1], [len(source), len(target)])
        p = discriminator.fit(np.concatenate([source, target]), domain).predict_proba(source)
        weights = np.minimum(p[:, 1] / np.maximum(p[:, 0], 1e-300), self.largest)
        self.weights_ = weights / weights.mean()
