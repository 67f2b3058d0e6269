"""Independent implementations of the losses from their formulas, with numpy and scipy in float64."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from scipy.stats import moment

Array = NDArray[np.float64]


def coral(source: Array, target: Array) -> float:
    """|| C_s - C_t ||_F^2 / (4 d^2)."""

    def covariance(x: Array) -> Array:
        n = len(x)
        if n == 1:
            return np.zeros((x.shape[1], x.shape[1]))
        ones = np.ones((1, n)) @ x
        return np.asarray((x.T @ x - ones.T @ ones / n) / (n - 1))

    return float(((covariance(source) - covariance(target)) ** 2).sum() / (4 * source.shape[1] ** 2))


def covariance_product(x: Array, y: Array) -> float:
    """Unbiased estimate of tr(Sigma_x Sigma_y) of independent samples: the mean of ((x - x') . (y - y'))^2 / 4."""
    pairs_x, pairs_y = (np.array([u - v for u, v in permutations(z, 2)]) for z in (x, y))
    return float(((pairs_x @ pairs_y.T) ** 2).mean() / 4)


def covariance_square(x: Array) -> float:
    """Unbiased estimate of tr(Sigma^2): the mean of ((a - b) . (c - d))^2 / 4 over all four different samples."""
    return float(np.mean([np.dot(a - b, c - d) ** 2 / 4 for a, b, c, d in permutations(x, 4)]))


def cross_entropy(source_logits: Array, target_logits: Array) -> float:
    """- mean log d(f_s) - mean log(1 - d(f_t)), d the logistic function of the logits."""
    return float(np.logaddexp(0, -source_logits).mean() + np.logaddexp(0, target_logits).mean())


def domain_confusion(source_logits: Array, target_logits: Array) -> float:
    """Cross-entropy with one half for each domain, d the logistic function of the logits."""
    d_s, d_t = (1 / (1 + np.exp(-z)) for z in (source_logits, target_logits))
    return float(-0.5 * (np.log(d_s) + np.log(1 - d_s)).mean() - 0.5 * (np.log(d_t) + np.log(1 - d_t)).mean())


def central_moments(source: Array, target: Array, order: int, low: float, high: float) -> float:
    """|| E[X] - E[Y] || / (b - a) + sum_k || c_k(X) - c_k(Y) || / (b - a)^k, by scipy's moments."""
    distance = float(np.linalg.norm(source.mean(axis=0) - target.mean(axis=0))) / (high - low)
    for k in range(2, order + 1):
        difference = moment(source, k, axis=0) - moment(target, k, axis=0)
        distance += float(np.sqrt((difference**2).sum())) / (high - low) ** k
    return distance


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def class_confusion(logits: Array, temperature: float) -> float:
    """Minimum class confusion with one loop for each sum."""
    p = softmax(logits / temperature)
    n, classes = p.shape
    raw = [1 + np.exp(sum(q * np.log(q) for q in row)) for row in p]
    weights = [n * w / sum(raw) for w in raw]
    total = 0.0
    for j in range(classes):
        row = [sum(weights[i] * p[i, j] * p[i, k] for i in range(n)) for k in range(classes)]
        total += sum(row[k] for k in range(classes) if k != j) / sum(row)
    return float(total / classes)


def mutual_information(logits: Array) -> float:
    """Of sample and class, the samples equally likely: sum p(i, c) log(p(i, c) / (p(i) p(c)))."""
    joint = softmax(logits) / len(logits)
    return float((joint * np.log(joint / (joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)))).sum())


def kernel(x: Array, y: Array, gammas: Sequence[float], beta: Sequence[float]) -> Array:
    squared = cdist(x, y, "sqeuclidean")
    return np.asarray(sum(b * np.exp(-squared / g) for b, g in zip(beta, gammas, strict=True)))


def median(source: Array, target: Array) -> float:
    """Lower median of the squared distances of all pairs of different samples."""
    distances = np.sort(pdist(np.concatenate([source, target]), "sqeuclidean"))
    return float(distances[(len(distances) - 1) // 2])


def quadruples(x: Array, y: Array) -> list[tuple[Array, Array, Array, Array]]:
    q = min(len(x), len(y)) // 2
    return [(x[2 * i], x[2 * i + 1], y[2 * i], y[2 * i + 1]) for i in range(q)]


def linear_median(source: Array, target: Array) -> float:
    """Lower median of the squared distances of the pairs in the quadruples."""
    pairs = [
        float(((a - b) ** 2).sum())
        for s1, s2, t1, t2 in quadruples(source, target)
        for a, b in ((s1, s2), (t1, t2), (s1, t2), (s2, t1))
    ]
    return sorted(pairs)[(len(pairs) - 1) // 2]


Layer = tuple[Array, Array, Sequence[float], Sequence[float]]
"""Source, target, gammas and beta of one layer."""


def joint_mmd(layers: Sequence[Layer], estimator: str) -> float:
    """Joint MMD with one loop for each sum. The kernel of two samples is the product over layers."""

    def k(one: tuple[str, int], other: tuple[str, int]) -> float:
        product = 1.0
        for source, target, gammas, beta in layers:
            x, y = (({"s": source, "t": target}[domain])[i : i + 1] for domain, i in (one, other))
            product *= float(kernel(x, y, gammas, beta)[0, 0])
        return product

    n, m = len(layers[0][0]), len(layers[0][1])
    if estimator == "linear":
        q = min(n, m) // 2
        total = 0.0
        for i in range(q):
            s1, s2, t1, t2 = ("s", 2 * i), ("s", 2 * i + 1), ("t", 2 * i), ("t", 2 * i + 1)
            total += k(s1, s2) + k(t1, t2) - k(s1, t2) - k(s2, t1)
        return total / q
    within_s, within_t, between = np.ones((n, n)), np.ones((m, m)), np.ones((n, m))
    for source, target, gammas, beta in layers:
        within_s *= kernel(source, source, gammas, beta)
        within_t *= kernel(target, target, gammas, beta)
        between *= kernel(source, target, gammas, beta)
    if estimator == "unbiased":
        np.fill_diagonal(within_s, 0)
        np.fill_diagonal(within_t, 0)
        return float(within_s.sum() / (n * (n - 1)) + within_t.sum() / (m * (m - 1)) - 2 * between.sum() / (n * m))
    return float(within_s.mean() + within_t.mean() - 2 * between.mean())


def kernel_statistics(source: Array, target: Array, gammas: Sequence[float]) -> tuple[Array, Array]:
    """d and Q of the DAN paper: the mean of the linear statistics and the mean product of their differences."""

    def g(gamma: float, quadruple: tuple[Array, Array, Array, Array]) -> float:
        s1, s2, t1, t2 = quadruple

        def k(a: Array, b: Array) -> float:
            return float(np.exp(-((a - b) ** 2).sum() / gamma))

        return k(s1, s2) + k(t1, t2) - k(s1, t2) - k(s2, t1)

    found = quadruples(source, target)
    values = np.array([[g(gamma, z) for z in found] for gamma in gammas])
    d = values.mean(axis=1)
    pairs = len(found) // 2
    Q = np.zeros((len(gammas), len(gammas)))
    for i in range(pairs):
        step = values[:, 2 * i] - values[:, 2 * i + 1]
        Q += np.outer(step, step) / pairs
    return d, Q


def centred_directions(x: Array) -> Array:
    """Rows without the mean of the rows, scaled to length 1."""
    return np.stack([(row - x.mean(axis=0)) / np.linalg.norm(row - x.mean(axis=0)) for row in x])
