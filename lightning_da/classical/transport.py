"""Optimal transport between the domains, with the solvers of POT."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances, pairwise_distances_argmin

from lightning_da.classical.base import Array, Labels, check_probabilities, fit_weighted
from lightning_da.classical.source_only import SourceOnly
from lightning_da.errors import ConfigError, check_range


def _pot() -> Any:
    try:
        import ot  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigError(
            "optimal transport: the package POT is missing; install the extra classical: "
            ".venv/bin/pip install -e '.[classical]'"
        ) from error
    return ot


@dataclass(eq=False, repr=False, kw_only=True)
class OptimalTransport(SourceOnly):
    """The source's samples are moved to the target by a transport plan that keeps classes apart.

    A sample goes to the mean of the target samples that it is transported to, and a new sample of the source goes where
    its nearest known neighbour goes. The costs are squared distances, divided by the largest.

    Source: Courty et al., "Optimal transport for domain adaptation", TPAMI 2017: entropy, and
    `Omega_c(P) = sum_j sum_c ||P(I_c, j)||_1^(1/2)`, which sends samples of different classes to
    different target samples.
    https://arxiv.org/abs/1507.00504

    Args:
        entropy: Weight of the entropy, in shares of the largest cost.
        classes: Weight of the classes; with 0 no label is read.
        estimator: The final classifier. `None` is the nearest neighbour.
    """

    entropy: float = 0.02
    classes: float = 0.1
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        ot = _pot()
        check_range("entropy", self.entropy, above=0)
        cost = euclidean_distances(source, target, squared=True)
        cost /= max(cost.max(), 1e-300)
        a, b = (np.full(n, 1 / n) for n in cost.shape)
        with warnings.catch_warnings():  # of the inner loop: the outer one goes on from there, and rows are normalized
            warnings.filterwarnings("ignore", "Sinkhorn did not converge")
            plan = ot.da.sinkhorn_lpl1_mm(a, labels, b, cost, self.entropy, self.classes)
        if not (plan.sum(axis=1) > 0).all():
            raise ConfigError(f"entropy: {self.entropy} is too small for these costs, the plan is empty; raise it")
        plan /= np.maximum(plan.sum(axis=1, keepdims=True), 1e-300)
        self.source_, self.moved_ = source, plan @ target  # where each source sample goes, (n_s, d)

    def _transform(self, x: Array, source: bool) -> Array:
        if not source:
            return x
        nearest = pairwise_distances_argmin(x, self.source_)
        moved: Array = x + (self.moved_ - self.source_)[nearest]
        return moved


@dataclass(eq=False, repr=False, kw_only=True)
class JDOT(SourceOnly):
    """Joint distribution optimal transport: plan and classifier of the target in turn, neither with a map of samples.

    The plan `P` minimises `sum_ij P_ij (alpha ||x_i - x_j||^2 - log f(y_i | x_j))`; then the classifier `f` learns from
    the target's samples, where the source sample i gives its label to sample j with weight `P_ij`.

    Source: Courty et al., "Joint distribution optimal transportation for domain adaptation", NIPS 2017, algorithm 1.
    https://arxiv.org/abs/1705.08848

    Args:
        alpha: Weight of the distances. `None` is the paper's 1 / the largest squared distance.
        iterations: Number of turns.
        estimator: The classifier, whose `fit` takes `sample_weight`, with `predict_proba`. `None` is logistic
            regression.
    """

    alpha: float | None = None
    iterations: int = 10
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        ot = _pot()
        check_range("iterations", self.iterations, 1)
        check_probabilities("estimator", self.final_estimator())
        cost = euclidean_distances(source, target, squared=True)
        alpha = 1 / max(cost.max(), 1e-300) if self.alpha is None else self.alpha
        loss = np.zeros_like(cost)
        shares = np.zeros((len(target), len(self.classes_)))
        self.target_ = target
        for _ in range(self.iterations):
            plan = ot.emd([], [], alpha * cost + loss)
            before, shares = shares, len(target) * plan.T @ np.eye(len(self.classes_))[labels]
            if np.allclose(before, shares):
                break
            self.shares_ = shares  # the share of each class that the target's samples are given, (n_t, C)
            self.fit_estimator()
            loss = -np.log(self.estimator_.predict_proba(target) + 1e-12).T[labels]

    def final_estimator(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.estimator is None else clone(self.estimator)

    def fit_estimator(self) -> None:
        rows, classes = self.shares_.nonzero()
        self.estimator_ = fit_weighted(self.final_estimator(), self.target_[rows], classes, self.shares_[rows, classes])
