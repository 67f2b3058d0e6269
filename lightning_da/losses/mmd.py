"""Maximum mean discrepancy: kernels and their weights, estimators, and the null distribution of an estimator."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_da.losses.pairs import Pairs, Tile, sum_over_pairs, typical
from lightning_da.losses.precision import full_precision

Estimator = Literal["unbiased", "biased", "linear"]

Kernel = Callable[[Tensor, Tensor], Tensor]
"""From squared distances (any shape) and their median (a scalar) to the values of the kernel (the same shape)."""

PAPER_BANDWIDTHS = tuple(2 ** (exponent / 2) for exponent in range(-16, 17))
"""2^-8 to 2^8 in steps of 2^(1/2) (Long et al., ICML 2015, section 4.1)."""

_BLOCK = 2**18
"""The number of kernel values in memory at a time."""

_NEGLIGIBLE = 1e-4
"""Smaller statistics count as 0. Kernels are in [0, 1], and the values of narrow ones are mere rounding errors."""


def _exponentials(distances: Tensor, rates: Tensor) -> Tensor:
    """exp(rate * distance), from distances (n,) and rates (m,) to (m, n)."""
    # A power of two without underflow is five to fifty times as fast as `exp` on a CPU.
    return torch.outer(rates / math.log(2), distances).clamp_(min=-126).exp2_()


class _GaussianSum(torch.autograd.Function):
    """sum_u beta_u exp(-distance / gamma_u). The memory does not grow with the number of kernels."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, gammas: Tensor, beta: Tensor) -> Tensor:
        rates = -1 / gammas
        value_and_slope = torch.stack([beta, beta * rates])
        blocks = distances.flatten().split(max(_BLOCK // len(gammas), 1))
        sums = torch.cat([value_and_slope @ _exponentials(block, rates) for block in blocks], dim=1)
        sums = sums.reshape(2, *distances.shape)
        ctx.save_for_backward(sums[1])
        return sums[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None


class GaussianKernel(nn.Module):
    """`k(x, y) = sum_u beta_u exp(-||x - y||^2 / gamma_u)`, with `sum_u beta_u = 1`.

    Source: Long et al., "Learning transferable features with deep adaptation networks", ICML 2015, equation 2 and
    section 4.1.
    https://arxiv.org/abs/1502.02791

    Args:
        bandwidths: gamma_u, each positive and finite.
        beta: beta_u, each finite and not negative; they are scaled to sum to 1. None gives equal weights.
        of_median: Whether the bandwidths are multiples of the median squared distance. The median has no gradient.

    Raises:
        ValueError: If a bandwidth is not positive and finite. If the number of weights is not the number of bandwidths,
            a weight is negative or not finite, or all are 0.

    Examples:
        >>> kernel = GaussianKernel((2.0,), of_median=False)
        >>> kernel(torch.tensor([0.0, 2.0]), median=torch.tensor(1.0))
        tensor([1.0000, 0.3679])
    """

    beta: Tensor
    observations: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        bandwidths: Sequence[float] = PAPER_BANDWIDTHS,
        beta: Sequence[float] | None = None,
        of_median: bool = True,
    ) -> None:
        super().__init__()
        weights = [1.0] * len(bandwidths) if beta is None else list(beta)
        if not bandwidths or not all(0 < bandwidth < math.inf for bandwidth in bandwidths):
            raise ValueError(f"bandwidths: {list(bandwidths)} are not all positive and finite")
        if len(weights) != len(bandwidths) or not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
            raise ValueError(
                f"beta: give {len(bandwidths)} weights, one a bandwidth, none negative and some positive; not {weights}"
            )
        self.bandwidths, self.of_median = tuple(bandwidths), of_median
        self.register_buffer("beta", torch.tensor(weights) / sum(weights))
        self.register_buffer("observations", torch.tensor(0.0))
        self.register_buffer("mean", torch.zeros(len(bandwidths)))
        self.register_buffer("covariance", torch.zeros(len(bandwidths), len(bandwidths)))

    def _gammas(self, distances: Tensor, median: Tensor) -> Tensor:
        gammas = distances.new_tensor(self.bandwidths)
        return (gammas * median if self.of_median else gammas).clamp(min=1e-30)

    def forward(self, distances: Tensor, median: Tensor) -> Tensor:
        """Values of the kernel.

        Args:
            distances: Squared distances, any shape, floating point.
            median: Their median, a scalar.

        Returns:
            The shape and dtype of `distances`.
        """
        beta = self.beta.to(distances.dtype)
        values: Tensor = _GaussianSum.apply(distances, self._gammas(distances, median), beta / beta.sum())
        return values

    @torch.no_grad()
    @full_precision
    def learn(self, source: Tensor, target: Tensor) -> None:
        """Sets the weights to those with the largest test power on the samples so far.

        The buffers `mean` and `covariance` are running means of the linear statistics and of their covariance, over
        about the last twenty calls. The weights stay the same if no kernel has a positive statistic. Nothing is learned
        from values that are not finite, or if a domain has fewer than four samples.

        Args:
            source: Shape (n_s, d), floating point.
            target: Shape (n_t, d), floating point.
        """
        distances = _quadruples(source, target)
        pairs = distances.shape[1] // 2
        if not pairs or not distances.isfinite().all():
            return
        gammas = self._gammas(distances, typical(distances))
        statistics = _contrast(_exponentials(distances.flatten(), -1 / gammas).view(-1, *distances.shape))
        differences = statistics[:, : 2 * pairs : 2] - statistics[:, 1 : 2 * pairs : 2]
        self.observations += 1
        share = (1 / self.observations).clamp(min=0.05)
        self.mean.lerp_(statistics.mean(dim=1).to(self.mean), share)
        self.covariance.lerp_((differences @ differences.T / pairs).to(self.covariance), share)
        beta = best_weights(self.mean, self.covariance)
        if beta is not None:
            self.beta.copy_(beta)

    def summary(self) -> dict[str, Tensor]:
        """Values to log: the linear statistic, its power (mean over deviation) and the mean log2 of the bandwidths."""
        beta = self.beta
        linear = (self.mean * beta).sum()
        deviation = (self.covariance * torch.outer(beta, beta)).sum().clamp(min=1e-12).sqrt()
        bandwidth = (beta * torch.log2(beta.new_tensor(self.bandwidths))).sum()
        return {"linear": linear, "power": linear / deviation, "log2_bandwidth": bandwidth}


def linear_kernel(distances: Tensor, median: Tensor) -> Tensor:  # noqa: ARG001
    """The kernel -||x - y||^2 / 2. It differs from x . y by terms that cancel in every estimator.

    The squared MMD with this kernel is the squared distance of the means.

    Args:
        distances: Squared distances, any shape, floating point.
        median: Not used; every `Kernel` has this argument.

    Returns:
        The shape and dtype of `distances`.

    Examples:
        >>> linear_kernel(torch.tensor([2.0, 4.0]), median=torch.tensor(3.0))
        tensor([-1., -2.])
    """
    return -distances / 2


def best_weights(mean: Tensor, covariance: Tensor, epsilon: float = 1e-3) -> Tensor | None:
    """The weights of kernels with the largest power of the linear test: a quadratic program.

    It is min beta^T (Q + epsilon I) beta over beta >= 0 with d^T beta = 1. The solution is scaled to sum to 1. Up to
    scale it solves min 1/2 beta^T (Q + epsilon I) beta - d^T beta over beta >= 0, a non-negative least-squares problem.

    Source: Long et al., ICML 2015, equation 8.
    https://arxiv.org/abs/1502.02791

    Args:
        mean: d, the linear statistic of each kernel, shape (m,), floating point.
        covariance: Q, the covariance of these statistics, shape (m, m), floating point.
        epsilon: Added to the diagonal of Q.

    Returns:
        beta, shape (m,), float64 on the CPU. None if no statistic exceeds 1e-4.

    Examples:
        >>> best_weights(torch.tensor([0.3, 0.1, -0.2]), torch.eye(3))
        tensor([0.7500, 0.2500, 0.0000], dtype=torch.float64)
    """
    d, Q = (tensor.detach().cpu().double().numpy() for tensor in (mean, covariance))
    if not (d > _NEGLIGIBLE).any():
        return None
    try:
        factor = np.linalg.cholesky(Q + epsilon * np.eye(len(d)))
    except np.linalg.LinAlgError:  # rounded to half precision, it need not be positive definite
        return None
    beta, _ = scipy.optimize.nnls(factor.T, np.linalg.solve(factor, d))
    return torch.from_numpy(beta / beta.sum())


# ---------------------------------------------------------------- estimators


def _quadruples(source: Tensor, target: Tensor) -> Tensor:
    """Squared distances (4, q) within and between the domains in disjoint quadruples, two samples of each domain."""
    q = min(len(source), len(target)) // 2
    s1, s2, t1, t2 = source[: 2 * q : 2], source[1 : 2 * q : 2], target[: 2 * q : 2], target[1 : 2 * q : 2]
    return torch.stack([(x - y).square().sum(dim=1) for x, y in ((s1, s2), (t1, t2), (s1, t2), (s2, t1))])


def _contrast(k: Tensor) -> Tensor:
    """The linear statistic of each quadruple: (..., 4, q) to (..., q)."""
    return k[..., 0, :] + k[..., 1, :] - k[..., 2, :] - k[..., 3, :]


def kernel_matrix(samples: Tensor, kernel: Kernel) -> Tensor:
    """Values of a kernel for all pairs of samples, without gradient.

    Args:
        samples: Shape (N, d), floating point, N at least 2.
        kernel: It gets the squared distances (N, N) and the median of those off the diagonal.

    Returns:
        Shape (N, N).

    Examples:
        >>> kernel_matrix(torch.tensor([[0.0], [2.0]]), GaussianKernel((4.0,), of_median=False))
        tensor([[1.0000, 0.3679],
                [0.3679, 1.0000]])
    """
    pairs = Pairs(samples, rows=len(samples))
    (distances,) = pairs
    return kernel(distances, pairs.typical())


def quadratic_mmd(k: Tensor, member: Tensor, n_s: int, unbiased: bool) -> Tensor:
    """Squared maximum mean discrepancy for p assignments of samples to the domains.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, equations 3 and 5.
    https://www.jmlr.org/papers/v13/gretton12a.html

    Args:
        k: Kernel matrix of all samples, shape (N, N), floating point.
        member: 1 for source and 0 for target, shape (N, p), the dtype of `k`.
        n_s: The number of source samples, the sum of each column of `member`.
        unbiased: Whether the diagonal of `k` is left out. Each domain then needs two samples.

    Returns:
        Shape (p,), the dtype of `k`.

    Examples:
        >>> k = kernel_matrix(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), linear_kernel)
        >>> member = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
        >>> quadratic_mmd(k, member, n_s=2, unbiased=False)  # the means are 4 apart
        tensor([16.])
    """
    return _part(k, member, member, n_s, len(k) - n_s, unbiased, diagonal=True)


def _part(k: Tensor, rows: Tensor, columns: Tensor, n_s: int, n_t: int, unbiased: bool, diagonal: bool) -> Tensor:
    """What a part (n, m) of the kernel matrix adds to `quadratic_mmd`, given the members (n, p) and (m, p) of it."""
    members = torch.cat([columns, 1 - columns], dim=1)
    row_sums = k @ members
    if unbiased and diagonal:
        row_sums = row_sums - k.diagonal()[:, None] * members
    to_source, to_target = row_sums.chunk(2, dim=1)
    less = 1 if unbiased else 0
    of_source = to_source / (n_s * (n_s - less)) - to_target / (n_s * n_t)
    of_target = to_target / (n_t * (n_t - less)) - to_source / (n_s * n_t)
    return (rows * of_source + (1 - rows) * of_target).sum(dim=0)


def shuffled_members(n_s: int, n_t: int, permutations: int, generator: torch.Generator) -> Tensor:
    """Random assignments of n_s + n_t samples to the domains, for `quadratic_mmd`.

    Args:
        n_s: The number of source samples in each assignment.
        n_t: The number of target samples.
        permutations: The number of assignments.
        generator: Draws them.

    Returns:
        1 for source and 0 for target, shape (n_s + n_t, permutations), float32.

    Examples:
        >>> shuffled_members(2, 1, 5, torch.Generator().manual_seed(0)).sum(dim=0)
        tensor([2., 2., 2., 2., 2.])
    """
    order = torch.rand(n_s + n_t, permutations, generator=generator).argsort(dim=0)
    return (order < n_s).float()


def _product(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, values)


def _quadratic(
    source: Sequence[Tensor],
    target: Sequence[Tensor],
    kernels: Sequence[Kernel],
    unbiased: bool,
    member: Tensor,
    shared: bool,
) -> Tensor:
    """`quadratic_mmd` (p,) of the product of the layers' kernels, a tile of the matrix at a time."""
    samples = [torch.cat(pair) for pair in zip(source, target, strict=True)]
    layers = [Pairs(both, shared) for both in samples]
    scaled = [(kernel, pairs.typical()) for kernel, pairs in zip(kernels, layers, strict=True)]
    n_s, n_t, member = len(source[0]), len(target[0]), member.to(samples[0])

    def part(tile: Tile, distances: Sequence[Tensor]) -> Tensor:
        k = _product(kernel(d, median) for d, (kernel, median) in zip(distances, scaled, strict=True))
        return _part(k, member[tile.rows], member[tile.columns], n_s, n_t, unbiased, tile.diagonal)

    return sum_over_pairs(part, samples, layers, member.shape[1])


def _contrasts(source: Sequence[Tensor], target: Sequence[Tensor], kernels: Sequence[Kernel]) -> Tensor:
    """The linear statistic (q,) of the product of the layers' kernels."""
    distances = [_quadruples(s, t) for s, t in zip(source, target, strict=True)]
    return _contrast(_product(kernel(d, typical(d)) for d, kernel in zip(distances, kernels, strict=True)))


def _check_widths(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for s, t in zip(source, target, strict=True):
        if s.shape[1] != t.shape[1]:
            raise ValueError(f"source and target activations differ in width: {s.shape[1]} and {t.shape[1]}")


def _too_few(source: Sequence[Tensor], target: Sequence[Tensor], estimator: Estimator) -> bool:
    return estimator != "biased" and min(len(source[0]), len(target[0])) < 2


@full_precision
def joint_mmd(
    source: Sequence[Tensor],
    target: Sequence[Tensor],
    kernels: Sequence[Kernel],
    estimator: Estimator = "unbiased",
    shared: bool = False,
) -> Tensor:
    """Squared joint maximum mean discrepancy: its kernel is the product of the kernels of several layers.

    With one layer it is `mmd`.

    Source: Long et al., "Deep transfer learning with joint adaptation networks", ICML 2017, equation 9.
    https://arxiv.org/abs/1605.06636

    Args:
        source: Activations of each layer, shape (n_s, width), floating point.
        target: The same for the target, shape (n_t, width).
        kernels: One for each layer. Parameters of their own get no gradient.
        estimator: As for `mmd`.
        shared: Whether all processes have these samples, as after `gather`. Each process then computes a part of the
            pairs. The value is whole in each; the gradient is that of the part times the number of processes, whose
            mean over processes is the gradient of the whole. `linear` is cheap, and is computed by each.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: If the widths of source and target differ, or the numbers of layers and kernels do.

    Examples:
        >>> source, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [5.0]])
        >>> kernels = [GaussianKernel((1.0,)), GaussianKernel((2.0,))]
        >>> round(joint_mmd([source, source], [target, target], kernels).item(), 3)
        1.504
    """
    _check_widths(source, target)
    if _too_few(source, target, estimator):
        return torch.stack([(0 * part).sum() for part in (*source, *target)]).sum()
    if estimator == "linear":
        return _contrasts(source, target, kernels).mean()
    member = torch.cat([torch.ones(len(source[0]), 1), torch.zeros(len(target[0]), 1)])
    return _quadratic(source, target, kernels, estimator == "unbiased", member, shared)[0]


def mmd(source: Tensor, target: Tensor, kernel: Kernel | None = None, estimator: Estimator = "unbiased") -> Tensor:
    """Squared maximum mean discrepancy.

    `unbiased` is the U-statistic over all pairs of different samples. `biased` is the V-statistic, which adds the pairs
    of a sample with itself. `linear` is the mean of k(s1, s2) + k(t1, t2) - k(s1, t2) - k(s2, t1) over disjoint
    quadruples of neighbours in the batch, with time and memory O(n); extra samples of the larger domain are ignored.
    `unbiased` and `linear` average 0 on equal distributions and can be negative.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, equations 3 and 5, lemma 14; Long et al., ICML 2015,
    equation 5.
    https://arxiv.org/abs/1502.02791, https://www.jmlr.org/papers/v13/gretton12a.html

    Args:
        source: Activations, shape (n_s, d), floating point.
        target: Activations, shape (n_t, d), floating point.
        kernel: None takes the 33 Gaussian kernels of the DAN paper with equal weights.
        estimator: `unbiased`, `biased` or `linear`. If a domain has fewer than two samples, `unbiased` and `linear` are
            0.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: If the widths differ.

    Examples:
        >>> source, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [5.0]])
        >>> round(mmd(source, target).item(), 3)
        0.478
        >>> mmd(source, target, linear_kernel, "biased")  # the means are 4 apart
        tensor(16.)
    """
    return joint_mmd([source], [target], [kernel or GaussianKernel().to(source.device)], estimator)


@torch.no_grad()
@full_precision
def null_distribution(
    source: Sequence[Tensor],
    target: Sequence[Tensor],
    kernels: Sequence[Kernel],
    estimator: Estimator = "unbiased",
    permutations: int = 100,
    seed: int = 0,
    shared: bool = False,
) -> Tensor:
    """Values of `joint_mmd` with shuffled domain labels: its distribution if the domains do not differ.

    For the linear estimator a shuffle keeps or flips the sign of each quadruple's statistic.

    Source: Gretton et al., JMLR 2012, section 3.
    https://www.jmlr.org/papers/v13/gretton12a.html

    Args:
        source: Activations of each layer, shape (n_s, width), floating point.
        target: The same for the target, shape (n_t, width).
        kernels: One for each layer.
        estimator: As for `mmd`.
        permutations: The number of shuffles.
        seed: Seed of the shuffles. The global random state does not change.
        shared: As for `joint_mmd`.

    Returns:
        Shape (permutations,), float32 or better.

    Examples:
        >>> source, target = torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [5.0]])
        >>> null_distribution([source], [target], [linear_kernel], "biased", permutations=200).unique()
        tensor([ 0.,  1., 16.])
    """
    if _too_few(source, target, estimator):
        return source[0].new_zeros(permutations)
    generator = torch.Generator().manual_seed(seed)
    if estimator == "linear":
        statistics = _contrasts(source, target, kernels)
        signs = torch.randint(2, (len(statistics), permutations), generator=generator).to(statistics) * 2 - 1
        return statistics @ signs / len(statistics)
    member = shuffled_members(len(source[0]), len(target[0]), permutations, generator)
    return _quadratic(source, target, kernels, estimator == "unbiased", member, shared)
