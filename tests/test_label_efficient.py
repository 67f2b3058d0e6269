"""Label-efficient transfer: one discriminator of several layers, and near classes of few labels."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_da import testing
from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.losses.centroids import similarity_entropy
from lightning_da.methods import DomainBatch, LabelEfficient
from lightning_da.methods.discriminators import MultiLayerDiscriminator
from tests import references, toy


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy_of_cosines(x: Tensor, centroids: Tensor, temperature: float) -> float:
    f, c = (z.detach().numpy() for z in (x, centroids))
    cosines = (f @ c.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(c, axis=1)
    p = references.softmax(cosines / temperature)
    return float(-(p * np.log(p)).sum(axis=1).mean())


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_entropy_is_the_formula_without_absent_classes(temperature: float) -> None:
    x, centroids = normal(7, 5), normal(4, 5, seed=1)
    centroids[2] = 0
    found = similarity_entropy(x, centroids, temperature).item()
    assert found == pytest.approx(entropy_of_cosines(x, centroids[[0, 1, 3]], temperature), rel=1e-10)


def test_the_entropy_has_its_gradient_for_samples_and_centroids() -> None:
    assert torch.autograd.gradcheck(
        similarity_entropy, (normal(4, 3).requires_grad_(), normal(3, 3, seed=1).requires_grad_())
    )


@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_have_nothing_to_decide(classes: int) -> None:
    x, centroids = normal(4, 3).requires_grad_(), torch.zeros(3, 3, dtype=torch.float64)
    centroids[:classes] = 1
    loss = similarity_entropy(x, centroids)
    assert loss.item() == 0
    assert not testing.gradients(loss, [x])[0].any()


def test_the_entropy_is_float32_under_autocast() -> None:
    x, centroids = normal(4, 3).bfloat16(), normal(3, 3, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity_entropy(x, centroids)
    assert found.dtype == torch.float32
    assert found.item() == similarity_entropy(x.float(), centroids.float()).item()


# ---------------------------------------------------------------- the discriminator


def test_each_hidden_layer_reads_a_layer_and_the_hidden_layer_before() -> None:
    torch.manual_seed(0)
    network, x = MultiLayerDiscriminator([3, 5, 2], 4).double(), normal(6, 10)
    state = np.zeros((6, 0))
    for part, layer in zip(np.split(x.numpy(), [3, 8], axis=1), network.hidden, strict=True):
        W, b = (p.detach().numpy() for p in layer.parameters())
        state = np.maximum(np.hstack([part, state]) @ W.T + b, 0)
    W, b = (p.detach().numpy() for p in network.output.parameters())
    np.testing.assert_allclose(network(x).detach().numpy(), state @ W.T + b)


# ---------------------------------------------------------------- the method


def batches(few: int = 4) -> tuple[DomainBatch, DomainBatch, DomainBatch]:
    def one(n: int, labels: Tensor, seed: int) -> DomainBatch:
        layers = [normal(n, width, seed=seed + width).requires_grad_() for width in (16, 3)]
        return DomainBatch(layers, layers[1], labels)

    unknown = torch.full((5,), UNKNOWN)
    return one(6, torch.arange(6) % 3, 0), one(5, unknown, 20), one(few, torch.arange(few) % 3, 40)


def test_each_part_has_its_own_gradient() -> None:
    """The discriminator learns from its own loss, the layers from its reverse; samples and means from the entropies."""
    model = testing.ready(LabelEfficient, domain_schedule=lambda _: 1.0, domain_weight=0.25, semantic_weight=0.5)
    source, target, labelled = batches()
    model._labelled = labelled
    loss = model.domain_loss(source, target)
    z_s, z_t = (model.discriminator(torch.cat(b.layers, dim=1)) for b in (source, target))
    domains = -torch.nn.functional.logsigmoid(z_s).mean() - torch.nn.functional.logsigmoid(-z_t).mean()
    centroids = [torch.stack([b.layers[0][b.labels == c].mean(dim=0) for c in range(3)]) for b in (source, labelled)]
    entropies = [similarity_entropy(target.layers[0], c) for c in centroids]
    expected = [entropy_of_cosines(target.layers[0], c, 0.1) for c in centroids]
    assert loss.item() == pytest.approx(domains.item() + 0.5 * sum(expected))
    own = list(model.discriminator.parameters())
    for got, wanted in zip(testing.gradients(loss, own), testing.gradients(domains, own), strict=True):
        torch.testing.assert_close(got, wanted)
    for batch in (source, target):
        read = [*batch.layers]
        found, reverse, near = (
            testing.gradients(value, read) for value in (loss, domains, entropies[0] + entropies[1])
        )
        for f, r, n in zip(found, reverse, near, strict=True):
            torch.testing.assert_close(f, 0.5 * n - r)
    # the labelled samples are passed over by the base, which gives all others the weight
    whole, part = (testing.gradients(value, [labelled.layers[0]])[0] for value in (loss, entropies[1]))
    assert part.any()
    torch.testing.assert_close(whole, 0.25 * 0.5 * part)


def test_few_labels_of_the_target_are_read_where_they_are_given() -> None:
    few = toy.Toy()
    few.target_labels = 6
    logged: list[dict[str, Any]] = []
    for train_on, data in (("both", few), ("source", toy.Toy())):
        model = testing.build(LabelEfficient, train_on=train_on)
        seen: dict[str, Any] = {}
        keep = model.log_dict
        toy.replace(model, "log_dict", lambda values, keep=keep, seen=seen: (seen.update(values), keep(values)))
        toy.fit(model, steps=2, data=data)
        logged.append(seen)
    assert logged[0]["train/few_entropy"] > 0
    assert logged[1]["train/few_entropy"] == 0
    assert logged[1]["train/entropy"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"layers": ("fc1", "head")}, r"layers: classes are near in the bottleneck; add it to \['fc1', 'head'\]"),
        ({"hidden": 0}, "hidden: 0"),
        ({"semantic_weight": -1.0}, "semantic_weight: -1"),
        ({"temperature": 0.0}, "temperature: 0"),
    ],
)
def test_settings_out_of_range_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        testing.build(LabelEfficient, **args)
