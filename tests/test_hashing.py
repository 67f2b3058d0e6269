"""Deep hashing: the losses of codes, retrieval by Hamming distances, and the method."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from lightning_da import testing
from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.losses.hashing import category_entropy, pair_likelihood, quantization
from lightning_da.methods import DAN, DHN, DomainBatch
from lightning_da.methods.retrieval import Retrieval, average_precisions
from lightning_da.networks import FeedForward
from tests.toy import HASH_LAYER, Toy, accuracy, fit

Y = torch.tensor([0, 1, 1, 2, UNKNOWN, 1, 2])


def codes(n: int, seed: int = 0, bits: int = 5) -> Tensor:
    return torch.randn(n, bits, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tanh()


# ---------------------------------------------------------------- the losses


def test_pair_likelihood_is_that_of_bernoulli_pairs() -> None:
    u = codes(7).numpy()
    known = [i for i in range(7) if Y[i] >= 0]
    terms = []
    for i in known:
        for j in known:
            p = 1 / (1 + np.exp(-u[i] @ u[j]))
            if i < j:
                terms.append(-np.log(p) if Y[i] == Y[j] else -np.log(1 - p))
    assert pair_likelihood(codes(7), Y).item() == pytest.approx(np.mean(terms))
    assert pair_likelihood(codes(1), Y[:1]).item() == 0


def test_category_entropy_is_that_of_shares_of_exponentials() -> None:
    t, s = codes(4, seed=1).numpy(), codes(7).numpy()
    shares = np.stack([np.exp(t @ s[c == Y].T).mean(axis=1) for c in range(3)], axis=1)
    p = shares / shares.sum(axis=1, keepdims=True)
    expected = -(p * np.log(p)).sum(axis=1).mean()
    assert category_entropy(codes(4, seed=1), codes(7), Y).item() == pytest.approx(expected)
    assert category_entropy(codes(4), codes(2), torch.tensor([1, UNKNOWN])).item() == 0


def test_quantization_is_the_distance_to_signs_that_stay() -> None:
    u = codes(6).requires_grad_()
    loss = quantization(u)
    assert loss.item() == pytest.approx(np.mean([(v - np.sign(v)) ** 2 for v in u.detach().numpy()]))
    torch.testing.assert_close(testing.gradients(loss, [u])[0], 2 * (u - u.sign()).detach() / 30)


def test_gradients_of_the_losses() -> None:
    u, v = codes(7).requires_grad_(), codes(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pair_likelihood(x, Y), u)
    assert torch.autograd.gradcheck(lambda t, s: category_entropy(t, s, Y), (v, u))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_the_losses_stay_finite_and_are_float32_under_autocast(scale: float) -> None:
    u = (scale * codes(7).float()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [pair_likelihood(u, Y), quantization(u), category_entropy(u.bfloat16(), u, Y)]
    for loss in losses:
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert testing.gradients(loss, [u])[0].isfinite().all()


# ---------------------------------------------------------------- retrieval


def test_average_precision_is_that_of_scikit_learn_with_equal_distances() -> None:
    x, y = codes(40, bits=4).float(), torch.arange(40) % 5
    y[0] = 9  # a class without another sample asks for nothing
    signs = np.where(x.numpy() > 0, 1, -1)
    expected = []
    for i in range(1, 40):
        others = np.arange(40) != i
        hamming = (signs[i] != signs[others]).sum(axis=1)
        expected.append(average_precision_score(y.numpy()[others] == y[i].item(), -hamming))
    np.testing.assert_allclose(average_precisions(x, y).numpy(), expected)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert average_precisions(x[order], y[order]).mean() == pytest.approx(np.mean(expected))


def test_the_metric_reads_all_batches_and_no_unknown_class() -> None:
    metric, x, y = Retrieval(), codes(12).float(), torch.arange(12) % 3
    assert metric.compute() == {}
    metric.reset()
    for rows in (slice(5), slice(5, 12)):
        metric.update(x[rows], y[rows])
    metric.update(x[:3], torch.full((3,), UNKNOWN))
    assert metric.compute()["retrieval_map"] == average_precisions(x, y).mean()


# ---------------------------------------------------------------- the method


def batch(n: int, labels: Tensor, seed: int) -> DomainBatch:
    return DomainBatch([codes(n, seed, 12).requires_grad_()], codes(n, seed, 3), labels)


def test_the_domain_loss_is_that_of_dan_and_the_entropy() -> None:
    given: dict[str, Any] = {"bottleneck": HASH_LAYER, "beta": "uniform", "layers": ("bottleneck",)}
    source, target = batch(7, Y, 0), batch(5, torch.full((5,), UNKNOWN), 1)
    found = testing.ready(DHN, entropy_weight=0.3, **given).domain_loss(source, target)
    dan = testing.ready(DAN, **given).domain_loss(source, target)
    expected = dan + 0.3 * category_entropy(target.layers[0], source.layers[0], Y)
    torch.testing.assert_close(found, expected)


def test_codes_of_the_source_are_taught_whatever_the_domain_weight() -> None:
    """And those of the target are not."""
    for weight in (0.0, 2.0):
        model = testing.ready(DHN, bottleneck=HASH_LAYER, domain_weight=weight, hash_weight=0.5)
        source, target = batch(7, Y, 0), batch(5, torch.full((5,), UNKNOWN), 1)
        u, v = source.layers[0], target.layers[0]
        loss = model.weighted_domain_loss(source, target)
        domain, supervised = model.domain_loss(source, target), pair_likelihood(u, Y) + quantization(u)
        grads = [testing.gradients(value, [u, v]) for value in (loss, domain, supervised)]
        for whole, part, taught in zip(*grads, strict=True):
            torch.testing.assert_close(whole, weight * model._domain_schedule(0) * part + 0.5 * taught)
        assert not grads[2][1].any()


def test_retrieval_is_tested_in_each_domain() -> None:
    data = Toy(shift="moved")
    model = fit(testing.build(DHN, bottleneck=HASH_LAYER, beta="uniform", optimizer=testing.ADAM), 30, data)
    found = accuracy(model, data)
    assert accuracy(model, data) == found  # the samples of an epoch are forgotten
    with torch.no_grad():
        for role, domain in (("source", "calm"), ("target", "noisy")):
            test = data.dataset(domain, "test")
            expected = average_precisions(model.eval().features(test.x), test.y).mean()
            assert found[f"test/{role}/retrieval_map"] == pytest.approx(expected.item())
    assert found["test/source/retrieval_map"] > 0.9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, r"the codes are the signs of the bottleneck: give one .* method/dhn\.yaml"),
        ({"bottleneck": partial(FeedForward, hidden=[6])}, r"give one whose outputs have both signs"),
        ({"bottleneck": HASH_LAYER, "layers": ("head",)}, "name it in `layers`"),
        ({"bottleneck": HASH_LAYER, "hash_weight": -1.0}, "hash_weight: -1"),
        ({"bottleneck": HASH_LAYER, "entropy_weight": -0.5}, "entropy_weight: -0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        testing.build(DHN, **args)
