"""Classifiers that bring the domains together while they learn: their features are the scores of the classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.svm import SVC

from lightning_da.classical.algebra import (
    OuterSum,
    add,
    conditional,
    gaussian,
    laplacian,
    marginal,
    median_gamma,
    on_simplex,
    one_hot,
    predict_labels,
    unit_rows,
)
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.classical.projections import estimated_mu
from lightning_da.classical.subspaces import GFK
from lightning_da.errors import ConfigError, check_range


class Scores(Adapter):
    """A method that gives each class a score, its features, (n, C); the largest one is predicted."""

    def fit_estimator(self) -> None:
        """Nothing is fitted on the scores."""

    def predict(self, X: ArrayLike, sample_domain: ArrayLike | None = None) -> NDArray[Any]:
        """The classes, (n,), of rows; the arguments are those of `transform`."""
        scores = self.transform(X, sample_domain)
        predicted: NDArray[Any] = self.classes_[scores.argmax(1)]
        return predicted

    def predict_proba(self, X: ArrayLike, sample_domain: ArrayLike | None = None) -> Array:
        """The softmax of the scores, (n, C), which is not calibrated; the arguments are those of `transform`."""
        probabilities: Array = scipy.special.softmax(self.transform(X, sample_domain), axis=1)
        return probabilities


@dataclass(eq=False, repr=False, kw_only=True)
class ARTL(Scores):
    """Adaptation regularization with the squared loss: scores K alpha (Long et al., TKDE 2014).

    alpha = ((E + lam M + manifold L) K + ridge I)^(-1) E Y. E picks the source's rows, M is the MMD matrix of domains
    and classes, divided by its Frobenius norm, and L the normalised Laplacian of the nearest neighbours by cosine.

    Source: https://ieeexplore.ieee.org/document/6550016

    Args:
        lam: Weight of the MMD.
        manifold: Weight of the Laplacian.
        ridge: Weight of the squared norm of the scores' function.
        neighbors: The number of neighbours of a row in the graph.
        gamma: Of the kernel exp(-gamma ||x - y||^2); `None`: 1 / median of the squared distances.
        iterations: How often alpha is solved; it ends earlier if the labels of the target stay.
        unit: Whether rows are scaled to length 1, as the authors' code does.
        estimator: The classifier that labels the target at the start; `None` is the nearest neighbour.
    """

    lam: float = 10.0
    manifold: float = 1.0
    ridge: float = 0.1
    neighbors: int = 10
    gamma: float | None = 0.5
    iterations: int = 10
    unit: bool = True
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("ridge", self.ridge, above=0)
        check_range("iterations", self.iterations, low=1)
        n_s = len(source)
        x = self._inputs(np.vstack([source, target]))
        self.landmarks_, self.gamma_ = x, self.gamma or median_gamma(x)
        kernel = gaussian(x, x, self.gamma_)
        # without M, whose few vectors follow by Woodbury's identity in each iteration
        system = self.manifold * (laplacian(x, self.neighbors) @ kernel)
        system[:n_s] += kernel[:n_s]
        system[np.diag_indices_from(system)] += self.ridge
        factors = scipy.linalg.lu_factor(system, overwrite_a=True, check_finite=False)
        wanted = np.vstack([one_hot(labels, len(self.classes_)), np.zeros((len(target), len(self.classes_)))])
        free = scipy.linalg.lu_solve(factors, wanted)
        pseudo = predict_labels(self.final_estimator(), x[:n_s], labels, x[n_s:])
        for _ in range(self.iterations):
            matrix = self._matrix(x, labels, pseudo).normalized()
            toward, sums = scipy.linalg.lu_solve(factors, matrix.vectors.T), matrix.vectors @ kernel
            weights = self.lam * matrix.weights[:, None]
            inner = np.eye(len(sums)) + weights * (sums @ toward)
            self.coefficients_: Array = free - toward @ np.linalg.solve(inner, weights * (sums @ free))
            last, pseudo = pseudo, (kernel[n_s:] @ self.coefficients_).argmax(1)
            if np.array_equal(last, pseudo):
                break

    def _inputs(self, x: Array) -> Array:
        return unit_rows(x) if self.unit else x

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        scores: Array = gaussian(self._inputs(x), self.landmarks_, self.gamma_) @ self.coefficients_
        return scores

    def _matrix(self, x: Array, labels: Labels, pseudo: Labels) -> OuterSum:
        return add((1, marginal(len(labels), len(x) - len(labels))), (1, conditional(labels, pseudo)))


@dataclass(eq=False, repr=False, kw_only=True)
class MEDA(ARTL):
    """Manifold embedded distribution alignment: ARTL on GFK's features, mu estimated (Wang et al., MM 2018).

    Source: https://arxiv.org/abs/1807.07258

    The other arguments are those of `ARTL`.

    Args:
        dim: Dimensions of both principal subspaces of GFK.
    """

    dim: int = 20

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        flow = GFK(dim=self.dim)
        flow._fit(source, labels, target)
        self.source_mean_, self.target_mean_ = flow.source_mean_, flow.target_mean_
        self.components_ = flow.target_components_
        super()._fit(self._flowed(source, True), labels, self._flowed(target, False))

    def _transform(self, x: Array, source: bool) -> Array:
        return super()._transform(self._flowed(x, source), source)

    def _flowed(self, x: Array, source: bool) -> Array:
        mean = self.source_mean_ if source else self.target_mean_
        flowed: Array = (x - mean) @ self.components_
        return flowed

    def _matrix(self, x: Array, labels: Labels, pseudo: Labels) -> OuterSum:
        n_s = len(labels)
        self.mu_ = estimated_mu(x[:n_s], labels, x[n_s:], pseudo)
        return add((1 - self.mu_, marginal(n_s, len(x) - n_s)), (self.mu_, conditional(labels, pseudo)))


@dataclass(eq=False, repr=False, kw_only=True)
class DTMKL(Scores):
    """Domain transfer multiple kernel learning: SVMs with kernels under which MMD is small (Duan et al., TPAMI 2012).

    min over d of (p^T d)^2 / 2 + theta sum_c J_c(d), with d >= 0 and sum d = 1. p_m is the squared MMD under kernel m,
    J_c the optimum of the SVM of class c against the others under sum_m d_m K_m. Each step on d fits the SVMs anew.

    Args:
        widths: The kernels exp(-w ||x - y||^2 / median), one a value.
        theta: Weight of the SVMs.
        C: Of the SVMs.
        iterations: The number of steps on d at most.
    """

    widths: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    theta: float = 1e-5
    C: float = 10.0
    iterations: int = 20

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        if not self.widths:
            raise ConfigError("widths: there is none; give one or more")
        for name in ("widths", "theta", "C"):
            check_range(name, getattr(self, name), above=0)
        check_range("iterations", self.iterations, low=1)
        n_s, rows = len(source), np.vstack([source, target])
        self.landmarks_, self.gammas_ = source, median_gamma(rows) * np.asarray(self.widths, float)
        signed = np.r_[np.full(n_s, 1 / n_s), np.full(len(target), -1 / len(target))]
        p = np.array([signed @ gaussian(rows, rows, gamma) @ signed for gamma in self.gammas_])
        kernels = np.stack([gaussian(source, source, gamma) for gamma in self.gammas_])
        wanted = 2 * one_hot(labels, len(self.classes_)) - 1

        def objective(d: Array) -> tuple[float, Array]:
            """The value under the weights d, whose SVMs are kept, and its gradient."""
            machines = [
                SVC(C=self.C, kernel="precomputed", tol=1e-8).fit(np.tensordot(d, kernels, 1), column)
                for column in wanted.T
            ]
            self.coefficients_ = np.zeros((n_s, wanted.shape[1]))
            for c, machine in enumerate(machines):
                self.coefficients_[machine.support_, c] = machine.dual_coef_[0]
            self.intercepts_ = np.array([machine.intercept_[0] for machine in machines])
            quality = np.einsum("ic,mij,jc->m", self.coefficients_, kernels, self.coefficients_, optimize=True) / 2
            svms = np.abs(self.coefficients_).sum() - d @ quality
            return (p @ d) ** 2 / 2 + self.theta * svms, (p @ d) * p - self.theta * quality

        self.weights_: Array = on_simplex(objective, np.full(len(p), 1 / len(p)), self.iterations)
        objective(self.weights_)

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        scores: Array = np.zeros((len(x), len(self.classes_))) + self.intercepts_
        for weight, gamma in zip(self.weights_, self.gammas_, strict=True):
            scores += weight * (gaussian(x, self.landmarks_, gamma) @ self.coefficients_)
        return scores
