"""The kit catches what it is for, and lets pass what is right."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from lightning_da.data import ImageFolders, TensorDomain
from lightning_da.data.base import DOMAINS
from lightning_da.losses.coral import coral
from lightning_da.losses.mmd import mmd
from lightning_da.methods import DAN, DANN, MCC, AdaptationModule, DomainBatch
from lightning_da.testing import DATA_CHECKS, METHOD_CHECKS, Toy, check_data, check_domain_loss, check_method

SLOW = ("processes", "better")


def test_a_method_of_target_logits_passes() -> None:
    check_method(MCC)
    check_method(MCC, temperature=1.0, skip=SLOW)


# ---------------------------------------------------------------- broken methods


class NoGrad(AdaptationModule):
    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        with torch.no_grad():
            return mmd(source.layers[0], target.layers[0])


class OneUnit(AdaptationModule):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.discriminator = nn.Sequential(nn.Linear(16, 1), nn.Softmax(dim=1))

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        found = self.discriminator(torch.cat([source.layers[0], target.layers[0]]))
        domains = torch.arange(len(found)) < len(source.logits)
        return binary_cross_entropy(found[:, 0], domains.to(found.dtype))


class SourceTwice(AdaptationModule):
    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:  # noqa: ARG002
        return mmd(source.layers[0], source.layers[0])


class WeightTwice(DAN):
    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return self.domain_weight * super().domain_loss(source, target)


class NoWeight(AdaptationModule):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        source, target, _ = self.domain_batches(batch)
        return self.task_loss(source.logits, source.labels) + self.domain_loss(source, target)

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return mmd(source.layers[0], target.layers[0])


class RandomOfItsOwn(DANN):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        noise = {domain: torch.randn(1).item() for domain in batch}
        x, y = batch["source"]
        return super().training_step(batch | {"source": (x + 1e-3 * noise["source"], y)}, batch_idx)


class PerProcess(AdaptationModule):
    def weighted_domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return self.domain_weight * self.domain_loss(source, target)

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return mmd(source.layers[0], target.layers[0])


class Pairs(AdaptationModule):
    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        n = min(len(source.logits), len(target.logits))
        return (source.layers[0][:n] - target.layers[0][:n]).square().mean()


class RootOfZero(AdaptationModule):
    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return coral(source.layers[0], target.layers[0]).sqrt()


class NoSuper(DANN):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 1


class Forgets(DANN):
    """What it learns is neither parameter nor buffer."""

    steps = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.steps += 1
        return super().training_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return super().predict_step(batch, batch_idx, dataloader_idx) / (1 + self.steps)


class Peeks(DANN):
    """It weighs its loss by how often a class occurs in the target."""

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        data = getattr(self.trainer, "datamodule", None)
        share = 1.0 if data is None else (data.dataset(data.target, "train").y == 0).float().mean()
        return share * super().domain_loss(source, target)


class Useless(AdaptationModule):
    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return 1e-3 * mmd(source.layers[0], target.layers[0])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (NoGrad, r"^gradient: .* none into backbone.*no_grad"),
        (OneUnit, r"^gradient: .* none into backbone.*softmax over one unit"),
        (SourceTwice, r"^gradient: .* none into the target's .* read twice"),
        (WeightTwice, r"^weight: .* multiply by domain_weight once"),
        (NoWeight, r"^weight: "),
        (partial(DAN, estimator="biased"), r"^null: .* biased MMD"),
        (Pairs, r"^null: |^order: .* pairs rows"),
        (RootOfZero, r"^collapsed: its gradient is not finite .* square root"),
        (NoSuper, r"^checkpoint: NoSuper.on_save_checkpoint replaces a hook .* super"),
        (Forgets, r"^checkpoint: the loaded network predicts other values"),
        (Peeks, r"^labels: .* past the training batch"),
        (PerProcess, r"^processes: .* each process's own samples"),
    ],
)
def test_a_broken_method_is_caught(method: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(method)


@pytest.mark.parametrize(
    ("method", "skip", "message"),
    [
        (NoWeight, ("weight",), "^weight_zero: .* ignores domain_weight"),
        (RandomOfItsOwn, ("weight",), "^weight_zero: .* random numbers"),
        (Pairs, ("null",), "^order: .* pairs rows"),
    ],
)
def test_a_broken_method_is_caught_where_another_property_is_left_out(
    method: Callable[..., Any], skip: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(method, skip=skip)


def test_a_method_that_does_not_adapt_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"^better: .* does not adapt"):
        METHOD_CHECKS["better"](Useless, shifts=("wide",))


def test_what_is_left_out_has_a_name() -> None:
    with pytest.raises(ValueError, match="no property 'ordr'; did you mean 'order'"):
        check_method(DANN, skip=("ordr",))
    with pytest.raises(ValueError, match="no property 'sise'; did you mean 'sizes'"):
        check_domain_loss(coral, skip=("sise",))


# ---------------------------------------------------------------- domain losses


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """Kernel values (n, m), of the width of the samples."""
    return torch.exp(-torch.cdist(x, y).square() / x.shape[1])


def v_statistic(source: Tensor, target: Tensor) -> Tensor:
    return gaussian(source, source).mean() + gaussian(target, target).mean() - 2 * gaussian(source, target).mean()


def without_between(source: Tensor, target: Tensor) -> Tensor:
    return gaussian(source, source).mean() + gaussian(target, target).mean() - gaussian(source, target).mean()


def in_half_precision(source: Tensor, target: Tensor) -> Tensor:
    return (source.mean(0) - target.mean(0)).square().sum()


@pytest.mark.parametrize("loss", [coral, mmd])
def test_a_right_loss_passes(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    check_domain_loss(loss)


def test_the_linear_estimator_passes_but_for_the_order() -> None:
    linear = partial(mmd, estimator="linear")
    check_domain_loss(linear, skip=("order",))
    with pytest.raises(AssertionError, match=r"^order: .* linear estimator"):
        check_domain_loss(linear)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.no_grad()(mmd), "^gradient: .* no_grad"),
        (lambda source, _: mmd(source, source), "^gradient: .* read twice"),
        (lambda _, target: mmd(target, target), "^shift: .* read twice"),
        (lambda source, target: -mmd(source, target), "^shift: .* wrong sign"),
        (lambda source, target: (source.mean(0) - target.mean(0)).square(), "^gradient: the loss has shape"),
        (lambda source, target: (source - target).square().sum(), "^sizes: .* 12 source and 7 target"),
        (v_statistic, "^null: .* biased MMD"),
        (without_between, "^null: .* wrong factors"),
        (lambda source, target: coral(source, target).sqrt(), "^null: |^collapsed: "),
        (in_half_precision, "^precision: .* float32"),
    ],
)
def test_a_broken_loss_is_caught(loss: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_domain_loss(loss)


def test_a_root_of_zero_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"^collapsed: its gradient is not finite .* square root"):
        check_domain_loss(lambda source, target: coral(source, target).sqrt(), skip=("null",))


# ---------------------------------------------------------------- broken data


class Overlapping(Toy):
    def dataset(self, domain: str, split: str) -> TensorDomain:
        whole = super().dataset(domain, split)
        if split == "test":
            whole.x[3] = super().dataset(domain, "train").x[5]
        return whole


class Redrawn(Toy):
    draws = 0

    def dataset(self, domain: str, split: str) -> TensorDomain:
        whole = super().dataset(domain, split)
        Redrawn.draws += split == "val"
        whole.x[0, 0] += Redrawn.draws
        return whole


class Relabelled(Toy):
    draws = 0

    def dataset(self, domain: str, split: str) -> TensorDomain:
        whole = super().dataset(domain, split)
        Relabelled.draws += 1
        whole.y = whole.y.roll(Relabelled.draws)
        return whole


class Leaking(Toy):
    def train_dataloader(self) -> CombinedLoader:
        return CombinedLoader({role: self._train_loader(role, labels=True) for role in DOMAINS}, "max_size_cycle")


class Infinite(Toy):
    def dataset(self, domain: str, split: str) -> TensorDomain:
        whole = super().dataset(domain, split)
        whole.x[0] = float("inf")
        return whole


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (Infinite, "read", "NaN or infinite"),
        (Overlapping, "splits", "is in train and in test"),
        (Redrawn, "same", "the val split"),
        (Relabelled, "same", "the train split"),
        (Leaking, "labels", "more than its samples"),
    ],
)
def test_broken_data_are_caught_by_their_property(data: type[Toy], name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=f"^{name}: .*{message}"):
        check_data(data())
    check_data(data(), skip=tuple(DATA_CHECKS))


def test_whole_data_pass(tmp_path: Path) -> None:
    check_data(Toy())
    for label in ("a", "b"):
        for number in range(20):
            path = tmp_path / "one" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)  # classes that look alike are no overlap
    check_data(ImageFolders(str(tmp_path / "one"), image_size=8, batch_size=4, num_workers=0))
