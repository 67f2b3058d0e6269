"""MCC, CDAN and domain confusion: losses of predictions, what the discriminator reads, soft labels."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from lightning_da import testing
from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.losses.centroids import nearest_centroid
from lightning_da.losses.confusion import certainty, class_confusion, class_means, entropy, information_loss
from lightning_da.methods import CDAN, CMD, MCC, SHOT, DomainBatch, DomainConfusion
from lightning_da.methods.cdan import MultilinearMap
from tests import references, toy


def logits(n: int = 7, classes: int = 4, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- losses of predictions


@pytest.mark.parametrize(("n", "classes"), [(7, 4), (1, 3), (20, 2)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_confusion_is_the_formula(n: int, classes: int, temperature: float) -> None:
    z = logits(n, classes)
    found = class_confusion(z, temperature).item()
    assert found == pytest.approx(references.class_confusion(z.numpy(), temperature), rel=1e-10)


def test_information_loss_is_the_negative_mutual_information() -> None:
    z = logits()
    assert information_loss(z).item() == pytest.approx(-references.mutual_information(z.numpy()), rel=1e-10)
    same = logits(1).repeat(5, 1)
    assert information_loss(same).item() == pytest.approx(0, abs=1e-12)  # nothing is told by one answer for all


@pytest.mark.parametrize("loss", [class_confusion, information_loss])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_they_stay_finite_and_are_float32_under_autocast(loss: Any, scale: float) -> None:
    z = (scale * logits().float()).requires_grad_()
    value = loss(z)
    value.backward()
    assert value.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    half = z.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(half).dtype == torch.float32
        assert loss(half).item() == loss(half.float()).item()


def test_gradients_of_losses_of_predictions() -> None:
    z = logits().requires_grad_()
    assert torch.autograd.gradcheck(information_loss, z)
    # the weights of class confusion are constants: the gradient is that with the weights kept
    w = certainty(z / 2.5)[:, None]
    assert not w.requires_grad

    def with_weights(x: Tensor) -> Tensor:
        p = (x / 2.5).softmax(1)
        confusion = p.T @ (w * p)
        return 1 - (confusion / confusion.sum(1, keepdim=True)).trace() / 4

    (found,) = torch.autograd.grad(class_confusion(z), z)
    (expected,) = torch.autograd.grad(with_weights(z), z)
    torch.testing.assert_close(found, expected)


def test_entropy_is_in_nats() -> None:
    p = references.softmax(logits().numpy())
    np.testing.assert_allclose(entropy(logits()).numpy(), -(p * np.log(p)).sum(axis=1))


def test_centroids_pass_over_classes_without_samples() -> None:
    x, y = logits(6, 3), torch.tensor([0, 0, 2, UNKNOWN, 2, 2])
    means = class_means(x, y, 4)
    torch.testing.assert_close(means[2], x[[2, 4, 5]].mean(dim=0))
    assert not means[[1, 3]].any()
    assert not (nearest_centroid(x, means)[..., None] == torch.tensor([1, 3])).any()
    assert (nearest_centroid(x, torch.zeros(4, 3).double()) == UNKNOWN).all()
    assert torch.equal(nearest_centroid(5 * x, means), nearest_centroid(x, means))  # angles alone


# ---------------------------------------------------------------- methods


def batch(n: int, width: int, seed: int) -> DomainBatch:
    layer = logits(n, width, seed).requires_grad_()
    return DomainBatch([layer], logits(n, 3, seed + 1).requires_grad_(), torch.full((n,), UNKNOWN))


def test_mcc_reads_the_target_alone() -> None:
    model = testing.ready(MCC)
    source, target = batch(6, 16, 0), batch(5, 16, 2)
    loss = model.domain_loss(source, target)
    read = testing.gradients(loss, [*source.layers, source.logits, *target.layers, target.logits])
    assert [bool(gradient.any()) for gradient in read] == [False, False, False, True]
    assert loss.item() == pytest.approx(references.class_confusion(target.logits.detach().numpy(), 2.5))


def test_the_map_is_the_outer_product_and_its_projection_keeps_inner_products() -> None:
    f, g = logits(5, 6), logits(5, 3, 1).softmax(1)
    whole = MultilinearMap(6, 3)
    product = whole(f, g)
    assert whole.num_features == 18
    torch.testing.assert_close(product[2].reshape(3, 6), torch.outer(g[2], f[2]))
    inner = []
    for seed in range(30):
        torch.manual_seed(seed)
        small = MultilinearMap(6, 3, largest=17, width=400).double()
        projected = small(f, g)
        assert projected.shape == (5, 400)
        assert set(small.state_dict()) == {"features", "classes"}  # the numbers are in a checkpoint
        assert not list(small.parameters())
        inner.append(projected @ projected.T)
    error = (torch.stack(inner).mean(dim=0) - product @ product.T).abs().max()
    assert error < 0.1 * (product @ product.T).abs().max()


def test_cdan_reverses_the_gradient_of_features_and_leaves_predictions() -> None:
    model = testing.ready(CDAN)
    source, target = batch(6, 16, 0), batch(5, 16, 2)
    loss = model.domain_loss(source, target)
    z_s, z_t = (
        model.discriminators[0]((b.logits.softmax(1)[:, :, None] * b.layers[0][:, None, :]).flatten(1))
        for b in (source, target)
    )
    w_s, w_t = (1 + np.exp(-entropy(b.logits).detach().numpy()) for b in (source, target))
    expected = [
        np.average(np.logaddexp(0, -z_s.detach().numpy()[:, 0]), weights=w_s),
        np.average(np.logaddexp(0, z_t.detach().numpy()[:, 0]), weights=w_t),
    ]
    assert loss.item() == pytest.approx(sum(expected))
    features, predictions = testing.gradients(loss, [target.layers[0], target.logits])
    assert not predictions.any()
    with torch.no_grad():  # the step that lowers the loss of the network raises that of the discriminator
        moved = DomainBatch([target.layers[0] - 0.01 * features], target.logits, target.labels)
        assert model.domain_loss(source, moved) > loss


def test_cdan_sees_classes_that_have_changed_places() -> None:
    """Equal features and equal predictions, but in other pairs: a discriminator of features alone cannot know."""
    model = testing.ready(CDAN, entropy_weights=False)
    x, z = logits(60, 16), 5 * torch.eye(3).double().repeat(20, 1)
    x[0::3, 0] += 4
    source, target = (DomainBatch([x], logits, torch.full((60,), UNKNOWN)) for logits in (z, z.roll(1, 0)))
    optimizer = torch.optim.Adam(model.discriminators.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.domain_loss(source, target)
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * 2 * np.log(2)


def test_confusion_and_discriminator_learn_from_their_own_loss() -> None:
    model = testing.ready(DomainConfusion)
    source, target = batch(6, 16, 0), batch(5, 16, 2)
    model.domain_loss(source, target).backward()
    z_s, z_t = (model.discriminators[0](b.layers[0]) for b in (source, target))
    uniform = torch.stack([-log_softmax(torch.cat([z, 0 * z], 1), 1).mean(1).mean() for z in (z_s, z_t)]).sum()
    torch.testing.assert_close(
        target.layers[0].grad, torch.autograd.grad(uniform, target.layers[0], retain_graph=True)[0]
    )
    own = list(model.discriminators.parameters())
    domains = -torch.nn.functional.logsigmoid(z_s).mean() - torch.nn.functional.logsigmoid(-z_t).mean()
    for parameter, expected in zip(own, torch.autograd.grad(domains, own), strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_soft_labels_are_mean_predictions_of_source_samples() -> None:
    model = testing.ready(DomainConfusion, train_on="both", temperature=2.0)
    z, y = logits(9, 3), torch.tensor([0, 0, 0, 2, 2, UNKNOWN, 2, 0, 2])
    model.learn_soft_labels(z, y)
    p = references.softmax(z.numpy() / 2)
    for c in (0, 2):
        np.testing.assert_allclose(model.soft_labels[c].numpy(), p[y.numpy() == c].mean(axis=0))
    assert not model.soft_labels[1].any()
    before = model.soft_labels.clone()
    model.learn_soft_labels(logits(2, 3, 5), torch.tensor([2, 1]))
    again = references.softmax(logits(2, 3, 5).numpy() / 2)
    np.testing.assert_allclose(model.soft_labels[2].numpy(), 0.9 * before[2].numpy() + 0.1 * again[0])
    np.testing.assert_allclose(model.soft_labels[1].numpy(), again[1])
    torch.testing.assert_close(model.soft_labels[0], before[0])
    target, labels = logits(4, 3, 8).requires_grad_(), torch.tensor([2, UNKNOWN, 0, 2])
    loss = model.soft_label_loss(target, labels)
    log_p = np.log(references.softmax(target.detach().numpy() / 2))
    expected = -np.mean([(model.soft_labels[c].numpy() * log_p[i]).sum() for i, c in ((0, 2), (2, 0), (3, 2))])
    assert loss.item() == pytest.approx(expected)


def test_soft_labels_need_labels_of_the_target() -> None:
    model = toy.build("domain_confusion")
    toy.fit(model, steps=3)
    assert not model.soft_labels.any()
    few = toy.Toy()
    few.target_labels = 6
    with_labels, without = (toy.build("domain_confusion", train_on="both", soft_weight=w) for w in (1.0, 0.0))
    for each in (with_labels, without):
        toy.fit(each, steps=3, data=few)
    torch.testing.assert_close(with_labels.soft_labels.sum(dim=1), torch.ones(3))
    assert not without.soft_labels.any()
    assert not toy.equal(toy.state(with_labels), toy.state(without))


def test_soft_labels_are_those_of_all_processes() -> None:
    one, two = testing.two_processes(DomainConfusion, train_on="both", soft_weight=2.0, **testing.AT_ONCE)
    testing.compare_processes(one, two)
    assert one.state["soft_labels"].any()


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        (MCC, {"temperature": 0.0}, "temperature: 0"),
        (CDAN, {"projection": 0}, "projection: 0"),
        (CMD, {"order": 0}, "order: 0"),
        (DomainConfusion, {"soft_weight": -1.0}, "soft_weight: -1"),
        (SHOT, {"pseudo_weight": -0.1}, "pseudo_weight: -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(method: Any, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        testing.build(method, **args)
