"""Projections that bring the domains together by MMD: all solve one eigenproblem, with another cost each."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.base import BaseEstimator

from lightning_da.classical.algebra import (
    Kernel,
    OuterSum,
    Scaling,
    a_distance,
    add,
    between_factor,
    conditional,
    gaussian,
    leading,
    marginal,
    median_gamma,
    one_hot,
    predict_labels,
    scatter_factor,
    unit_rows,
    within_scatter,
)
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.errors import ConfigError, check_range


@dataclass(eq=False, repr=False, kw_only=True)
class Projection(Adapter):
    """min tr(A^T B A) subject to A^T X^T H X A = I, solved again with the labels it gives the target.

    A subclass fills `_cost`, the matrix B. X has the rows of both domains, or of their kernel matrix, and H centres.

    Args:
        dim: The number of features.
        lam: Weight of ||A||_F^2.
        iterations: How often the projection is solved; it ends earlier if the labels of the target stay.
        kernel: `linear` (features are linear in the inputs) or `rbf`, exp(-gamma ||x - y||^2).
        gamma: Of the kernel; `None`: 1 / median of the squared distances.
        scaling: Of the columns of A, see `leading`.
        unit: Whether features are scaled to length 1, as the authors' code does.
        estimator: The final classifier, which also labels the target; `None` is the nearest neighbour.
    """

    dim: int = 20
    lam: float = 1.0
    iterations: int = 10
    kernel: Kernel = "linear"
    gamma: float | None = None
    scaling: Scaling = "unit"
    unit: bool = True
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("lam", self.lam, above=0)
        check_range("iterations", self.iterations, low=1)
        rows = np.vstack([source, target])
        if self.kernel == "rbf":
            self.landmarks_, self.gamma_ = rows, self.gamma or median_gamma(rows)
        x, n_s = self._inputs(rows), len(source)
        factor = self._factor(x, n_s)
        pseudo: Labels | None = None
        for _ in range(self.iterations):
            cost = self._cost(x, labels, pseudo)
            cost[np.diag_indices_from(cost)] += self.lam
            self.components_ = leading(factor, cost, self.dim, self.scaling)
            z = self._features(x)
            last, pseudo = pseudo, predict_labels(self.final_estimator(), z[:n_s], labels, z[n_s:])
            if last is not None and np.array_equal(last, pseudo):
                break

    def _inputs(self, x: Array) -> Array:
        return gaussian(x, self.landmarks_, self.gamma_) if self.kernel == "rbf" else x

    def _features(self, inputs: Array) -> Array:
        z = inputs @ self.components_
        return unit_rows(z) if self.unit else z

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        return self._features(self._inputs(x))

    def _factor(self, x: Array, n_s: int) -> Array:  # noqa: ARG002
        """F, (p, r), with F F^T = X^T H X; n_s rows of x, (n, p), are of the source."""
        return scatter_factor(x)

    def _cost(self, x: Array, labels: Labels, pseudo: Labels | None) -> Array:
        """B without lam I, (p, p), from the rows of both domains, (n, p), the source first."""
        raise NotImplementedError


@dataclass(eq=False, repr=False, kw_only=True)
class BDA(Projection):
    """Balanced distribution adaptation: B = X^T ((1 - mu) M_0 + mu sum_c M_c) X (Wang et al., ICDM 2017).

    The MMD matrix is divided by its Frobenius norm, as in the authors' code, so that `lam` means the same for every mu.

    Source: https://arxiv.org/abs/1807.00516

    The other arguments are those of `Projection`.

    Args:
        mu: Weight of the classes' means against the domains' means, in [0, 1]; `estimate`: d_c / (d_m + d_c) from the
            A-distances of the domains, d_m, and of their classes, d_c on average, in each iteration.
    """

    mu: float | Literal["estimate"] = "estimate"

    def _cost(self, x: Array, labels: Labels, pseudo: Labels | None) -> Array:
        n_t = len(x) - len(labels)
        if self.mu != "estimate":
            check_range("mu", self.mu, low=0, high=1)
        if pseudo is None:
            return marginal(len(labels), n_t).normalized().between(x)
        if self.mu == "estimate":
            z = self._features(x)
            self.mu_ = estimated_mu(z[: len(labels)], labels, z[len(labels) :], pseudo)
        else:
            self.mu_ = float(self.mu)
        terms = (1 - self.mu_, marginal(len(labels), n_t)), (self.mu_, conditional(labels, pseudo))
        return add(*terms).normalized().between(x)


def estimated_mu(source: Array, labels: Labels, target: Array, pseudo: Labels) -> float:
    """The weight of the classes' distances, from A-distances (Wang et al., MM 2018)."""
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise ConfigError(
            f"y: class number {counts.argmin()} of the source has one row; mu='estimate' needs 2 or more a class"
        )
    classes = [c for c in range(len(counts)) if np.sum(pseudo == c) > 1]
    d_c = float(np.mean([a_distance(source[labels == c], target[pseudo == c]) for c in classes])) if classes else 0.0
    d_m = a_distance(source, target)
    return d_c / (d_c + d_m) if d_c + d_m > 0 else 0.5


@dataclass(eq=False, repr=False, kw_only=True)
class JDA(BDA):
    """Joint distribution adaptation: B = X^T (M_0 + sum_c M_c) X (Long et al., ICCV 2013), BDA with mu = 1/2.

    Source: https://doi.org/10.1109/ICCV.2013.274
    """

    mu: float | Literal["estimate"] = 0.5


@dataclass(eq=False, repr=False, kw_only=True)
class TCA(Projection):
    """Transfer component analysis: B = X^T M_0 X (Pan et al., TNN 2011), BDA with mu = 0.

    Source: https://doi.org/10.1109/TNN.2010.2091281
    """

    iterations: int = 1

    def _cost(self, x: Array, labels: Labels, pseudo: Labels | None) -> Array:  # noqa: ARG002
        return marginal(len(labels), len(x) - len(labels)).normalized().between(x)


@dataclass(eq=False, repr=False, kw_only=True)
class DJPMMD(Projection):
    """Discriminative joint probability MMD (Zhang and Wu, IJCNN 2020).

    B = X^T (R_min - mu R_max) X. R_min has the differences between the parts of one class in the means of both domains,
    R_max those between different classes. The difference is divided by its Frobenius norm.

    Source: https://arxiv.org/abs/1912.00320

    The other arguments are those of `Projection`.

    Args:
        mu: Weight of the distances between classes.
    """

    mu: float = 0.1

    def _cost(self, x: Array, labels: Labels, pseudo: Labels | None) -> Array:
        n_s, n_t = len(labels), len(x) - len(labels)
        if pseudo is None:
            return marginal(n_s, n_t).normalized().between(x)
        classes = len(self.classes_)
        source, target = one_hot(labels, classes).T / n_s, one_hot(pseudo, classes).T / n_t
        same = np.eye(classes).ravel()
        pairs = np.hstack([np.repeat(source, classes, 0), -np.tile(target, (classes, 1))])
        return OuterSum(pairs, same - self.mu * (1 - same)).normalized().between(x)


@dataclass(eq=False, repr=False, kw_only=True)
class VDA(BDA):
    """Visual domain adaptation: JDA with small scatter within the source's classes (Tahmoresnezhad and Hashemi, 2017).

    Source: https://doi.org/10.1007/s10115-016-0944-x

    The other arguments are those of `Projection`.

    Args:
        within: Weight of the scatter within classes, which is divided by the number of rows.
        mu: As in `BDA`.
    """

    mu: float | Literal["estimate"] = 0.5
    within: float = 100.0

    def _cost(self, x: Array, labels: Labels, pseudo: Labels | None) -> Array:
        scatter = within_scatter(x[: len(labels)], labels) / len(labels)
        return super()._cost(x, labels, pseudo) + self.within * scatter


@dataclass(eq=False, repr=False, kw_only=True)
class TJM(Projection):
    """Transfer joint matching: TCA on the kernel matrix, with few source rows in use (Long et al., CVPR 2014).

    min tr(A^T K M_0 K A) + lam (||A_s||_21 + ||A_t||_F^2). The norm of the source's rows of A is iterated: its weight
    is 1 / (2 ||a_i||), which is large for rows that the features hardly need.

    https://www.cv-foundation.org/openaccess/content_cvpr_2014/html/Long_Transfer_Joint_Matching_2014_CVPR_paper.html

    The other arguments are those of `Projection`.

    Args:
        conditional: Whether the means of the classes are brought together as well, as in code that is in use; the
            paper has the domains' means only.
    """

    conditional: bool = False

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("lam", self.lam, above=0)
        check_range("iterations", self.iterations, low=1)
        rows, n_s = np.vstack([source, target]), len(source)
        if self.kernel == "rbf":
            self.landmarks_, self.gamma_ = rows, self.gamma or median_gamma(rows)
        inputs = self._inputs(rows)
        # K = inputs basis, so that the features are inputs (basis A); a linear kernel never has an n x n factor
        basis = np.eye(len(rows)) if self.kernel == "rbf" else rows.T
        factor = basis.T @ scatter_factor(inputs)
        weights = np.ones(len(rows))
        matrix = marginal(n_s, len(target))
        pseudo: Labels | None = None
        for _ in range(self.iterations):
            if self.conditional and pseudo is not None:
                matrix = add((1, marginal(n_s, len(target))), (1, conditional(labels, pseudo)))
            cost = matrix.normalized().between(inputs @ basis)
            cost[np.diag_indices_from(cost)] += self.lam * weights
            coefficients = leading(factor, cost, self.dim, self.scaling)
            weights[:n_s] = 1 / (2 * np.linalg.norm(coefficients[:n_s], axis=1) + 1e-12)
            self.components_ = basis @ coefficients
            z = self._features(inputs)
            pseudo = predict_labels(self.final_estimator(), z[:n_s], labels, z[n_s:])


@dataclass(eq=False, repr=False, kw_only=True)
class ACA(TCA):
    """Adapting component analysis: TCA's cost, and features that depend on the target's rows (Dorri and Ghodsi, 2012).

    The features keep the structure of the target, not the variance of both domains: the largest HSIC, with linear
    kernels, of the target's features and the target's rows, A^T (X_t^T H X_t)^2 A.

    Source: https://ieeexplore.ieee.org/document/6413843

    The arguments are those of `Projection`.
    """

    def _factor(self, x: Array, n_s: int) -> Array:
        centred = x[n_s:] - x[n_s:].mean(0)
        factor: Array = centred.T @ centred
        return factor


@dataclass(eq=False, repr=False, kw_only=True)
class JGSA(Adapter):
    """Joint geometrical and statistical alignment: a projection for each domain (Zhang et al., CVPR 2017).

    The features have large variance in the target and between the source's classes, and small scatter within those
    classes, MMD and distance of the two projections. The MMD matrix is C M_0 + sum_c M_c, with C classes, divided by
    the Frobenius norm of C M_0, as in the authors' code.

    Source: https://arxiv.org/abs/1705.05498

    Args:
        dim: The number of features.
        lam: Weight of the distance of the two projections, ||A - B||_F^2.
        mu: Weight of the target's variance, and of ||B||_F^2.
        beta: Weight of the source's scatters.
        iterations: How often the projections are solved.
        scaling: Of the columns of A above B, see `leading`.
        unit: Whether features are scaled to length 1.
        estimator: The final classifier, which also labels the target; `None` is the nearest neighbour.
    """

    dim: int = 30
    lam: float = 1.0
    mu: float = 1.0
    beta: float = 0.1
    iterations: int = 10
    scaling: Scaling = "unit"
    unit: bool = False
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("iterations", self.iterations, low=1)
        n_s, d = source.shape
        zeros = np.zeros((n_s, d)), np.zeros((len(target), d))
        x = np.vstack([np.hstack([source, zeros[0]]), np.hstack([zeros[1], target])])
        between, variance = between_factor(source, labels), scatter_factor(target)
        factor = np.zeros((2 * d, between.shape[1] + variance.shape[1]))
        factor[:d, : between.shape[1]] = np.sqrt(self.beta) * between
        factor[d:, between.shape[1] :] = np.sqrt(self.mu) * variance
        fixed = self.lam * np.kron([[1, -1], [-1, 1]], np.eye(d))
        fixed[:d, :d] += self.beta * within_scatter(source, labels)
        fixed[np.diag_indices_from(fixed)] += np.r_[np.full(d, 1e-9), np.full(d, self.mu)]
        domains = marginal(n_s, len(target))
        norm = len(self.classes_) * (1 / n_s + 1 / len(target))  # of C M_0
        pseudo = predict_labels(self.final_estimator(), source, labels, target)
        for _ in range(self.iterations):
            terms = (len(self.classes_), domains), (1, conditional(labels, pseudo))
            pair = leading(factor, fixed + add(*terms).between(x) / norm, self.dim, self.scaling)
            self.source_components_, self.target_components_ = pair[:d], pair[d:]
            last = pseudo
            pseudo = predict_labels(
                self.final_estimator(), self._transform(source, True), labels, self._transform(target, False)
            )
            if np.array_equal(last, pseudo):
                break

    def _transform(self, x: Array, source: bool) -> Array:
        z = x @ (self.source_components_ if source else self.target_components_)
        return unit_rows(z) if self.unit else z
