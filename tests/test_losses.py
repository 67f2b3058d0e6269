"""Properties of every loss between two samples. test_mmd.py has more tests of the maximum mean discrepancy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_da.losses.adversarial import domain_classification, domain_confusion, inverted_labels, scale_gradient
from lightning_da.losses.coral import coral
from lightning_da.losses.mmd import Estimator, GaussianKernel, joint_mmd, mmd
from lightning_da.losses.moments import central_moments
from tests import references

SIZES = [(40, 40, 5), (7, 30, 3), (30, 7, 64), (2, 2, 1), (1, 6, 4), (6, 1, 4), (64, 48, 2048)]
GAMMAS = (0.5, 2.0, 8.0)

Loss = Callable[[Tensor, Tensor], Tensor]


def discriminator(width: int, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1)).to(dtype)


def adversarial(source: Tensor, target: Tensor) -> Tensor:
    """Both losses of ADDA."""
    network = discriminator(source.shape[1], torch.float64 if source.dtype == torch.float64 else torch.float32)
    return domain_classification(source, target, network) + inverted_labels(target, network)


def confusion(source: Tensor, target: Tensor) -> Tensor:
    network = discriminator(source.shape[1], torch.float64 if source.dtype == torch.float64 else torch.float32)
    return domain_confusion(source, target, network)


def moments(source: Tensor, target: Tensor) -> Tensor:
    """As CMD computes them: of activations in (-1, 1)."""
    return central_moments(source.tanh(), target.tanh(), 5, 2.0)


def discrepancy(estimator: Estimator) -> Loss:
    return lambda s, t: mmd(s / s.shape[1] ** 0.5, t / t.shape[1] ** 0.5, fixed(s), estimator)


def fixed(x: Tensor) -> GaussianKernel:
    kernel = GaussianKernel(GAMMAS, of_median=False)
    return kernel.double() if x.dtype == torch.float64 else kernel


def joint(source: Tensor, target: Tensor) -> Tensor:
    return joint_mmd([source, source[:, :2]], [target, target[:, :2]], [GaussianKernel(), GaussianKernel()], "unbiased")


LOSSES: dict[str, Loss] = {
    "coral": coral,
    "cmd": moments,
    "dann, adda": adversarial,
    "domain confusion": confusion,
    "dan, unbiased": lambda s, t: mmd(s, t, None, "unbiased"),
    "dan, biased": lambda s, t: mmd(s, t, None, "biased"),
    "dan, linear": lambda s, t: mmd(s, t, None, "linear"),
    "jan": joint,
}


def reference(name: str, source: Tensor, target: Tensor) -> float:
    s, t = source.numpy(), target.numpy()
    n, m = len(s), len(t)
    if name == "coral":
        return references.coral(s, t)
    if name == "cmd":
        return references.central_moments(np.tanh(s), np.tanh(t), 5, -1, 1)
    if name in ("dann, adda", "domain confusion"):
        network = discriminator(s.shape[1], torch.float64)
        (W, b), (v, c) = ([p.detach().numpy() for p in network[i].parameters()] for i in (0, 2))  # type: ignore[index]
        logits_s, logits_t = (np.maximum(x @ W.T + b, 0) @ v.T + c for x in (s, t))
        if name == "domain confusion":
            return references.domain_confusion(logits_s, logits_t)
        return references.cross_entropy(logits_s, logits_t) + float(np.logaddexp(0, -logits_t).mean())
    estimator = "unbiased" if name == "jan" else name.split()[1]
    if estimator != "biased" and min(n, m) < 2:
        return 0.0
    median = references.linear_median if estimator == "linear" else references.median
    factors = [2 ** (e / 2) for e in range(-16, 17)]
    layers = [
        (x, y, [f * median(x, y) for f in factors], [1 / 33] * 33)
        for x, y in ([(s, t)] if name != "jan" else [(s, t), (s[:, :2], t[:, :2])])
    ]
    return references.joint_mmd(layers, estimator)


def sample(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.5, 2, d, dtype=torch.float64)
    return scale * spread * torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("n_s", "n_t", "d"), SIZES)
def test_it_is_the_formula(name: str, n_s: int, n_t: int, d: int) -> None:
    source, target = sample(n_s, d, 0), sample(n_t, d, 1, scale=1.7)
    found = LOSSES[name](source, target)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(reference(name, source, target), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    "loss", [coral, adversarial, confusion, moments, *(discrepancy(e) for e in ("unbiased", "biased", "linear"))]
)
@pytest.mark.parametrize(("n_s", "n_t"), [(6, 5), (4, 9)])
def test_gradient(loss: Loss, n_s: int, n_t: int) -> None:
    source, target = sample(n_s, 4, 0).requires_grad_(), sample(n_t, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (source, target))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.randn(1, 4), torch.randn(8, 4)),
        (torch.randn(8, 4), torch.randn(1, 4)),
        (torch.ones(8, 4), torch.ones(8, 4)),
        (torch.ones(8, 4), 3 * torch.ones(8, 4)),
        (1e4 * torch.randn(8, 4), 1e4 * torch.randn(8, 4)),
        (1e-12 * torch.randn(8, 4), 1e-12 * torch.randn(8, 4)),
        (torch.ones(8, 64), 0.1 * torch.ones(8, 64)),
        (1e4 * torch.randn(8, 64), 1e4 * torch.randn(8, 64)),
    ],
    ids=["one source", "one target", "collapsed", "collapsed apart", "large", "tiny", "collapsed, wide", "large, wide"],
)
def test_it_stays_finite(name: str, source: Tensor, target: Tensor) -> None:
    s, t = source.clone().requires_grad_(), target.clone().requires_grad_()
    value = LOSSES[name](s, t)
    value.backward()
    assert s.grad is not None
    assert t.grad is not None
    assert value.isfinite()
    assert s.grad.isfinite().all()
    assert t.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_it_is_float32_under_autocast(name: str, dtype: torch.dtype, scale: float) -> None:
    source, target = (scale * sample(32, 16, seed).float().tanh().to(dtype) for seed in (0, 1))
    target = 0.5 * target
    expected = LOSSES[name](source.float(), target.float())
    with torch.autocast("cpu", dtype=dtype):
        found = LOSSES[name](source, target)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    assert expected.item() > 0


def coral_of_covariances(source: Tensor, target: Tensor) -> Tensor:
    """CORAL from two d x d covariances."""
    return (source.mT.cov() - target.mT.cov()).square().sum() / (4 * source.shape[1] ** 2)


def value_and_gradients(loss: Loss, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s, t = source.clone().requires_grad_(), target.clone().requires_grad_()
    value = loss(s, t)
    value.backward()
    assert s.grad is not None
    assert t.grad is not None
    return value.detach(), s.grad, t.grad


@pytest.mark.parametrize("d", [95, 96, 97, 98, 500])
@pytest.mark.parametrize(("n_s", "n_t"), [(24, 24), (40, 8), (3, 45)])
def test_coral_of_wide_features_is_that_of_their_covariances(n_s: int, n_t: int, d: int) -> None:
    """The form changes at d = 2 (n_s + n_t), which is 96 here."""
    source, target = sample(n_s, d, 0) + 5, sample(n_t, d, 1, scale=1.3)
    expected = value_and_gradients(coral_of_covariances, source, target)
    for found, wanted in zip(value_and_gradients(coral, source, target), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    for found, wanted in zip(value_and_gradients(coral, source.float(), target.float()), expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item())


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3])
def test_coral_of_nearly_equal_covariances_keeps_its_digits(change: float) -> None:
    """With the smallest change the loss is a millionth of the squared norms: their difference in float32 is noise."""
    source = sample(32, 512, 0).float()
    target = source + change * sample(32, 512, 1).float()
    wanted = value_and_gradients(coral_of_covariances, source.double(), target.double())
    found = value_and_gradients(coral, source, target)
    assert found[0].item() == pytest.approx(
        references.coral(source.double().numpy(), target.double().numpy()), rel=1e-5
    )
    for part, expected in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(part.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize(("n_s", "n_t"), [(1, 9), (9, 1), (1, 1)])
def test_the_covariance_of_a_single_wide_sample_is_zero(n_s: int, n_t: int) -> None:
    source, target = sample(n_s, 64, 0), sample(n_t, 64, 1)
    value, *gradients = value_and_gradients(coral, source, target)
    assert value.item() == pytest.approx(references.coral(source.numpy(), target.numpy()), rel=1e-10)
    for x, gradient in zip((source, target), gradients, strict=True):
        assert (gradient.abs().max() > 0) == (len(x) > 1)


@pytest.mark.parametrize("d", [6, 500])
def test_coral_is_zero_on_equal_covariances_and_blind_to_the_mean(d: int) -> None:
    source = sample(50, d, 0)
    value, *gradients = value_and_gradients(coral, source, source.flip(0) + 100)
    assert 0 <= value.item() < 1e-15
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)
    moved = sample(50, d, 1)
    assert coral(source, moved + 3).item() == pytest.approx(coral(source, moved).item(), rel=1e-9)


def test_coral_refuses_different_widths() -> None:
    with pytest.raises(ValueError, match="differ in width: 3 and 4"):
        coral(torch.ones(5, 3), torch.ones(5, 4))


def test_inverted_labels_teach_the_features_and_not_the_discriminator() -> None:
    network = discriminator(4, torch.float32)
    source, target = torch.randn(6, 4), torch.randn(6, 4, requires_grad=True)
    loss = inverted_labels(target, network)
    loss.backward()
    assert all(p.grad is None for p in network.parameters())
    assert target.grad is not None
    with torch.no_grad():
        nearer = network(target - 0.1 * target.grad)
    assert nearer.mean() > network(target).mean()
    domain_classification(source, target.detach(), network).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_confusion_teaches_the_features_and_not_the_discriminator() -> None:
    network = discriminator(4, torch.float32)
    source, target = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    domain_confusion(source, target, network).backward()
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():  # nearer to "half and half", where the logit is 0
        for x in (source, target):
            assert x.grad is not None
            assert network(x - 0.1 * x.grad).abs().mean() < network(x).abs().mean()


def test_domain_classification_with_weights_is_a_weighted_mean() -> None:
    network = discriminator(3, torch.float64)
    source, target = sample(4, 3, 0), sample(2, 3, 1)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.5]).double(), torch.tensor([3.0, 1.0]).double()
    found = domain_classification(source, target, network, *weights)
    z_s, z_t = network(source)[:, 0].detach().numpy(), network(target)[:, 0].detach().numpy()
    expected = np.average(np.logaddexp(0, -z_s), weights=weights[0])
    expected += np.average(np.logaddexp(0, z_t), weights=weights[1])
    assert found.item() == pytest.approx(expected)
    equal = domain_classification(source, target, network, 7 * torch.ones(4).double(), None)
    assert equal.item() == pytest.approx(domain_classification(source, target, network).item())


def test_moments_see_what_coral_does_not() -> None:
    """Means and, of equal means and variances, the skewness."""
    x = torch.tensor([[-1.0], [-1.0], [2.0]]).double() / 4
    assert central_moments(x, -x, 2).item() == pytest.approx(0, abs=1e-12)
    assert central_moments(x, -x, 3).item() > 0.01
    assert central_moments(x, x + 0.25, 1).item() == pytest.approx(0.25)


def test_domain_classification_of_an_undecided_discriminator() -> None:
    discriminator = nn.Linear(4, 1)
    nn.init.zeros_(discriminator.weight)
    nn.init.zeros_(discriminator.bias)
    loss = domain_classification(torch.randn(3, 4), torch.randn(8, 4), discriminator)
    assert loss.item() == pytest.approx(2 * np.log(2))


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.3])
def test_scale_gradient(factor: float) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = scale_gradient(x, factor)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, factor * 2 * x)
