"""Alignment of tensors, feature maps for example, mode by mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from sklearn.base import BaseEstimator

from lightning_da.classical.algebra import unit_rows
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.errors import ConfigError, check_range


@dataclass(eq=False, repr=False, kw_only=True)
class TAISL(Adapter):
    """Tensor-aligned invariant subspace: a Tucker subspace of both domains, and turns of the source into it.

    A row is a tensor X of K modes. For the source and the target together, matrices `U_k` with orthonormal columns and,
    for the source alone, orthogonal matrices `M_k` minimise

    `sum_s ||X_s x_1 M_1 ... x_K M_K - G_s x_1 U_1 ... x_K U_K||^2 + sum_t ||X_t - G_t x_1 U_1 ... x_K U_K||^2`.

    The features are the cores `G`. In turn, each `M_k` has the closed form of a Procrustes problem, and each `U_k` the
    leading eigenvectors of its mode, so that the objective never rises.

    Source: Lu et al., "When unsupervised domain adaptation meets tensor representations", ICCV 2017, from descriptions
    of it, with square matrices, for which its term that keeps the variance of the source is constant. The authors' code
    also decomposes the mode of the samples, which is left whole here. With `iterations` 0 it is the naive tensor
    subspace (NTSL). https://arxiv.org/abs/1707.05956

    Args:
        shape: Sides of the tensor that a row is, the last one varying fastest; `None` takes a row as a vector.
        dims: Sides of the core; `None` is half of each side, rounded up.
        iterations: Number of turns.
        unit: Whether features are scaled to length 1.
        estimator: The final classifier; `None` is the nearest neighbour. The paper has a linear SVM.

    Raises:
        ConfigError: When it is fitted, if `shape` does not fit the rows, or `dims` not `shape`.
    """

    shape: tuple[int, ...] | None = None
    dims: tuple[int, ...] | None = None
    iterations: int = 10
    unit: bool = True
    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:  # noqa: ARG002
        shape, dims = self._sides(source.shape[1])
        s, t = (x.reshape(-1, *shape) for x in (source, target))
        turns = [np.eye(side) for side in shape]
        factors = [_leading(unfold(np.concatenate([s, t]), k), dim) for k, dim in enumerate(dims)]
        losses = [_rest(np.concatenate([s, t]), factors)]
        for _ in range(self.iterations):
            wanted = multiply(multiply(multiply(s, turns), _transposed(factors)), factors)
            for k in range(len(shape)):
                turns[k] = _turn(unfold(multiply(s, turns, without=k), k), unfold(wanted, k), turns[k])
            both = np.concatenate([multiply(s, turns), t])
            for k, dim in enumerate(dims):
                factors[k] = _leading(unfold(multiply(both, _transposed(factors), without=k), k), dim)
            losses.append(_rest(both, factors))
        self.losses_ = np.array(losses)  # the objective before the first turn and after each, (iterations + 1,)
        self.target_ = np.concatenate([u.ravel() for u in factors])
        self.source_ = np.concatenate([(m.T @ u).ravel() for m, u in zip(turns, factors, strict=True)])

    def _sides(self, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sides of the tensor and of the core."""
        shape = (width,) if self.shape is None else tuple(self.shape)
        check_range("shape", shape, 1)
        if prod(shape) != width:
            raise ConfigError(f"shape: a row has {width} values, and a tensor {list(shape)} has {prod(shape)}")
        dims = tuple(-(-side // 2) for side in shape) if self.dims is None else tuple(self.dims)
        if len(dims) != len(shape) or not all(0 < dim <= side for dim, side in zip(dims, shape, strict=True)):
            raise ConfigError(f"dims: give one for each side of {list(shape)}, 1 to that side, not {list(dims)}")
        return shape, dims

    def _transform(self, x: Array, source: bool) -> Array:
        shape, dims = self._sides(x.shape[1])
        ends = np.cumsum([side * dim for side, dim in zip(shape, dims, strict=True)])[:-1]
        parts = np.split(self.source_ if source else self.target_, ends)
        matrices = [part.reshape(side, dim).T for part, side, dim in zip(parts, shape, dims, strict=True)]
        z = multiply(x.reshape(-1, *shape), matrices).reshape(len(x), -1)
        return unit_rows(z) if self.unit else z


def unfold(x: Array, mode: int) -> Array:
    """The unfolding (side, n * others) of tensors (n, *sides) along a mode."""
    return np.moveaxis(x, mode + 1, 0).reshape(x.shape[mode + 1], -1)


def multiply(x: Array, matrices: Sequence[Array], without: int | None = None) -> Array:
    """Tensors (n, *sides), each mode multiplied by a matrix (new side, side); but for the mode `without`."""
    for k, matrix in enumerate(matrices):
        if k != without:
            x = np.moveaxis(np.tensordot(matrix, x, (1, k + 1)), 0, k + 1)
    return x


def _transposed(matrices: Sequence[Array]) -> list[Array]:
    return [matrix.T for matrix in matrices]


def _leading(unfolded: Array, dim: int) -> Array:
    """The `dim` leading left singular vectors, (side, dim)."""
    vectors: Array = np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1][:, :dim]
    return vectors


def _turn(x: Array, wanted: Array, before: Array) -> Array:
    """The orthogonal matrix M with the smallest `||M x - wanted||`; where many have it, the one near to `before`."""
    product = wanted @ x.T
    left, _, right = np.linalg.svd(product + 1e-6 * np.linalg.norm(product) * before)
    turn: Array = left @ right
    return turn


def _rest(x: Array, factors: Sequence[Array]) -> float:
    """What a Tucker subspace leaves: the squared norm of the tensors less that of their cores."""
    return float((x**2).sum() - (multiply(x, _transposed(factors)) ** 2).sum())
