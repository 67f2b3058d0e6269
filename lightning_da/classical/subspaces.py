"""Closed forms between the domains' principal subspaces or covariances."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator

from lightning_da.classical.algebra import check_rank, unit_rows
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.errors import check_range


def principal(x: Array, dim: int, rows: str = "the rows") -> tuple[Array, Array]:
    """Orthonormal principal directions of centred rows, (d, dim), and the variances along them, (dim,).

    Raises:
        ConfigError: If the rows have fewer dimensions.
    """
    _, singular, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
    check_rank(dim, int(np.sum(singular > singular[0] * 1e-10)), rows)
    return directions[:dim].T, singular[:dim] ** 2 / (len(x) - 1)


def of_domains(source: Array, target: Array, dim: int) -> list[tuple[Array, Array]]:
    """`principal` of each domain, which an error names."""
    return [principal(x, dim, f"the {name}'s rows") for name, x in (("source", source), ("target", target))]


class Centred(Adapter):
    """Rows minus their domain's mean, times their domain's matrix; a subclass gives the two matrices, `_matrices`."""

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:  # noqa: ARG002
        self.source_mean_, self.target_mean_ = source.mean(0), target.mean(0)
        self.source_components_, self.target_components_ = self._matrices(source, target)

    def _transform(self, x: Array, source: bool) -> Array:
        mean = self.source_mean_ if source else self.target_mean_
        z: Array = (x - mean) @ (self.source_components_ if source else self.target_components_)
        return z

    def _matrices(self, source: Array, target: Array) -> tuple[Array, Array]:
        raise NotImplementedError


@dataclass(eq=False, repr=False, kw_only=True)
class SA(Centred):
    """Subspace alignment: features X_s P_s P_s^T P_t and X_t P_t (Fernando et al., ICCV 2013).

    Source: https://arxiv.org/abs/1409.5241

    Args:
        dim: Dimensions of both principal subspaces.
        estimator: The final classifier; `None` is the nearest neighbour.
    """

    dim: int = 20
    estimator: BaseEstimator | None = None

    def _matrices(self, source: Array, target: Array) -> tuple[Array, Array]:
        (p_s, _), (p_t, _) = of_domains(source, target, self.dim)
        return p_s @ (p_s.T @ p_t), p_t


@dataclass(eq=False, repr=False, kw_only=True)
class SDA(SA):
    """Subspace distribution alignment: SA whose source features also get the target's variances (Sun and Saenko, 2015).

    Source: http://www.bmva.org/bmvc/2015/papers/paper024/paper024.pdf

    Args:
        dim: Dimensions of both principal subspaces.
        estimator: The final classifier; `None` is the nearest neighbour.
    """

    def _matrices(self, source: Array, target: Array) -> tuple[Array, Array]:
        (p_s, v_s), (p_t, v_t) = of_domains(source, target, self.dim)
        return p_s @ (p_s.T @ p_t) * np.sqrt(v_t / v_s), p_t


@dataclass(eq=False, repr=False, kw_only=True)
class CORAL(Centred):
    """Correlation alignment: the source's rows get the target's covariance (Sun et al., AAAI 2016, algorithm 1).

    Source features X_s (C_s + reg I)^(-1/2) (C_t + reg I)^(1/2), target features X_t, both centred.

    Source: https://arxiv.org/abs/1511.05547

    Args:
        reg: What is added to the diagonals; 1 in the paper, whose inputs are standardised. Near 0 the covariances
            become equal.
        estimator: The final classifier; `None` is the nearest neighbour, and the paper has a linear SVM.
    """

    reg: float = 1.0
    estimator: BaseEstimator | None = None

    def _matrices(self, source: Array, target: Array) -> tuple[Array, Array]:
        check_range("reg", self.reg, above=0)
        identity = np.eye(source.shape[1])
        roots = [
            _power(np.cov(x, rowvar=False).reshape(identity.shape) + self.reg * identity, power)
            for x, power in ((source, -0.5), (target, 0.5))
        ]
        return roots[0] @ roots[1], identity


def _power(matrix: Array, power: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    result: Array = (vectors * values**power) @ vectors.T
    return result


class Geodesic:
    """The geodesic between the principal subspaces of the domains, from principal angles (Gong et al., 2012).

    The subspace at t in [0, 1] has the basis `start cos(t angles) + across sin(t angles)`; column i turns by angle i.

    Args:
        source: Orthonormal columns, (d, k).
        target: Orthonormal columns, (d, k).
    """

    def __init__(self, source: Array, target: Array) -> None:
        left, cosines, right = np.linalg.svd(source.T @ target)
        self.start: Array = source @ left
        rest = target @ right.T - self.start * cosines
        sines = np.linalg.norm(rest, axis=0)
        self.across: Array = rest / np.where(sines > 1e-12, sines, 1)
        self.angles: Array = np.arctan2(sines, cosines)

    def basis(self, t: float) -> Array:
        """The basis at t, (d, k)."""
        result: Array = self.start * np.cos(t * self.angles) + self.across * np.sin(t * self.angles)
        return result


@dataclass(eq=False, repr=False, kw_only=True)
class GFK(Centred):
    """Geodesic flow kernel: x^T G y, where G integrates the projections on all subspaces between the domains' ones.

    G = int_0^1 Phi(t) Phi(t)^T dt has a closed form, one 2 x 2 block a principal angle (Gong et al., CVPR 2012).
    The features, (n, 2 dim), have this kernel as inner product.

    Source: https://doi.org/10.1109/CVPR.2012.6247911

    Args:
        dim: Dimensions of both principal subspaces; the paper wants fewer than half of those of the inputs.
        unit: Whether features are scaled to length 1.
        estimator: The final classifier; `None` is the nearest neighbour.
    """

    dim: int = 20
    unit: bool = False
    estimator: BaseEstimator | None = None

    def _matrices(self, source: Array, target: Array) -> tuple[Array, Array]:
        (p_s, _), (p_t, _) = of_domains(source, target, self.dim)
        path = Geodesic(p_s, p_t)
        ratio = np.sinc(2 * path.angles / np.pi)  # sin(2 a) / (2 a)
        mixed = np.sin(path.angles) * np.sinc(path.angles / np.pi) / 2  # (1 - cos(2 a)) / (4 a)
        blocks = np.array([[(1 + ratio) / 2, mixed], [mixed, (1 - ratio) / 2]]).transpose(2, 0, 1)
        values, vectors = np.linalg.eigh(blocks)
        roots = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        both = np.stack([path.start, path.across], axis=2)  # (d, k, 2)
        components: Array = np.einsum("dki,kij->dkj", both, roots).reshape(len(both), -1)
        return components, components

    def _transform(self, x: Array, source: bool) -> Array:
        z = super()._transform(x, source)
        return unit_rows(z) if self.unit else z


@dataclass(eq=False, repr=False, kw_only=True)
class SGF(Centred):
    """Sampled geodesic flow: the projections on some subspaces between the domains' ones (Gopalan et al., ICCV 2011).

    The features, (n, samples dim), are divided by sqrt(samples), so that their inner product tends to that of GFK.
    The subspaces are at the middles of equal parts of the way. The paper's partial least squares after them are left
    to `estimator`.

    Source: https://ieeexplore.ieee.org/document/6126344

    Args:
        dim: Dimensions of both principal subspaces.
        samples: The number of subspaces.
        estimator: The final classifier; `None` is the nearest neighbour.
    """

    dim: int = 20
    samples: int = 8
    estimator: BaseEstimator | None = None

    def _matrices(self, source: Array, target: Array) -> tuple[Array, Array]:
        check_range("samples", self.samples, low=1)
        (p_s, _), (p_t, _) = of_domains(source, target, self.dim)
        path = Geodesic(p_s, p_t)
        times = (np.arange(self.samples) + 0.5) / self.samples
        components: Array = np.hstack([path.basis(t) for t in times]) / np.sqrt(self.samples)
        return components, components
