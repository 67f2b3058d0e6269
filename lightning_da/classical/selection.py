"""Methods that select or rank single inputs."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.feature_selection import mutual_info_classif

from lightning_da.classical.algebra import laplacian, leading, marginal, scatter_factor, unit_rows
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.errors import ConfigError, check_range


@dataclass(eq=False, repr=False, kw_only=True)
class FSSL(Adapter):
    """Joint feature selection and subspace learning: a projection with few inputs (Gu et al., IJCAI 2011).

    min tr(A^T X^T L X A) + lam ||A||_21 subject to A^T X^T H X A = I, with the Laplacian L of the nearest neighbours by
    cosine among the rows of both domains. The norm is iterated: row i of A has the weight 1 / (2 ||a_i||).

    Args:
        dim: The number of features.
        lam: Weight of the norm that leaves few inputs.
        neighbors: The number of neighbours of a row in the graph.
        iterations: How often the projection is solved.
        unit: Whether features are scaled to length 1.
        estimator: The final classifier; `None` is the nearest neighbour.
    """

    dim: int = 20
    lam: float = 0.1
    neighbors: int = 10
    iterations: int = 10
    unit: bool = True
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:  # noqa: ARG002
        check_range("lam", self.lam, above=0)
        check_range("iterations", self.iterations, low=1)
        cost = self._structure(np.vstack([source, target]), len(source))
        factor = scatter_factor(np.vstack([source, target]))
        weights = np.full(len(cost), 0.5)
        for _ in range(self.iterations):
            self.components_ = leading(factor, cost + self.lam * np.diag(weights), self.dim, "constraint")
            norms = np.linalg.norm(self.components_, axis=1)
            weights = 1 / (2 * np.maximum(norms, 1e-6 * norms.max()))

    def _structure(self, x: Array, n_s: int) -> Array:  # noqa: ARG002
        structure: Array = x.T @ (laplacian(x, self.neighbors) @ x)
        return structure

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        z = x @ self.components_
        return unit_rows(z) if self.unit else z


@dataclass(eq=False, repr=False, kw_only=True)
class FSSP(FSSL):
    """Joint feature selection and structure preservation: FSSL and MMD (Li et al., IJCAI 2016).

    The cost is X^T (M_0 + manifold L) X, with M_0 divided by its Frobenius norm.

    Source: https://www.ijcai.org/Proceedings/16/Papers/243.pdf

    The other arguments are those of `FSSL`.

    Args:
        manifold: Weight of the Laplacian.
    """

    manifold: float = 1.0

    def _structure(self, x: Array, n_s: int) -> Array:
        return marginal(n_s, len(x) - n_s).normalized().between(x) + self.manifold * super()._structure(x, n_s)


@dataclass(eq=False, repr=False, kw_only=True)
class SCL(Adapter):
    """Structural correspondence learning: inputs that predict the same pivots belong together (Blitzer et al., 2006).

    Pivots are inputs that are positive in many rows of both domains and tell the classes apart, by mutual information
    (Blitzer et al., ACL 2007). A linear model predicts each pivot from the other inputs on the rows of both domains;
    the principal directions of the models' weights give new features beside the inputs.

    Source: https://aclanthology.org/W06-1615, https://aclanthology.org/P07-1056

    Args:
        dim: The number of new features.
        pivots: The number of pivots.
        support: In how many rows of each domain a pivot is positive at least.
        ridge: Weight of the squared weights of the linear models, whose loss is the squared one; in the paper it is a
            modified Huber loss.
        alpha: Mean length of the new part of a row, as a ratio to that of its inputs.
        estimator: The final classifier; `None` is the nearest neighbour.
    """

    dim: int = 25
    pivots: int = 100
    support: int = 5
    ridge: float = 1.0
    alpha: float = 1.0
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        check_range("ridge", self.ridge, above=0)
        check_range("dim", self.dim, low=1)
        present = [x > 0 for x in (source, target)]
        common = np.flatnonzero(np.minimum(*(p.sum(0) for p in present)) >= self.support)
        most = min(len(common), source.shape[1] - 1)
        if most < self.dim:
            raise ConfigError(
                f"dim: {self.dim} is more than the number of possible pivots, {most}: inputs that are positive in "
                f"{self.support} or more rows of each domain, but not all of X; give smaller dim or support"
            )
        told = mutual_info_classif(present[0][:, common], labels, discrete_features=True)
        chosen = np.sort(common[np.argsort(-told, kind="stable")[: self.pivots]])
        rows = np.vstack([source, target])
        inputs = rows.copy()
        inputs[:, chosen] = 0
        wanted = np.vstack(present)[:, chosen] * 2.0 - 1
        system = inputs.T @ inputs + self.ridge * np.eye(rows.shape[1])
        weights = np.linalg.solve(system, inputs.T @ (wanted - wanted.mean(0)))
        self.components_ = np.linalg.svd(weights, full_matrices=False)[0][:, : self.dim]
        lengths = [np.linalg.norm(part, axis=1).mean() for part in (rows, rows @ self.components_)]
        self.scale_ = float(self.alpha * lengths[0] / max(lengths[1], 1e-300))

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        return np.hstack([x, self.scale_ * (x @ self.components_)])
