"""Open sets: the target has samples of classes that the source lacks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, identity, kron
from sklearn.base import BaseEstimator
from sklearn.metrics.pairwise import euclidean_distances

from lightning_da.classical.algebra import unit_rows
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.errors import ConfigError, check_range

UNKNOWN = "unknown"


@dataclass(eq=False, repr=False, kw_only=True)
class ATI(Adapter):
    """Assign and transform iteratively: some target samples belong to a class of the source, the others to none.

    In turn, each target sample is assigned to a class or is an outlier (`assigned`), and a linear map W brings the mean
    of each class to its assigned samples, `min_W sum_cj x_cj ||W m_c - t_j||^2 + ridge ||W - I||^2`. The final
    classifier learns from the mapped source and, as class `unknown` (or the next number), from the outliers, if any.

    Source: Busto and Gall, "Open set domain adaptation", ICCV 2017, section 3: ATI. The ridge stands for the paper's
    descent from the identity; there, the classifier learns `unknown` from samples of the source.
    https://openaccess.thecvf.com/content_iccv_2017/html/Busto_Open_Set_Domain_ICCV_2017_paper.html

    Args:
        cost: Cost of an outlier: 0 is the smallest squared distance of a mean to a target sample, 1 the largest.
        ridge: Weight of the distance of W to the identity.
        iterations: The most turns; they end when no sample changes its class.
        unit: Whether rows are scaled to length 1 first.
        estimator: The final classifier; `None` is the nearest neighbour. The paper has a linear SVM.

    Raises:
        ConfigError: In `fit`, if a number is out of range, or the target has fewer samples than classes.
    """

    cost: float = 0.5
    ridge: float = 1.0
    iterations: int = 10
    unit: bool = True
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("cost", self.cost, 0, 1)
        check_range("ridge", self.ridge, above=0)
        check_range("iterations", self.iterations, 1)
        number = len(self.classes_)
        if len(target) < number:
            raise ConfigError(f"sample_domain: the target has {len(target)} samples, fewer than {number} classes")
        s, t = ((unit_rows(x) if self.unit else x) for x in (source, target))
        means = np.stack([s[labels == c].mean(axis=0) for c in range(number)])
        self.map_, self.assigned_ = np.eye(source.shape[1]), np.full(len(t), -1)
        for _ in range(self.iterations):
            distances = euclidean_distances(means, t, squared=True)
            limit = distances.min() + self.cost * (distances.max() - distances.min())
            before, self.assigned_ = self.assigned_, assigned(distances, float(limit))
            if np.array_equal(before, self.assigned_):
                break
            turn = transform(means, t, self.assigned_, self.ridge)
            means, self.map_ = means @ turn.T, turn @ self.map_
        self.outliers_ = t[self.assigned_ == number]
        if len(self.outliers_):
            numbers = self.classes_.dtype.kind in "iu"
            self.classes_ = np.append(self.classes_, self.classes_.max() + 1 if numbers else UNKNOWN)

    def fit_estimator(self) -> None:
        unknown = np.full(len(self.outliers_), len(self.classes_) - 1)
        rows, labels = np.vstack([self.features_, self.outliers_]), np.append(self.labels_, unknown)
        self.estimator_: Any = self.final_estimator().fit(rows, labels)

    def _transform(self, x: Array, source: bool) -> Array:
        rows = unit_rows(x) if self.unit else x
        return rows @ self.map_.T if source else rows


def assigned(distances: Array, limit: float) -> Labels:
    """The class of each sample, so that the sum of distances is smallest and each class has a sample.

    It solves the binary program of Busto and Gall, ICCV 2017, `min sum_cj d_cj x_cj + limit sum_j o_j`, with
    `sum_c x_cj + o_j = 1` for each sample and `sum_j x_cj >= 1` for each class, as a linear one: its matrix is totally
    unimodular, so that the vertices are integers.

    Args:
        distances: Of each class to each sample, (classes, n).
        limit: Cost of an outlier.

    Returns:
        Positions of classes, (n,); the number of classes for an outlier.

    Examples:
        >>> assigned(np.array([[0.0, 1.0, 12.0], [5.0, 4.0, 12.0]]), 6.0).tolist()
        [0, 1, 2]
    """
    number, n = distances.shape
    once = hstack([identity(n, format="csr")] * (number + 1), format="csr")
    filled = hstack([kron(identity(number), np.ones((1, n))), csr_array((number, n))], format="csr")
    costs = np.append(distances.ravel(), np.full(n, limit))
    found = linprog(costs, A_ub=-filled, b_ub=-np.ones(number), A_eq=once, b_eq=np.ones(n), method="highs-ds")
    places: Labels = np.asarray(found.x).reshape(number + 1, n).argmax(axis=0)
    return places


def transform(means: Array, target: Array, places: Labels, ridge: float) -> Array:
    """The map W with the smallest `sum_cj x_cj ||W m_c - t_j||^2 + ridge ||W - I||^2`, (d, d).

    Args:
        means: Of each class, (classes, d).
        target: (n, d).
        places: What `assigned` returns, (n,).
        ridge: Above 0.
    """
    known = places < len(means)
    own, moved = means[places[known]], target[known] - means[places[known]]
    change: Array = solve(own.T @ own + ridge * np.eye(own.shape[1]), own.T @ moved, assume_a="pos").T
    return change + np.eye(len(change))
