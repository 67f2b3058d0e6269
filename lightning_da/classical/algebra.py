"""Kernels, MMD matrices as sums of outer products, scatters, and the eigenproblem that the projections share."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import kneighbors_graph

from lightning_da.classical.base import Array, Labels
from lightning_da.errors import ConfigError

Kernel = Literal["linear", "rbf"]
Scaling = Literal["unit", "constraint"]


def unit_rows(x: Array) -> Array:
    """Rows, (n, k), scaled to length 1; rows of zeros stay."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    scaled: Array = x / np.where(norms > 0, norms, 1)
    return scaled


def median_gamma(x: Array) -> float:
    """1 / median of the squared distances between two rows of x, (n, d)."""
    distances = euclidean_distances(x, squared=True)[np.triu_indices(len(x), 1)]
    median = float(np.median(distances))
    if median <= 0:
        raise ConfigError("X: more than half of the distances between rows are 0; set gamma, or drop repeated rows")
    return 1 / median


def gaussian(x: Array, y: Array, gamma: float) -> Array:
    """exp(-gamma ||x - y||^2), from (n, d) and (m, d) to (n, m)."""
    values: Array = np.exp(-gamma * euclidean_distances(x, y, squared=True))
    return values


class OuterSum(NamedTuple):
    """A matrix M = sum_i weights_i v_i v_i^T, (n, n), which is never built; `vectors` are (r, n)."""

    vectors: Array
    weights: Array

    def normalized(self) -> "OuterSum":
        """M / ||M||_F."""
        gram = self.vectors @ self.vectors.T
        return OuterSum(self.vectors, self.weights / np.sqrt(np.sum(np.outer(self.weights, self.weights) * gram**2)))

    def between(self, x: Array) -> Array:
        """x^T M x, (d, d), from x, (n, d)."""
        sums = self.vectors @ x
        product: Array = (sums.T * self.weights) @ sums
        return product


def add(*terms: tuple[float, OuterSum]) -> OuterSum:
    """The sum of matrices, each times a number."""
    return OuterSum(
        np.vstack([matrix.vectors for _, matrix in terms]),
        np.concatenate([factor * matrix.weights for factor, matrix in terms]),
    )


def _of(rows: Sequence[Array], n: int) -> OuterSum:
    return OuterSum(np.array(rows).reshape(-1, n), np.ones(len(rows)))


def marginal(n_s: int, n_t: int) -> OuterSum:
    """M_0: its trace with a Gram matrix is the squared distance of the domains' means (Pan et al., 2011)."""
    return _of([np.r_[np.full(n_s, 1 / n_s), np.full(n_t, -1 / n_t)]], n_s + n_t)


def conditional(labels: Labels, pseudo: Labels) -> OuterSum:
    """sum_c M_c: squared distances of the means of each class that both domains have (Long et al., 2013).

    Args:
        labels: (n_s,), labels of the source.
        pseudo: (n_t,), labels that the target is thought to have.
    """
    rows = []
    for c in np.intersect1d(labels, pseudo):
        s, t = labels == c, pseudo == c
        rows.append(np.r_[s / s.sum(), -(t / t.sum())])
    return _of(rows, len(labels) + len(pseudo))


def within_scatter(x: Array, labels: Labels) -> Array:
    """S_w = sum_c sum_(i in c) (x_i - mean_c)(x_i - mean_c)^T, (d, d)."""
    centred = x - class_means(x, labels)[labels]
    scatter: Array = centred.T @ centred
    return scatter


def between_factor(x: Array, labels: Labels) -> Array:
    """F, (d, C), with F F^T = S_b = sum_c n_c (mean_c - mean)(mean_c - mean)^T."""
    counts = np.bincount(labels)
    factor: Array = ((class_means(x, labels) - x.mean(0)) * np.sqrt(counts)[:, None]).T
    return factor


def class_means(x: Array, labels: Labels) -> Array:
    """Means of the rows of each class, (C, d)."""
    onehot = np.eye(labels.max() + 1)[labels]
    means: Array = onehot.T @ x / onehot.sum(0)[:, None]
    return means


def scatter_factor(x: Array) -> Array:
    """F, (d, r), with F F^T = x^T H x, where H centres and r = min(n, d)."""
    triangle: Array = scipy.linalg.qr(x - x.mean(0), mode="r", check_finite=False)[0][: min(x.shape)]
    return triangle.T


def leading(factor: Array, cost: Array, dim: int, scaling: Scaling = "unit") -> Array:
    """The `dim` vectors a with the smallest phi in `B a = phi F F^T a`, as columns, (p, dim), best first.

    They minimise tr(A^T B A) subject to A^T F F^T A = I.

    Args:
        factor: F, (p, r).
        cost: B, (p, p), symmetric, and positive definite where F F^T is 0.
        dim: The number of vectors.
        scaling: `constraint`: `A^T F F^T A = I`, as the papers write. `unit`: each column has length 1, as the
            solvers return it that the published figures come from.

    Raises:
        ConfigError: If F has a smaller rank than `dim`, or if B is not positive definite where F F^T is 0.
    """
    cholesky = _cholesky(factor, cost)
    whitened = scipy.linalg.solve_triangular(cholesky, factor, lower=True, check_finite=False)
    size = factor.shape[1]
    first = max(size - max(dim, 1), 0)
    values, vectors = scipy.linalg.eigh(whitened.T @ whitened, subset_by_index=[first, size - 1], check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    check_rank(dim, int(np.sum(values > values[0] * 1e-10)))
    found: Array = scipy.linalg.solve_triangular(cholesky.T, whitened @ vectors, check_finite=False)
    scaled: Array = found / (values if scaling == "constraint" else np.linalg.norm(found, axis=0))
    return scaled


def _cholesky(factor: Array, cost: Array) -> Array:
    """Of B + c F F^T, with the first c that makes it positive definite; phi + c has the vectors of phi."""
    scale = float(np.abs(np.diag(cost)).sum()) / max(float(np.sum(factor**2)), 1e-300)
    for shift in [0.0, *(scale * 10.0**power for power in range(-3, 7))]:
        try:
            shifted: Array = cost + shift * (factor @ factor.T) if shift else cost
            return scipy.linalg.cholesky(shifted, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            continue
    raise ConfigError("lam: the cost is not positive definite; give lam a larger value")


def check_rank(dim: int, rank: int, where: str = "the rows") -> None:
    """Checks that there are as many dimensions as wanted.

    Raises:
        ConfigError: If not.
    """
    if dim < 1 or dim > rank:
        raise ConfigError(f"dim: {dim} dimensions are wanted, and {where} have {rank}; give dim from 1 to {rank}")


def laplacian(x: Array, neighbors: int) -> Any:
    """I - D^(-1/2) W D^(-1/2), sparse, (n, n), from x, (n, d).

    W has the cosines of rows and their nearest neighbours, and 1 for a row and itself, as in the authors' code of ARTL.

    Raises:
        ConfigError: If there are too few rows.
    """
    if not 1 <= neighbors < len(x):
        raise ConfigError(f"neighbors: {neighbors} are wanted, and there are {len(x)} rows; give 1 to {len(x) - 1}")
    graph = kneighbors_graph(x, neighbors, mode="distance", metric="cosine")
    graph.data = np.maximum(1 - graph.data, 0)
    graph = graph.maximum(graph.T) + scipy.sparse.identity(len(x))
    scale = scipy.sparse.diags(1 / np.sqrt(np.asarray(graph.sum(1)).ravel()))
    return scipy.sparse.identity(len(x)) - scale @ graph @ scale


def on_simplex(
    objective: Callable[[Array], tuple[float, Array]], start: Array, steps: int = 100, scale: float | None = None
) -> Array:
    """A minimum of an objective of d, (m,), with d >= 0 and sum d = 1.

    Args:
        objective: From (m,) to the value and its gradient, (m,).
        start: (m,).
        steps: The number of steps at most, of sequential quadratic programming.
        scale: The size of the objective, for its tolerance; `None`: the largest number in its gradient at the start.
    """
    scale = max(float(np.abs(objective(start)[1]).max()) if scale is None else scale, 1e-300)

    def scaled(d: Array) -> tuple[float, Array]:
        value, gradient = objective(d)
        return value / scale, gradient / scale

    sums = scipy.optimize.LinearConstraint(np.ones((1, len(start))), 1, 1)
    found = scipy.optimize.minimize(
        *(scaled, start, (), "SLSQP", True),
        bounds=[(0, 1)] * len(start),
        constraints=sums,
        options={"maxiter": steps},
    )
    clipped: Array = np.maximum(found.x, 0)
    normalized: Array = clipped / clipped.sum()
    return normalized


def one_hot(labels: Labels, classes: int) -> Array:
    """(n, C), float64."""
    table: Array = np.eye(classes)[labels]
    return table


def a_distance(source: Array, target: Array) -> float:
    """Proxy A-distance, 2 (1 - 2 error), in [0, 2] (Ben-David et al., 2007).

    The error is that of a linear least-squares classifier on rows that it did not learn from, one left out at a time
    (in closed form), averaged over the two domains.
    """
    x = np.vstack([source, target])
    x = np.column_stack([x / max(float(np.sqrt(np.mean((x - x.mean(0)) ** 2))), 1e-300), np.ones(len(x))])
    y = np.r_[np.ones(len(source)), -np.ones(len(target))]
    weight = np.where(y > 0, 1 / len(source), 1 / len(target))
    inverse = np.linalg.inv((x.T * weight) @ x + 1e-3 * np.eye(x.shape[1]))
    leverage = weight * np.einsum("ij,jk,ik->i", x, inverse, x)
    fitted = x @ (inverse @ (x.T @ (weight * y)))
    left_out = (fitted - leverage * y) / np.maximum(1 - leverage, 1e-12)
    error = np.average(left_out * y <= 0, weights=weight)
    return float(np.clip(2 * (1 - 2 * error), 0, 2))


def predict_labels(classifier: Any, source: Array, labels: Labels, target: Array) -> Labels:
    """Labels of the target, (n_t,), by a classifier that learns from the source."""
    predicted: Labels = classifier.fit(source, labels).predict(target)
    return predicted
