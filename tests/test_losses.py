import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.losses.coral import coral

SIZES = [(40, 40, 5), (7, 30, 3), (30, 7, 64), (2, 2, 1), (64, 48, 2048)]


def sample(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        scale
        * torch.randn(n, d, generator=generator, dtype=torch.float64)
        @ torch.diag(torch.linspace(0.5, 2, d, dtype=torch.float64))
    )


def coral_reference(source: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    gap = np.cov(source, rowvar=False) - np.cov(target, rowvar=False)
    return float(np.sum(gap**2) / (4 * source.shape[1] ** 2))


@pytest.mark.parametrize(("n_s", "n_t", "d"), SIZES)
def test_coral_is_the_formula(n_s: int, n_t: int, d: int) -> None:
    source, target = sample(n_s, d, 0), sample(n_t, d, 1, scale=1.7)
    expected = coral_reference(source.numpy(), target.numpy())
    assert coral(source, target).item() == pytest.approx(expected, rel=1e-10)


def test_coral_is_zero_on_equal_covariances_and_blind_to_the_mean() -> None:
    source = sample(50, 6, 0)
    shuffled = source.flip(0) + 100
    assert coral(source, shuffled).item() == pytest.approx(0, abs=1e-20)
    moved = sample(50, 6, 1)
    assert coral(source, moved + 3).item() == pytest.approx(coral(source, moved).item(), rel=1e-9)


def test_coral_gradient() -> None:
    source, target = sample(6, 4, 0).requires_grad_(), sample(5, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(coral, (source, target))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.randn(1, 4), torch.randn(8, 4)),
        (torch.ones(8, 4), torch.ones(8, 4)),
        (1e4 * torch.randn(8, 4), 1e4 * torch.randn(8, 4)),
        (1e-12 * torch.randn(8, 4), 1e-12 * torch.randn(8, 4)),
    ],
    ids=["one sample", "collapsed", "large", "tiny"],
)
def test_losses_stay_finite(source: Tensor, target: Tensor) -> None:
    discriminator = nn.Linear(4, 1)
    for loss in (coral, lambda s, t: domain_classification(s, t, discriminator)):
        s, t = source.clone().requires_grad_(), target.clone().requires_grad_()
        value = loss(s, t)
        value.backward()
        assert s.grad is not None
        assert t.grad is not None
        assert value.isfinite()
        assert s.grad.isfinite().all()
        assert t.grad.isfinite().all()


def test_coral_refuses_different_widths() -> None:
    with pytest.raises(ValueError, match="differ in width: 3 and 4"):
        coral(torch.ones(5, 3), torch.ones(5, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_losses_are_float32_under_autocast(dtype: torch.dtype, scale: float) -> None:
    discriminator = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    source, target = (scale * sample(32, 16, seed).float().tanh().to(dtype) for seed in (0, 1))
    for loss in (coral, lambda s, t: domain_classification(s, t, discriminator)):
        expected = loss(source.float(), target.float())
        with torch.autocast("cpu", dtype=dtype):
            found = loss(source, target)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_domain_classification_is_the_cross_entropy_of_both_domains() -> None:
    discriminator = nn.Linear(4, 1).double()
    source, target = sample(9, 4, 0), sample(5, 4, 1)

    def probability(x: Tensor) -> NDArray[np.float64]:
        logits = (x @ discriminator.weight.T + discriminator.bias).detach().numpy()
        return np.asarray(1 / (1 + np.exp(-logits)))

    expected = -np.log(probability(source)).mean() - np.log(1 - probability(target)).mean()
    assert domain_classification(source, target, discriminator).item() == pytest.approx(expected, rel=1e-12)


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
