"""Maximum mean discrepancy: kernels, estimators, what an estimator gives by chance, and the weights of kernels."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_da.losses.precision import full_precision

Estimator = Literal["unbiased", "biased", "linear"]

Kernel = Callable[[Tensor, Tensor], Tensor]
"""From squared distances and their median to the kernel's values, the shape of the distances."""

PAPER_BANDWIDTHS = tuple(2 ** (exponent / 2) for exponent in range(-16, 17))
"""2^-8 to 2^8 in steps of 2^(1/2) (Long et al., ICML 2015, section 4.1)."""

_BLOCK = 2**18
"""Kernel values that are held at a time."""

_NEGLIGIBLE = 1e-4
"""A statistic of a kernel, whose values are in [0, 1], that says nothing: narrow kernels are 0 but for rounding."""


def _exponentials(distances: Tensor, rates: Tensor) -> Tensor:
    """exp(rate * distance), distances (n,) to (m, n)."""
    # A power of two, kept from underflow, is five to fifty times as fast as `exp` on a CPU.
    return torch.outer(rates / math.log(2), distances).clamp_(min=-126).exp2_()


class _GaussianSum(torch.autograd.Function):
    """sum_u beta_u exp(-distance / gamma_u), in memory that does not depend on the number of kernels."""

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
    """k(x, y) = sum_u beta_u exp(-||x - y||^2 / gamma_u), with sum_u beta_u = 1.

    Source: Long et al., "Learning transferable features with deep adaptation networks", ICML 2015, equation 2 and
    section 4.1.

    Args:
        bandwidths: gamma_u, as multiples of the median squared distance of the samples, or as they are.
        beta: Weight of each kernel, not negative, scaled here to sum to 1; uniform if None.
        of_median: Whether the bandwidths are multiples of the median, which carries no gradient.

    Raises:
        ValueError: If a bandwidth is not positive and finite, or the weights are not one a bandwidth, finite, none
            negative and some positive.
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
        """Kernel values of squared distances, same shape."""
        beta = self.beta.to(distances.dtype)
        values: Tensor = _GaussianSum.apply(distances, self._gammas(distances, median), beta / beta.sum())
        return values

    @torch.no_grad()
    @full_precision
    def learn(self, source: Tensor, target: Tensor) -> None:
        """Sets the weights of the kernels by the test power that they give on the samples seen so far.

        Running means of the linear statistics and of their covariance (of the latest twenty calls, roughly) are kept
        as buffers. Where no kernel's statistic is positive the weights stay as they are.

        Args:
            source: Shape (n_s, d).
            target: Shape (n_t, d). Of fewer than four samples in a domain, or of values that are not finite, nothing is
                learned.
        """
        distances = _quadruples(source, target)
        pairs = distances.shape[1] // 2
        if not pairs or not distances.isfinite().all():
            return
        gammas = self._gammas(distances, _typical(distances))
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
        """What is learned, for a log: the linear statistic, its power (mean over deviation), log2 of the bandwidth."""
        beta = self.beta
        linear = (self.mean * beta).sum()
        deviation = (self.covariance * torch.outer(beta, beta)).sum().clamp(min=1e-12).sqrt()
        bandwidth = (beta * torch.log2(beta.new_tensor(self.bandwidths))).sum()
        return {"linear": linear, "power": linear / deviation, "log2_bandwidth": bandwidth}


def linear_kernel(distances: Tensor, median: Tensor) -> Tensor:  # noqa: ARG001
    """The kernel x . y up to terms that cancel in every estimator, -||x - y||^2 / 2: MMD is the distance of the means.

    Args:
        distances: Squared distances, any shape.
        median: Not used; a `Kernel` is given it.
    """
    return -distances / 2


def best_weights(mean: Tensor, covariance: Tensor, epsilon: float = 1e-3) -> Tensor | None:
    """The weights of kernels that maximise the power of the linear test: a quadratic program.

    min beta^T (Q + epsilon I) beta over beta >= 0 with d^T beta = 1, then scaled to sum to 1. Its solution is that of
    min 1/2 beta^T (Q + epsilon I) beta - d^T beta over beta >= 0 up to scale, a non-negative least-squares problem.

    Source: Long et al., ICML 2015, equation 8.

    Args:
        mean: d, the linear statistic of each kernel, shape (m,).
        covariance: Q, the covariance of these statistics, shape (m, m).
        epsilon: Added to the diagonal of Q.

    Returns:
        beta, shape (m,), float64 on the CPU; None if no statistic is positive, by 1e-4 at least.
    """
    d, Q = (tensor.detach().cpu().double().numpy() for tensor in (mean, covariance))
    if not (d > _NEGLIGIBLE).any():
        return None
    factor = np.linalg.cholesky(Q + epsilon * np.eye(len(d)))
    beta, _ = scipy.optimize.nnls(factor.T, np.linalg.solve(factor, d))
    return torch.from_numpy(beta / beta.sum())


# ---------------------------------------------------------------- distances


def _typical(distances: Tensor) -> Tensor:
    """The median; a thousandth of the mean where most samples are equal."""
    known = distances.detach()
    return torch.maximum(known.median(), 1e-3 * known.mean())


def _all_pairs(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (N, N) of N samples and their median without the diagonal."""
    with torch.no_grad():
        # Distances do not change with the origin, but their rounding errors do; equal samples are exactly 0 here.
        origin = samples[0] + (samples - samples[0]).mean(dim=0)
    z = samples - origin
    squares = z.square().sum(dim=1)
    distances = torch.addmm(squares[:, None] + squares, z, z.T, alpha=-2).clamp(min=0).fill_diagonal_(0)
    n = len(samples)
    off_diagonal = distances.detach().flatten()[1:].view(n - 1, n + 1)[:, :-1]
    return distances, _typical(off_diagonal)


def _quadruples(source: Tensor, target: Tensor) -> Tensor:
    """Squared distances (4, q) within and between the domains in disjoint quadruples, two samples of each domain."""
    q = min(len(source), len(target)) // 2
    s1, s2, t1, t2 = source[: 2 * q : 2], source[1 : 2 * q : 2], target[: 2 * q : 2], target[1 : 2 * q : 2]
    return torch.stack([(x - y).square().sum(dim=1) for x, y in ((s1, s2), (t1, t2), (s1, t2), (s2, t1))])


# ---------------------------------------------------------------- estimators


def _contrast(k: Tensor) -> Tensor:
    """The linear statistic of each quadruple: (..., 4, q) to (..., q)."""
    return k[..., 0, :] + k[..., 1, :] - k[..., 2, :] - k[..., 3, :]


def kernel_matrix(samples: Tensor, kernel: Kernel) -> Tensor:
    """Kernel values (N, N) of all pairs of N samples (N, d), bandwidths taken from the median of their distances."""
    return kernel(*_all_pairs(samples))


def quadratic_mmd(k: Tensor, member: Tensor, n_s: int, unbiased: bool) -> Tensor:
    """The squared discrepancy for each of p ways to call samples source.

    Args:
        k: Kernel matrix of all samples, shape (N, N).
        member: 1 for source and 0 for target, shape (N, p).
        n_s: How many are source, the sum of each column of `member`.
        unbiased: Whether the diagonal is left out.

    Returns:
        Shape (p,).
    """
    n_t = len(k) - n_s
    members = torch.cat([member, 1 - member], dim=1)
    row_sums = k @ members
    if unbiased:
        row_sums = row_sums - k.diagonal()[:, None] * members
    to_source, to_target = row_sums.chunk(2, dim=1)
    within_source, between = (member * to_source).sum(dim=0), (member * to_target).sum(dim=0)
    within_target = ((1 - member) * to_target).sum(dim=0)
    less = 1 if unbiased else 0
    return within_source / (n_s * (n_s - less)) + within_target / (n_t * (n_t - less)) - 2 * between / (n_s * n_t)


def shuffled_mmd(k: Tensor, n_s: int, permutations: int, generator: torch.Generator, unbiased: bool) -> Tensor:
    """What `quadratic_mmd` gives for random choices of n_s samples as source, shape (permutations,)."""
    order = torch.rand(len(k), permutations, generator=generator).argsort(dim=0)
    return quadratic_mmd(k, (order < n_s).to(k), n_s, unbiased)


def _joint_kernel(
    source: Sequence[Tensor], target: Sequence[Tensor], kernels: Sequence[Kernel], estimator: Estimator
) -> Tensor:
    """The product over layers of their kernels: (4, q) for the linear estimator, else (N, N)."""
    values = []
    for s, t, kernel in zip(source, target, kernels, strict=True):
        if estimator == "linear":
            distances = _quadruples(s, t)
            values.append(kernel(distances, _typical(distances)))
        else:
            values.append(kernel_matrix(torch.cat([s, t]), kernel))
    product = values[0]
    for value in values[1:]:
        product = product * value
    return product


def _check_widths(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for s, t in zip(source, target, strict=True):
        if s.shape[1] != t.shape[1]:
            raise ValueError(f"source and target activations differ in width: {s.shape[1]} and {t.shape[1]}")


def _too_few(source: Sequence[Tensor], target: Sequence[Tensor], estimator: Estimator) -> bool:
    return estimator != "biased" and min(len(source[0]), len(target[0])) < 2


@full_precision
def joint_mmd(
    source: Sequence[Tensor], target: Sequence[Tensor], kernels: Sequence[Kernel], estimator: Estimator = "unbiased"
) -> Tensor:
    """Squared joint maximum mean discrepancy: the kernel is the product of the kernels of several layers.

    With one layer it is the squared maximum mean discrepancy, `mmd`.

    Source: Long et al., "Deep transfer learning with joint adaptation networks", ICML 2017, equation 9.

    Args:
        source: Activations of each layer, shape (n_s, width), floating point.
        target: The same of the target, shape (n_t, width).
        kernels: One a layer.
        estimator: As for `mmd`.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: If the widths of source and target differ.
    """
    _check_widths(source, target)
    if _too_few(source, target, estimator):
        return torch.stack([(0 * part).sum() for part in (*source, *target)]).sum()
    k = _joint_kernel(source, target, kernels, estimator)
    if estimator == "linear":
        return _contrast(k).mean()
    member = torch.zeros(len(k), 1, dtype=k.dtype, device=k.device)
    member[: len(source[0])] = 1
    return quadratic_mmd(k, member, len(source[0]), estimator == "unbiased")[0]


def mmd(source: Tensor, target: Tensor, kernel: Kernel | None = None, estimator: Estimator = "unbiased") -> Tensor:
    """Squared maximum mean discrepancy.

    `unbiased` is the U-statistic over all pairs of different samples, `biased` the V-statistic with the pairs of a
    sample and itself, `linear` the mean of k(s1, s2) + k(t1, t2) - k(s1, t2) - k(s2, t1) over disjoint quadruples of
    neighbours in the batch, in time and memory O(n); what the larger domain has more is left out. The unbiased and the
    linear one average 0 on equal distributions, and can be negative.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, equations 3 and 5, lemma 14; Long et al., ICML 2015,
    equation 5.

    Args:
        source: Activations, shape (n_s, d), floating point.
        target: Activations, shape (n_t, d), floating point.
        kernel: None takes the 33 Gaussian kernels of the DAN paper, uniformly weighted.
        estimator: `unbiased`, `biased` or `linear`. Of fewer than two samples in a domain the first and the last
            are 0.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: If the widths differ.
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
) -> Tensor:
    """What `joint_mmd` gives when domain labels are shuffled: its values where there is no difference of domains.

    Shuffling the labels in a quadruple keeps or flips the sign of its linear statistic.

    Source: Gretton et al., JMLR 2012, section 3.

    Args:
        source: Activations of each layer, shape (n_s, width).
        target: The same of the target, shape (n_t, width).
        kernels: One a layer.
        estimator: As for `mmd`.
        permutations: How many shuffles.
        seed: Of the shuffles; the global random state is left alone.

    Returns:
        Shape (permutations,).
    """
    if _too_few(source, target, estimator):
        return source[0].new_zeros(permutations)
    k = _joint_kernel(source, target, kernels, estimator)
    generator = torch.Generator().manual_seed(seed)
    if estimator == "linear":
        statistics = _contrast(k)
        signs = torch.randint(2, (len(statistics), permutations), generator=generator).to(k) * 2 - 1
        return statistics @ signs / len(statistics)
    return shuffled_mmd(k, len(source[0]), permutations, generator, estimator == "unbiased")
