"""A batch that passes through the network in parts: the losses see the whole of it."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_da.methods import DAN, DANN
from lightning_da.networks import FeedForward
from lightning_da.networks.norms import PerDomainNorm, keep_statistics
from lightning_da.testing import ready
from tests import toy
from tests.test_distributed import AT_ONCE

DROPOUT = {"backbone": partial(FeedForward, hidden=[16, 16], dropout=0.5)}
NORM = {"backbone": partial(FeedForward, hidden=[16, 16], batch_norm=True)}


def batch(n: int = 24, labelled: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    width = toy.Toy().input_shape[0]
    parts = {name: torch.randn(n, width, generator=generator, dtype=torch.float64) for name in ("source", "target")}
    parts["target"] = parts["target"] + 1
    labels = torch.arange(n) % 3
    found: dict[str, Any] = {"source": (parts["source"], labels), "target": parts["target"]}
    return found | ({"labelled": (parts["target"][:4] + 0.1, labels[:4])} if labelled else {})


def step(method: Any, given: dict[str, Any], **kwargs: Any) -> tuple[Tensor, dict[str, Tensor], Any]:
    """Loss, gradients and module of a training step in float64."""
    model = ready(method, **(AT_ONCE | kwargs)).double()
    torch.manual_seed(0)
    loss = model.training_step(given, 0)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, model


@pytest.mark.parametrize("norm", ["separate", "joint"])
@pytest.mark.parametrize("name", toy.each(toy.ADAPTING))
def test_parts_have_the_loss_and_the_gradient_of_the_whole(name: str, norm: str) -> None:
    method = toy.METHODS[name].method
    kwargs = {"batch_norm": norm} if name in toy.ON_ONE_NETWORK else {}
    loss, gradients, _ = step(method, batch(), **kwargs)
    for size in (24, 7, 2):
        in_parts, others, _ = step(method, batch(), micro_batch=size, **kwargs)
        torch.testing.assert_close(in_parts, loss, rtol=1e-10, atol=1e-12)
        assert others.keys() == gradients.keys()
        for key, value in gradients.items():
            torch.testing.assert_close(others[key], value, rtol=1e-8, atol=1e-11, msg=key)


def test_the_mean_over_micro_batches_is_another_loss() -> None:
    """Accumulation sees less: what the parts are for."""
    whole = batch()
    _, gradients, _ = step(DAN, whole)
    halves = [
        step(DAN, {"source": tuple(p[rows] for p in whole["source"]), "target": whole["target"][rows]})[1]
        for rows in (slice(0, 12), slice(12, 24))
    ]
    mean = {key: (halves[0][key] + halves[1][key]) / 2 for key in gradients}
    away = sum((mean[key] - value).norm() for key, value in gradients.items())
    assert away > 0.05 * sum(value.norm() for value in gradients.values())


def test_uneven_domains_and_few_labels_pass_in_parts() -> None:
    given = batch(labelled=True)
    given["source"] = tuple(part[:17] for part in given["source"])
    loss, gradients, _ = step(DANN, given, train_on="both")
    in_parts, others, _ = step(DANN, given, train_on="both", micro_batch=5)
    torch.testing.assert_close(in_parts, loss, rtol=1e-10, atol=1e-12)
    for key, value in gradients.items():
        torch.testing.assert_close(others[key], value, rtol=1e-8, atol=1e-11, msg=key)


def test_the_second_pass_drops_the_units_of_the_first() -> None:
    """Otherwise the gradient would belong to another network than the loss."""
    model = ready(DANN, **(AT_ONCE | DROPOUT | {"micro_batch": 4, "domain_weight": 0.0})).double()
    parameter = model.head.weight
    torch.manual_seed(0)
    model.training_step(batch(), 0).backward()
    found, delta = float(parameter.grad[0, 0]), 1e-6
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[0, 0] += sign * delta
            torch.manual_seed(0)
            losses.append(float(model.training_step(batch(), 0)))
            parameter[0, 0] -= sign * delta
    assert found == pytest.approx((losses[0] - losses[1]) / (2 * delta), rel=1e-5)


def test_running_statistics_are_those_of_one_pass() -> None:
    _, _, model = step(DANN, batch(), micro_batch=8, **NORM)
    by_hand = ready(DANN, **(AT_ONCE | NORM)).double()
    given = batch()
    with torch.no_grad():
        for domain, x in (("source", given["source"][0]), ("target", given["target"])):
            for part in x.split(8):
                by_hand.activations(part, domain, ("head",))
    norms = [[m for m in network.modules() if isinstance(m, _BatchNorm)] for network in (model, by_hand)]
    assert norms[0]
    for one, other in zip(*norms, strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)
        assert one.num_batches_tracked == other.num_batches_tracked == 6
        assert one.momentum == 0.1


def test_statistics_are_kept_and_the_batch_still_normalises() -> None:
    norm = torch.nn.BatchNorm1d(2)
    x = torch.randn(8, 2)
    with keep_statistics(norm):
        y = norm(x)
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
    assert norm.num_batches_tracked == 0
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, torch.zeros(2))


def test_a_step_keeps_only_the_graph_of_a_part() -> None:
    """Bytes that the forward pass saves for the backward pass."""

    def saved(**kwargs: Any) -> int:
        model = ready(DANN, **(AT_ONCE | {"backbone": partial(FeedForward, hidden=[512] * 6)} | kwargs)).double()
        sizes: list[int] = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel() * x.element_size())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model.training_step(batch(240), 0)
        return sum(sizes)

    assert saved(micro_batch=8) < 0.5 * saved()


def test_afterwards_the_domain_is_the_target() -> None:
    _, _, model = step(DANN, batch(), micro_batch=8, batch_norm="per_domain", **NORM)
    norms = [module for module in model.modules() if isinstance(module, PerDomainNorm)]
    assert norms
    assert all(norm._domain == "target" for norm in norms)


def test_no_part_has_a_single_sample() -> None:
    loss, _, _ = step(DANN, batch(25), micro_batch=2, **NORM)
    assert loss.isfinite()


@pytest.mark.parametrize("value", [1, 0, -4])
def test_parts_of_less_than_two_samples_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=r"micro_batch: .* is less than 2"):
        toy.build("dann", micro_batch=value)
