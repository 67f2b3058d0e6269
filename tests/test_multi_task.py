"""Multi-task learning: two heads over a shared network, and data whose domains have classes of their own."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_da.data.base import UNKNOWN, DataError, DomainPairDataModule, Roles, Selection, TensorDomain, relabel
from lightning_da.errors import ConfigError
from lightning_da.methods import DANN, FineTune, MultiTask
from lightning_da.networks.backbones import FeedForward
from lightning_da.schedules import inverse_decay
from tests.toy import ADAM, accuracy, equal, fit, state, trainer

NETWORK = partial(FeedForward, hidden=[32, 16])


class TwoTasks(DomainPairDataModule):
    """Six directions in the plane; the source names each one, the target names their halves, left and right.

    Args:
        number: Training samples of the target.
        noise: Deviation of the inputs.
    """

    def __init__(self, number: int = 320, noise: float = 0.1) -> None:
        super().__init__("directions", "halves", min(number, 32))
        self.number, self.noise = number, noise

    def dataset(self, domain: str, split: str) -> TensorDomain:
        rng = np.random.default_rng([["train", "val", "test"].index(split), len(domain)])
        n = self.number if (domain, split) == ("halves", "train") else 320
        direction = rng.integers(6, size=n)
        angle = 2 * np.pi * direction / 6 + 0.3
        x = rng.normal(0, self.noise, (n, 8))
        x[:, 0] += np.cos(angle)
        x[:, 1] += np.sin(angle)
        names = [f"direction {i}" for i in range(6)]
        y, classes = (direction, names) if domain == "directions" else (np.cos(angle) > 0, ["left", "right"])
        return TensorDomain(torch.from_numpy(x).float(), torch.from_numpy(y).long(), classes)


def build(kind: Any = MultiTask, seed: int = 1, classes: int = 8, **kwargs: Any) -> Any:
    L.seed_everything(seed, verbose=False)
    given: dict[str, Any] = {"num_classes": classes, "input_shape": (8,), "backbone": NETWORK, "optimizer": ADAM}
    return kind(**given | kwargs)


# ---------------------------------------------------------------- data


def test_labels_count_the_classes_of_both_domains() -> None:
    data = TwoTasks()
    assert data.classes == [f"direction {i}" for i in range(6)] + ["left", "right"]
    assert data.classes_of("halves") == ["left", "right"]
    for domain in ("directions", "halves"):
        own = data.dataset(domain, "val")
        pair = data._get(domain, "val")
        assert [own.classes[y] for y in own.y.tolist()] == [pair.classes[y] for y in pair.y.tolist()]
        assert pair.x.data_ptr() == data._own(domain, "val").x.data_ptr()
    batch = next(iter(data.val_dataloader()[1]))
    assert set(batch[1].tolist()) == {6, 7}


def test_relabelling_keeps_names_order_and_unknown_labels() -> None:
    whole = TensorDomain(torch.rand(4, 2), torch.tensor([1, UNKNOWN, 0, 1]), ["b", "a"], ["w", "x", "y", "z"])
    found = relabel(whole, ["a", "b", "c"])
    assert found.y.tolist() == [0, UNKNOWN, 1, 0]
    assert found.names == whole.names
    lazy = relabel(Selection(whole, torch.tensor([3, 1]), torch.tensor([1, UNKNOWN]), ["b", "a"]), ["a", "b", "c"])
    assert lazy.y.tolist() == [0, UNKNOWN]
    assert [torch.equal(lazy[i][0], whole.x[j]) for i, j in enumerate((3, 1))] == [True, True]
    with pytest.raises(DataError, match="out of range; the 2 classes"):
        relabel(TensorDomain(torch.rand(1, 2), torch.tensor([2]), ["b", "a"]), ["a", "b", "c"])


def test_other_methods_refuse_other_classes() -> None:
    with pytest.raises(DataError, match="classes differ: domain 'directions' has 'direction 0'"):
        TwoTasks().check(Roles.of(build(DANN), 1))
    with pytest.raises(DataError, match="classes differ"):
        fit(build(FineTune), data=TwoTasks(), steps=1)
    TwoTasks().check(Roles.of(build(), 1))


# ---------------------------------------------------------------- the method


def test_each_head_chooses_among_the_classes_of_its_domain() -> None:
    model = fit(build(optimizer=partial(torch.optim.Adam, lr=0.02)), data=TwoTasks(), steps=150)
    found = accuracy(model, TwoTasks())
    assert found["test/source/acc"] > 0.95
    assert found["test/target/acc"] > 0.95
    sizes = TwoTasks().dataset("halves", "test").y.bincount()
    assert found["test/target/imbalance"] == pytest.approx(float(sizes.max() / sizes.double().mean()))
    x = 100 * torch.randn(200, 8)
    for domain, own in (("source", range(6)), ("target", (6, 7))):
        model.set_domain(domain)
        logits = model(x)
        assert set(logits.argmax(dim=1).tolist()) <= set(own)
        assert logits.isfinite().all()
        assert torch.allclose(logits.softmax(dim=1)[:, list(own)].sum(dim=1), torch.ones(200))


def loss_by_hand(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The cross-entropies of two networks that share their layers, each with the classes of its domain."""
    (x_s, y_s), (x_t, y_t) = batch["source"], batch["target"]
    source = cross_entropy(model.source_head(model.backbone(x_s))[:, :6], y_s)
    target = cross_entropy(model.head(model.backbone(x_t))[:, 6:], y_t - 6)
    return source, target


@pytest.fixture
def batch() -> dict[str, Any]:
    data = TwoTasks()
    return {
        role: next(iter(data.sample_dataloader(name, "train", 40)))
        for role, name in zip(("source", "target"), ("source", "target"), strict=True)
    }


def ready(model: Any) -> Any:
    """After a fit of no step, and with no logger."""
    fit(model, data=TwoTasks(), steps=0)
    model.log = model.log_dict = lambda *_args, **_kwargs: None
    return model.train()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.2, 3.0)])
def test_the_loss_and_its_gradient_are_the_weighted_sums(batch: dict[str, Any], weights: tuple[float, float]) -> None:
    model = ready(build(source_weight=weights[0], target_weight=weights[1]))
    loss = model.training_step(batch, 0)
    source, target = loss_by_hand(model, batch)
    expected = weights[0] * source + weights[1] * target
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = torch.autograd.grad(loss, list(model.backbone.parameters()))
    wanted = torch.autograd.grad(expected, list(model.backbone.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_learned_weights_are_the_papers(batch: dict[str, Any]) -> None:
    """The loss, and its minimum over the variances: exp(s) = 2 L."""
    model = ready(build(weighting="uncertainty"))
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([0.5, -1.0]))
    losses = torch.stack(loss_by_hand(model, batch)).detach()
    expected = losses[0] * np.exp(-0.5) + 0.25 + losses[1] * np.exp(1.0) - 0.5
    assert model.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)
    weighted = ready(build(weighting="uncertainty", source_weight=0.5, target_weight=3.0))
    parts = torch.stack(loss_by_hand(weighted, batch))
    assert weighted.training_step(batch, 0).item() == pytest.approx((0.5 * parts[0] + 3 * parts[1]).item(), rel=1e-5)
    optimizer = torch.optim.Adam([model.log_variances], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    assert torch.allclose(model.log_variances.exp(), 2 * losses, rtol=1e-2)


def test_every_parameter_learns() -> None:
    model = build(weighting="uncertainty")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, data=TwoTasks(), steps=3)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_few_labels_of_a_task_profit_from_another_task() -> None:
    """Twelve labels of the target, in eight dimensions with noise; the mean over three seeds."""
    adam = partial(torch.optim.Adam, lr=0.01)

    def once(seed: int, **kwargs: Any) -> float:
        data = TwoTasks(number=12, noise=0.5)
        return accuracy(fit(build(seed=seed, optimizer=adam, **kwargs), 150, data), data)["test/target/acc"]

    def mean(**kwargs: Any) -> float:
        return float(np.mean([once(seed, **kwargs) for seed in range(3)]))

    assert mean() > mean(source_weight=0.0) + 0.03


def test_resumed_equals_unbroken(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    args: dict[str, Any] = {"weighting": "uncertainty", "lr_schedule": inverse_decay}
    unbroken = build(**args)
    trainer(12, enable_checkpointing=True, callbacks=[keep]).fit(unbroken, TwoTasks(number=96))
    resumed = build(seed=9, **args)
    L.seed_everything(1, verbose=False)
    trainer(12).fit(resumed, TwoTasks(number=96), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert equal(state(resumed, ("",)), state(unbroken, ("",)))
    assert not resumed.own.all()


def test_domains_with_the_same_classes_have_heads_of_their_own() -> None:
    model = fit(build(classes=3, optimizer=partial(torch.optim.Adam, lr=0.02)), steps=60)
    assert model.own.all()
    assert not torch.equal(model.head.weight, model.source_head.weight)
    assert accuracy(model)["test/target/acc"] > 0.95
    x = torch.randn(5, 8)
    for domain, head in (("source", model.source_head), ("target", model.head)):
        logits, (captured,) = model.activations(x, domain, ["head"])
        assert torch.equal(captured, head(model.features(x)))
        assert torch.equal(logits, captured)
    assert isinstance(model.head, nn.Linear)


def test_weights_are_not_negative() -> None:
    with pytest.raises(ConfigError, match="target_weight: -1"):
        build(target_weight=-1.0)
