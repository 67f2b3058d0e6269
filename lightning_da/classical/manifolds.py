"""Projections with orthonormal columns that descend along a distance of the projected distributions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import scipy.optimize
from sklearn.base import BaseEstimator

from lightning_da.classical.algebra import class_means, gaussian, median_gamma, on_simplex, one_hot
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.classical.subspaces import principal
from lightning_da.classical.weights import Weighted
from lightning_da.errors import ConfigError, check_range

Distance = Callable[[Array, Array, float], tuple[float, Array]]
"""From rows (n, k), weights (n,) and gamma to the distance and its gradient with respect to the rows, (n, k)."""


def mmd_gradient(z: Array, weights: Array, gamma: float) -> tuple[float, Array]:
    """w^T K w with K = exp(-gamma ||z_i - z_j||^2), the squared MMD, and its gradient with respect to z, (n, k)."""
    pairs = gaussian(z, z, gamma) * np.outer(weights, weights)
    return float(pairs.sum()), _gradient(z, pairs, gamma)


def hellinger_gradient(z: Array, weights: Array, gamma: float) -> tuple[float, Array]:
    """The squared Hellinger distance of two kernel density estimates, and its gradient with respect to z, (n, k).

    int (sqrt p - sqrt q)^2 as a mean over all rows of 1 - 2 sqrt(T (1 - T)) with T = p / (p + q) (Baktashmotlagh et
    al., CVPR 2014).

    Args:
        z: (n, k), the rows of both domains.
        weights: (n,), 1 / n_s at rows of the source and -1 / n_t at those of the target.
        gamma: Of the kernel of the densities.
    """
    kernel = gaussian(z, z, gamma)
    p, q = kernel @ np.maximum(weights, 0), kernel @ np.maximum(-weights, 0)
    root, total = np.sqrt(np.maximum(p * q, 1e-300)), p + q
    value = float(np.mean(1 - 2 * root / total))
    by_p = -2 * (q / (2 * root) / total - root / total**2) / len(z)
    by_q = -2 * (p / (2 * root) / total - root / total**2) / len(z)
    pairs = kernel * (np.outer(by_p, np.maximum(weights, 0)) + np.outer(by_q, np.maximum(-weights, 0)))
    return value, _gradient(z, pairs, gamma)


def _gradient(z: Array, pairs: Array, gamma: float) -> Array:
    """The gradient of a sum over pairs of rows whose terms are `pairs`, each a factor times the kernel."""
    both = pairs + pairs.T
    result: Array = -2 * gamma * (both.sum(1)[:, None] * z - both @ z)
    return result


def descend(objective: Callable[[Array], tuple[float, Array]], start: Array, steps: int) -> Array:
    """Conjugate gradients among matrices with orthonormal columns, (d, k); only their span counts.

    The directions are those of Polak and Ribiere, the steps are halved until the objective falls enough (Armijo), and
    QR leads back to orthonormal columns.

    Args:
        objective: From (d, k) to the value and its gradient, (d, k).
        start: (d, k), orthonormal columns.
        steps: The number of steps at most.
    """
    w = start
    size = 0.0
    value, gradient = objective(w)
    tangent = gradient - w @ (w.T @ gradient)
    direction = -tangent
    for _ in range(steps):
        slope = np.sum(direction * tangent)
        if slope >= 0:
            direction, slope = -tangent, -np.sum(tangent**2)
        if slope > -1e-20:
            break
        size = 2 * size or 1 / float(np.linalg.norm(direction))
        for _ in range(30):
            turned, triangle = np.linalg.qr(w + size * direction)
            turned = turned * np.sign(np.diag(triangle))
            new, gradient = objective(turned)
            if new <= value + 1e-4 * size * slope:
                break
            size /= 2
        else:
            break
        w, value, last = turned, new, tangent
        tangent = gradient - w @ (w.T @ gradient)
        last = last - w @ (w.T @ last)
        turn = max(np.sum(tangent * (tangent - last)) / max(np.sum(last**2), 1e-300), 0)
        direction = -tangent + turn * (direction - w @ (w.T @ direction))
    return w


@dataclass(eq=False, repr=False, kw_only=True)
class DIP(Adapter):
    """Domain invariant projection: min MMD^2(X_s W, X_t W) with W^T W = I (Baktashmotlagh et al., ICCV 2013).

    Args:
        dim: The number of features.
        gamma: Of the kernel exp(-gamma ||x - y||^2) on the features; `None`: 1 / median of the squared distances of the
            source's rows on its principal directions.
        clustering: Weight of the mean squared distance of the source's rows to the mean of their class, DIP-CC.
        steps: Steps of the conjugate gradients at most; they start at the principal directions of all rows.
        estimator: The final classifier; `None` is the nearest neighbour.
    """

    dim: int = 20
    gamma: float | None = None
    clustering: float = 0.0
    steps: int = 20
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        x, n_s = np.vstack([source, target]), len(source)
        weights = np.r_[np.full(n_s, 1 / n_s), np.full(len(target), -1 / len(target))]
        start = principal(x, self.dim)[0]
        self.gamma_ = self.gamma or median_gamma(source @ start)
        spread = (source - class_means(source, labels)[labels]) / np.sqrt(n_s)

        def objective(w: Array) -> tuple[float, Array]:
            value, gradient = self._distance()(x @ w, weights, self.gamma_)
            within = spread @ w
            return value + self.clustering * float(np.sum(within**2)), x.T @ gradient + 2 * self.clustering * (
                spread.T @ within
            )

        if self._distance() is hellinger_gradient and objective(start)[0] > 1 - 1e-9:
            raise ConfigError(
                f"gamma: under {self.gamma_:.3g} the densities of the domains do not overlap, and have no gradient; "
                "give a smaller gamma, or standardise the inputs"
            )
        self.components_ = descend(objective, start, self.steps)

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        z: Array = x @ self.components_
        return z

    def _distance(self) -> Distance:
        return mmd_gradient


@dataclass(eq=False, repr=False, kw_only=True)
class StatisticalManifold(DIP):
    """DIP with the Hellinger distance in place of MMD (Baktashmotlagh et al., CVPR 2014).

    The arguments are those of `DIP`.
    """

    def _distance(self) -> Distance:
        return hellinger_gradient


@dataclass(eq=False, repr=False, kw_only=True)
class DME(DIP):
    """Distribution-matching embedding: DIP in the space of a kernel (Baktashmotlagh et al., JMLR 2016).

    The rows are first given by their coordinates on the principal components of a Gaussian kernel.

    Source: https://www.jmlr.org/papers/volume17/15-207/15-207.pdf

    The other arguments are those of `DIP`.

    Args:
        measure: `mmd` or `hellinger`, the distance of the projected distributions.
        rank: The number of principal components of the kernel.
        width: Of that kernel, exp(-width ||x - y||^2); `None`: 1 / median of the squared distances.
    """

    measure: Literal["mmd", "hellinger"] = "mmd"
    rank: int = 100
    width: float | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("rank", self.rank, low=1)
        self.landmarks_ = np.vstack([source, target])
        self.width_ = self.width or median_gamma(self.landmarks_)
        kernel = gaussian(self.landmarks_, self.landmarks_, self.width_)
        values, vectors = np.linalg.eigh(kernel - kernel.mean(0) - kernel.mean(0)[:, None] + kernel.mean())
        kept = [i for i in range(len(values))[::-1][: self.rank] if values[i] > values[-1] * 1e-10]
        # the coordinates of a row are k(x, landmarks) @ coordinates_ but for a constant, which no distance has
        self.coordinates_ = vectors[:, kept] / np.sqrt(values[kept])
        self.coordinates_ -= self.coordinates_.mean(0)
        super()._fit(self._inputs(source), labels, self._inputs(target))

    def _distance(self) -> Distance:
        return mmd_gradient if self.measure == "mmd" else hellinger_gradient

    def _inputs(self, x: Array) -> Array:
        inputs: Array = gaussian(x, self.landmarks_, self.width_) @ self.coordinates_
        return inputs

    def _transform(self, x: Array, source: bool) -> Array:
        return super()._transform(self._inputs(x), source)


def _quadratic(quadratic: Array, linear: Array, d: Array) -> tuple[float, Array]:
    """d^T Q d / 2 - linear^T d, and its gradient, (m,)."""
    return float(d @ quadratic @ d / 2 - linear @ d), quadratic @ d - linear


@dataclass(eq=False, repr=False, kw_only=True)
class CTC(Weighted):
    """Conditional transferable components: the features of each class agree but for their location and scale.

    Features are W^T x with W^T W = I. A source row of class y moves to a_y W^T x + b_y and has the weight of its class,
    the share of the class in the target over that in the source. In turn the scales a and locations b, the shares and W
    minimise MMD^2 + scale mean ||a_y - 1||^2 + location mean ||b_y||^2 of the moved source and the target. The
    classifier learns from the moved source with its weights. The paper's term that keeps information of the target is
    left out (Gong et al., ICML 2016).

    Source: https://proceedings.mlr.press/v48/gong16.html

    Args:
        dim: The number of features.
        gamma: Of the kernel, as for `DIP`.
        scale: Weight of the scales.
        location: Weight of the locations. The smaller it is, the more is explained by classes that moved, and not by
            other shares.
        iterations: How often scales with locations, shares and W are learnt in turn.
        steps: Steps of each at most.
        estimator: As for `Weighted`.
    """

    dim: int = 20
    gamma: float | None = None
    scale: float = 0.1
    location: float = 0.1
    iterations: int = 3
    steps: int = 10
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("iterations", self.iterations, low=1)
        n_s, counts = len(source), np.bincount(labels)
        of_class = one_hot(labels, len(counts))
        w = principal(np.vstack([source, target]), self.dim)[0]
        gamma = self.gamma or median_gamma(source @ w)
        moves = np.stack([np.ones((len(counts), self.dim)), np.zeros((len(counts), self.dim))])  # a and b, (2, C, dim)
        shares: Array = counts / n_s

        def objective(w: Array, moves: Array) -> tuple[float, Array, Array]:
            """The value, and its gradients with respect to W and to a and b."""
            z = source @ w
            rows = np.vstack([moves[0, labels] * z + moves[1, labels], target @ w])
            weights = np.r_[(shares / counts)[labels], np.full(len(target), -1 / len(target))]
            value, gradient = mmd_gradient(rows, weights, gamma)
            own = gradient[:n_s]
            away = np.stack([self.scale * (moves[0] - 1), self.location * moves[1]]) * (counts / n_s)[:, None]
            value += float(np.sum(away[0] * (moves[0] - 1)) + np.sum(away[1] * moves[1]))
            by_moves = np.stack([of_class.T @ (own * z), of_class.T @ own]) + 2 * away
            return value, source.T @ (own * moves[0, labels]) + target.T @ gradient[n_s:], by_moves

        def of_moves(flat: Array) -> tuple[float, Array]:
            value, _, gradient = objective(w, flat.reshape(moves.shape))
            return value, gradient.ravel()

        def of_directions(w: Array) -> tuple[float, Array]:
            return objective(w, moves)[:2]

        for _ in range(self.iterations):
            found = scipy.optimize.minimize(
                of_moves, moves.ravel(), method="L-BFGS-B", jac=True, options={"maxiter": self.steps}
            )
            moves = found.x.reshape(moves.shape)
            moved = moves[0, labels] * (source @ w) + moves[1, labels]
            means = (of_class / counts).T
            own = means @ gaussian(moved, moved, gamma) @ means.T
            other = means @ gaussian(moved, target @ w, gamma).mean(axis=1)
            scale = max(float(np.abs(own).max()), float(np.abs(other).max()))
            shares = on_simplex(partial(_quadratic, own, other), shares, scale=scale)
            w = descend(of_directions, w, self.steps)
        self.components_, self.scales_, self.locations_, self.shares_ = w, moves[0], moves[1], shares
        self.moved_ = moves[0, labels] * (source @ w) + moves[1, labels]
        self.weights_ = (shares / counts * n_s)[labels]

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        z: Array = x @ self.components_
        return z

    def fit_estimator(self) -> None:
        self._learn(self.moved_)
