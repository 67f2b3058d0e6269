"""Maximum mean discrepancy: its formula, its expectation, its power, its memory, and the weights of its kernels."""

import weakref
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.spatial.distance import pdist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_da.losses.mmd import (
    PAPER_BANDWIDTHS,
    Estimator,
    GaussianKernel,
    best_weights,
    joint_mmd,
    linear_kernel,
    mmd,
    null_distribution,
)
from lightning_da.losses.pairs import Pairs
from tests import references

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
SIZES = [(40, 40, 5), (7, 30, 3), (30, 7, 64), (2, 2, 1), (24, 17, 2048)]


def sample(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def test_the_papers_bandwidths() -> None:
    assert len(PAPER_BANDWIDTHS) == 33
    assert (PAPER_BANDWIDTHS[0], PAPER_BANDWIDTHS[16], PAPER_BANDWIDTHS[-1]) == (2**-8, 1, 2**8)
    ratios = np.divide(PAPER_BANDWIDTHS[1:], PAPER_BANDWIDTHS[:-1])
    np.testing.assert_allclose(ratios, np.sqrt(2))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("n_s", "n_t", "d"), SIZES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_it_is_the_formula(estimator: Estimator, n_s: int, n_t: int, d: int, scale: float) -> None:
    source, target = sample(n_s, d, 0, scale), sample(n_t, d, 1, 1.3 * scale, 0.5 * scale)
    middle = (references.linear_median if estimator == "linear" else references.median)(source.numpy(), target.numpy())
    weights = np.linspace(1, 2, 33)
    layer = (source.numpy(), target.numpy(), [b * middle for b in PAPER_BANDWIDTHS], list(weights / weights.sum()))
    found = mmd(source, target, GaussianKernel(beta=list(weights)).double(), estimator)
    assert found.item() == pytest.approx(references.joint_mmd([layer], estimator), rel=1e-6, abs=1e-12)
    low = mmd(source.float(), target.float(), GaussianKernel(beta=list(weights)), estimator)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(found.item(), rel=1e-3, abs=2e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_origin_does_not_matter(estimator: Estimator) -> None:
    source, target = sample(32, 8, 0).float(), sample(32, 8, 1, 2).float()
    near, far = (mmd(source + shift, target + shift, None, estimator) for shift in (0, 1000))
    assert near.item() == pytest.approx(far.item(), rel=1e-2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_joint_one_is_that_of_the_product_of_kernels(estimator: Estimator) -> None:
    sources, targets = ([sample(12, d, seed + d, 1 + seed) for d in (5, 3)] for seed in (0, 1))
    gammas, beta = ((2.0, 8.0), (1.7,)), ((0.25, 0.75), (1.0,))
    layers = [(s.numpy(), t.numpy(), g, b) for s, t, g, b in zip(sources, targets, gammas, beta, strict=True)]
    kernels = [GaussianKernel(g, b, of_median=False).double() for g, b in zip(gammas, beta, strict=True)]
    found = joint_mmd(sources, targets, kernels, estimator)
    assert found.item() == pytest.approx(references.joint_mmd(layers, estimator), rel=1e-6)
    alone = joint_mmd(sources[:1], targets[:1], kernels[:1], estimator)
    assert alone.item() == mmd(sources[0], targets[0], kernels[0], estimator).item()


def test_of_the_linear_kernel_it_is_the_distance_of_the_means() -> None:
    source, target = sample(9, 4, 0), sample(6, 4, 1, shift=1)
    gap = source.mean(0) - target.mean(0)
    assert mmd(source, target, linear_kernel, "biased").item() == pytest.approx(gap.square().sum().item(), rel=1e-12)
    within = [(x @ x.T).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1)) for x in (source, target)]
    expected = within[0] + within[1] - 2 * (source @ target.T).mean()
    assert mmd(source, target, linear_kernel, "unbiased").item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient(estimator: Estimator) -> None:
    kernel = GaussianKernel((0.5, 2.0, 8.0), of_median=False).double()
    source, target = sample(6, 4, 0).requires_grad_(), sample(5, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: mmd(s, t, kernel, estimator), (source, target))
    assert torch.autograd.gradcheck(
        lambda s, t: joint_mmd([s, s[:, :2]], [t, t[:, :2]], [kernel, kernel], estimator), (source, target)
    )


def matrix_of_all_pairs(
    sources: list[Tensor], targets: list[Tensor], factors: tuple[float, ...], estimator: Estimator
) -> Tensor:
    """The joint MMD from whole kernel matrices."""
    product = torch.ones((), dtype=torch.float64)
    for s, t in zip(sources, targets, strict=True):
        both = torch.cat([s, t])
        distances = (both[:, None] - both).square().sum(dim=2)
        middle = references.median(s.detach().numpy(), t.detach().numpy())
        product = product * torch.stack([torch.exp(-distances / (f * middle)) for f in factors]).mean(dim=0)
    if estimator == "unbiased":
        product = product * (1 - torch.eye(len(product)))
    n, m = len(sources[0]), len(targets[0])
    less = int(estimator == "unbiased")
    within = product[:n, :n].sum() / (n * (n - less)) + product[n:, n:].sum() / (m * (m - less))
    return within - 2 * product[:n, n:].mean()


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize(("n_s", "n_t"), [(128, 128), (200, 57), (300, 213), (30, 1000)])
def test_in_tiles_it_is_that_of_whole_matrices(estimator: Estimator, n_s: int, n_t: int) -> None:
    """One tile, two with a single row in the second, three, and more than are kept; value and gradient in float64."""
    factors = (0.5, 2.0)
    source, target = sample(n_s, 3, 0).requires_grad_(), sample(n_t, 3, 1, 1.3, 0.5).requires_grad_()

    def layers(x: Tensor) -> list[Tensor]:
        return [x, 3 * x[:, :2] + 1]

    kernels = [GaussianKernel(factors).double(), GaussianKernel(factors).double()]
    found = joint_mmd(layers(source), layers(target), kernels, estimator)
    expected = matrix_of_all_pairs(layers(source), layers(target), factors, estimator)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    gradients = (torch.autograd.grad(2 * value, (source, target)) for value in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * other.abs().max().item())
    low = joint_mmd(layers(source.float()), layers(target.float()), [k.float() for k in kernels], estimator)
    assert low.item() == pytest.approx(expected.item(), abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 256, 257, 600, 1100])
@pytest.mark.parametrize("kind", ["spread", "tied", "mostly equal"])
def test_the_median_of_all_pairs_is_exact(dtype: torch.dtype, n: int, kind: str) -> None:
    x = sample(n, 3, 0)
    if kind == "tied":
        x = x.round()
    elif kind == "mostly equal":
        x[: n - n // 10] = 1
    distances = pdist(x.numpy(), "sqeuclidean")
    expected = max(np.sort(distances)[(len(distances) - 1) // 2], 1e-3 * distances.mean())
    found = Pairs(x.to(dtype)).typical()
    assert found.dtype == dtype
    assert found.item() == pytest.approx(expected, rel=1e-10 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("n", [100, 600, 1100])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_of_numbers_without_a_distance_it_is_not_finite(n: int, value: float) -> None:
    source, target = torch.randn(n, 3), torch.randn(n, 3)
    source[0, 0] = value
    assert not mmd(source, target).isfinite()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_median_has_no_gradient(estimator: Estimator) -> None:
    source, target = sample(8, 4, 0), sample(6, 4, 1)
    middle = (references.linear_median if estimator == "linear" else references.median)(source.numpy(), target.numpy())
    gradients = []
    for kernel in (GaussianKernel((0.5, 1.0)), GaussianKernel((0.5 * middle, middle), of_median=False)):
        s = source.clone().requires_grad_()
        mmd(s, target, kernel.double(), estimator).backward()
        assert s.grad is not None
        gradients.append(s.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.randn(1, 4), torch.randn(8, 4)),
        (torch.randn(8, 4), torch.randn(1, 4)),
        (torch.randn(1, 4), torch.randn(1, 4)),
        (torch.ones(8, 4), torch.ones(8, 4)),
        (0.1 * torch.ones(8, 4), 0.3 * torch.ones(8, 4)),
        (torch.cat([torch.zeros(7, 4), torch.ones(1, 4)]), torch.zeros(8, 4)),
        (1e15 * torch.randn(8, 4), 1e15 * torch.randn(8, 4)),
        (1e-15 * torch.randn(8, 4), 1e-15 * torch.randn(8, 4)),
    ],
    ids=["one source", "one target", "one each", "collapsed", "collapsed apart", "nearly all equal", "large", "tiny"],
)
def test_it_stays_finite(estimator: Estimator, dtype: torch.dtype, source: Tensor, target: Tensor) -> None:
    s, t = source.to(dtype, copy=True).requires_grad_(), target.to(dtype, copy=True).requires_grad_()
    kernel = GaussianKernel()
    kernel.learn(s, t)
    value = mmd(s, t, kernel, estimator)
    value.backward()
    assert value.isfinite()
    for x in (s, t):
        assert x.grad is not None
        assert x.grad.isfinite().all()
    if len(source) == len(target) == 8 and torch.equal(source, target):
        assert value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("estimator", ["unbiased", "linear"])
@pytest.mark.parametrize(("n_s", "n_t"), [(16, 16), (24, 10)])
def test_on_equal_distributions_it_averages_zero(estimator: Estimator, n_s: int, n_t: int) -> None:
    draws = torch.stack([mmd(sample(n_s, 5, 2 * i), sample(n_t, 5, 2 * i + 1), None, estimator) for i in range(1000)])
    error = draws.std() / 1000**0.5
    assert draws.mean().abs() < 3 * error
    assert draws.min() < 0
    assert error < 2e-3


def test_the_biased_one_does_not_average_zero() -> None:
    draws = [mmd(sample(16, 5, 2 * i), sample(16, 5, 2 * i + 1), None, "biased").item() for i in range(50)]
    assert min(draws) > 0.02


def test_the_linear_one_agrees_with_the_quadratic_one_in_expectation() -> None:
    kernel = GaussianKernel((2.0, 8.0), of_median=False)
    pairs = [(sample(32, 4, 2 * i), sample(32, 4, 2 * i + 1, shift=0.4)) for i in range(1000)]
    linear, quadratic = (
        torch.stack([mmd(s, t, kernel, estimator) for s, t in pairs]) for estimator in ("linear", "unbiased")
    )
    gap = linear - quadratic
    assert gap.mean().abs() < 3 * gap.std() / len(pairs) ** 0.5
    assert quadratic.mean() > 20 * quadratic.std() / len(pairs) ** 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_power_grows_with_the_shift(estimator: Estimator) -> None:
    def power(shift: float) -> float:
        """The share of statistics beyond 95 % of their null distribution."""
        kernel, found = GaussianKernel((1.0,)), []
        for i in range(60):
            s, t = sample(40, 4, 2 * i), sample(40, 4, 2 * i + 1, shift=shift)
            null = null_distribution([s], [t], [kernel], estimator)
            found.append(mmd(s, t, kernel, estimator) > null.quantile(0.95))
        return float(torch.stack(found).double().mean())

    none, some, much = power(0), power(0.4), power(1.2)
    assert none < 0.15
    assert none < some < much
    assert much > 0.9


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_null_distribution_is_what_equal_domains_give(estimator: Estimator) -> None:
    kernel = GaussianKernel((1.0, 4.0))
    draws = torch.stack([mmd(sample(20, 3, 2 * i), sample(30, 3, 2 * i + 1), kernel, estimator) for i in range(400)])
    nulls = torch.stack(
        [
            null_distribution([sample(20, 3, 2 * i)], [sample(30, 3, 2 * i + 1)], [kernel], estimator, 50, seed=i)
            for i in range(40)
        ]
    )
    assert nulls.mean().item() == pytest.approx(draws.mean().item(), abs=4 * draws.std().item() / 20)
    assert nulls.std(dim=1).mean().item() == pytest.approx(draws.std().item(), rel=0.2)


def test_the_null_distribution_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    once, again = (null_distribution([sample(8, 2, 0)], [sample(8, 2, 1)], [GaussianKernel()]) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(once, again)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_different_widths_are_refused(estimator: Estimator) -> None:
    with pytest.raises(ValueError, match="differ in width: 3 and 4"):
        mmd(torch.ones(5, 3), torch.ones(5, 4), None, estimator)


# ---------------------------------------------------------------- memory


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest result of an operation."""

    elements: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize(("estimator", "bound"), [("linear", 4 * 1024 * 16), ("unbiased", 2 * 256 * 256)])
def test_no_tensor_is_larger_than_the_estimator_needs(estimator: Estimator, bound: int) -> None:
    source, target = (torch.randn(1024, 16, requires_grad=True) for _ in range(2))
    kernel = GaussianKernel()
    with _Largest() as found:  # type: ignore[no-untyped-call]  # its base has no types
        kernel.learn(source, target)
        mmd(source, target, kernel, estimator).backward()
    # Values and slopes of the kernel are in one tensor.
    assert found.elements <= 2 * bound


def test_nothing_of_the_pairs_is_kept_for_the_backward_pass() -> None:
    saved: list[weakref.ref[Tensor]] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(weakref.ref(x))
        return x

    source, target = (torch.randn(1024, 16, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = mmd(source, target)
    kept = sum(x.numel() for reference in saved if (x := reference()) is not None)
    assert kept == 2048 * 16
    loss.backward()


# ---------------------------------------------------------------- weights of kernels


def program(d: Any, Q: Any, epsilon: float = 1e-3) -> Any:
    """The solution of min beta^T (Q + epsilon I) beta, d^T beta = 1, beta >= 0 by a general solver."""
    A = Q + epsilon * np.eye(len(d))
    start = np.zeros(len(d))
    start[d.argmax()] = 1 / d.max()
    minimize: Any = scipy.optimize.minimize
    found = minimize(
        lambda b: b @ A @ b,
        start,
        jac=lambda b: 2 * A @ b,
        bounds=[(0, None)] * len(d),
        constraints={"type": "eq", "fun": lambda b: d @ b - 1, "jac": lambda _b: d},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return found.x / found.x.sum()


@pytest.mark.parametrize("seed", range(5))
def test_weights_solve_the_quadratic_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(6, 6))
    d, Q = rng.normal(0.1, 0.3, size=6), 0.05 * factor @ factor.T
    d[0] = abs(d[0]) + 0.1
    beta = best_weights(torch.from_numpy(d), torch.from_numpy(Q))
    assert beta is not None
    assert beta.min() >= 0
    assert beta.sum().item() == pytest.approx(1)
    np.testing.assert_allclose(beta.numpy(), program(d, Q), atol=1e-4)


def test_weights_of_two_kernels_are_the_best_of_all() -> None:
    d, Q = torch.tensor([0.2, 0.1]), torch.tensor([[0.09, 0.01], [0.01, 0.01]])
    share = torch.linspace(0, 1, 10001, dtype=torch.float64)
    candidates = torch.stack([share, 1 - share], dim=1)
    regular = Q.double() + 1e-3 * torch.eye(2, dtype=torch.float64)
    power = candidates @ d.double() / torch.einsum("ij,jk,ik->i", candidates, regular, candidates).sqrt()
    beta = best_weights(d, Q)
    assert beta is not None
    torch.testing.assert_close(beta, candidates[power.argmax()], atol=1e-3, rtol=0)


def test_without_a_positive_statistic_there_are_no_weights() -> None:
    assert best_weights(torch.tensor([-0.1, 0.0]), torch.eye(2)) is None
    kernel = GaussianKernel((0.5, 1.0), beta=(0.3, 0.7))
    x = torch.randn(1, 3).expand(16, 3)
    kernel.learn(x, x)
    torch.testing.assert_close(kernel.beta, torch.tensor([0.3, 0.7]))


def test_learning_keeps_running_means_of_the_papers_statistics() -> None:
    kernel = GaussianKernel((0.5, 2.0, 8.0), of_median=False).double()
    batches = [(sample(20, 3, 2 * i), sample(17, 3, 2 * i + 1, shift=1)) for i in range(3)]
    for source, target in batches:
        kernel.learn(source, target)
    found = [references.kernel_statistics(s.numpy(), t.numpy(), (0.5, 2.0, 8.0)) for s, t in batches]
    # The first batches have equal weights.
    np.testing.assert_allclose(kernel.mean, np.mean([d for d, _ in found], axis=0), rtol=1e-5)
    np.testing.assert_allclose(kernel.covariance, np.mean([Q for _, Q in found], axis=0), rtol=1e-5)
    beta = best_weights(kernel.mean, kernel.covariance)
    assert beta is not None
    torch.testing.assert_close(kernel.beta, beta)


def test_what_is_long_ago_is_forgotten() -> None:
    kernel = GaussianKernel((1.0,), of_median=False).double()
    first, then = ((sample(20, 3, 0), sample(20, 3, 1, shift=shift)) for shift in (0.5, 2.0))
    for batch in [*[first] * 60, then]:
        kernel.learn(*batch)
    (one,), (other,) = (references.kernel_statistics(s.numpy(), t.numpy(), (1.0,))[0] for s, t in (first, then))
    assert kernel.mean.item() == pytest.approx(0.95 * one + 0.05 * other, rel=1e-4)


def test_batches_that_are_not_finite_teach_nothing() -> None:
    kernel, x = GaussianKernel(), torch.randn(16, 3)
    before = {key: value.clone() for key, value in kernel.state_dict().items()}
    kernel.learn(x, x / 0)
    kernel.learn(x[:3], x)
    assert all(torch.equal(before[key], value) for key, value in kernel.state_dict().items())


def test_weights_are_not_learned_from_rounding() -> None:
    """On equal domains a kernel that is nearly 0 everywhere must not win because its tiny statistic is positive."""
    assert best_weights(torch.tensor([5e-21, -0.1]), torch.eye(2)) is None
    for i in range(100):
        kernel = GaussianKernel()
        source, target = sample(64, 100, 2 * i).float(), sample(64, 100, 2 * i + 1).float()
        kernel.learn(source, target)
        assert mmd(source, target, kernel).abs() > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_learning_is_float32_under_autocast(dtype: torch.dtype) -> None:
    source, target = sample(64, 5, 0).to(dtype), sample(64, 5, 1, shift=1).to(dtype)
    one, other = GaussianKernel(), GaussianKernel()
    one.learn(source.float(), target.float())
    with torch.autocast("cpu", dtype=dtype):
        other.learn(source, target)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_learned_weights_have_more_power_than_uniform_ones() -> None:
    """The shift is small beside the spread, so most of the 33 kernels hardly see it."""

    def power(kernel: GaussianKernel) -> float:
        values = torch.stack(
            [mmd(sample(64, 2, i), sample(64, 2, i + 500, shift=0.5), kernel, "linear") for i in range(300)]
        )
        return float(values.mean() / values.std())

    learned, uniform = GaussianKernel(), GaussianKernel()
    for i in range(200):
        learned.learn(sample(64, 2, 1000 + i), sample(64, 2, 2000 + i, shift=0.5))
    assert power(learned) > 1.1 * power(uniform)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianKernel((1.0, 0.0)), "not all positive"),
        (lambda: GaussianKernel(()), "not all positive"),
        (lambda: GaussianKernel((1.0, float("nan"))), "not all positive and finite"),
        (lambda: GaussianKernel((1.0, float("inf"))), "not all positive and finite"),
        (lambda: GaussianKernel((1.0, 2.0), beta=(float("nan"), 1.0)), "give 2 weights"),
        (lambda: GaussianKernel((1.0, 2.0), beta=(1.0,)), "give 2 weights"),
        (lambda: GaussianKernel((1.0, 2.0), beta=(-1.0, 2.0)), "none negative"),
        (lambda: GaussianKernel((1.0, 2.0), beta=(0.0, 0.0)), "some positive"),
    ],
)
def test_kernels_that_make_no_sense_are_refused(make: Callable[[], GaussianKernel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
