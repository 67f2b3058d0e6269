"""Transfer between modalities: the loss of the map, where gradients go, and domains whose samples differ in shape."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from lightning_da.data import DataError, FeatureTables, Roles
from lightning_da.data.base import TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.losses.centroids import paired_error
from lightning_da.methods import FineTune, Multimodal
from lightning_da.networks import PrincipalComponents
from lightning_da.networks.backbones import FeedForward
from lightning_da.schedules import constant
from lightning_da.testing import build, compare_processes, equal, fit, gradients, ready, state, trainer, two_processes
from tests import toy

PARTS = {
    "backbone": partial(FeedForward, hidden=[12]),
    "bottleneck": partial(FeedForward, hidden=[6]),
    "source_backbone": partial(FeedForward, hidden=[10, 7]),
}
NETWORK: dict[str, Any] = {"source_shape": (8,), "input_shape": (1, 4, 4), "transfer_schedule": constant, **PARTS}


class Modalities(toy.Toy):
    """The target's samples are pictures of 4 x 4 pixels, 200 times as large, and those of the source if it is told."""

    def __init__(self, both: bool = False, batch_size: int = 32) -> None:
        super().__init__(shift="moved", batch_size=batch_size)
        self.pictures = ("calm", "noisy") if both else ("noisy",)

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self.shape_of(self.source)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        x = 200 * data.x.repeat(1, 2).view(-1, 1, 4, 4) if domain in self.pictures else data.x
        return TensorDomain(x, data.y, data.classes)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the loss


def test_the_paired_error_is_the_mean_over_all_pairs() -> None:
    source, target = normal(6, 4), 2 * normal(5, 4, seed=1) + 3
    y_s, y_t = torch.tensor([0, 1, 1, 2, -1, 0]), torch.tensor([1, 0, -1, 1, 0])
    errors = [
        torch.stack([(source[i] - target[j]).square().mean() for j in range(5) if y_t[j] == y_s[i]]).mean()
        for i in (0, 1, 2, 5)
    ]
    found = paired_error(source, y_s, target, y_t)
    torch.testing.assert_close(found, torch.stack(errors).mean(), rtol=1e-12, atol=0)
    assert paired_error(source, y_s, target, torch.full((5,), 3)).item() == 0
    assert paired_error(source, torch.full((6,), -1), target, torch.full((5,), -1)).item() == 0
    inputs = (source.requires_grad_(), y_s, target.requires_grad_(), y_t)
    assert torch.autograd.gradcheck(paired_error, inputs)


def test_the_paired_error_is_float32_under_autocast() -> None:
    one, other = (normal(16, 8, seed=seed).bfloat16() for seed in (0, 1))
    y = torch.arange(16) % 3
    expected = paired_error(one.float(), y, other.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paired_error(one, y, other, y), expected)


# ---------------------------------------------------------------- the method


def test_each_loss_reaches_its_own_part_of_the_network() -> None:
    logged: dict[str, Any] = {}
    model = ready(Multimodal, logged, **NETWORK, map_weight=3.0, transfer_weight=0.5)
    y = torch.arange(9) % 3
    batch = {"source": (normal(9, 8), y), "target": (normal(9, 1, 4, 4, seed=1), y.flip(0))}
    loss = model.training_step(batch, 0)
    wanted = {
        "task": {"backbone", "bottleneck", "head"},
        "source": {"source.backbone", "source.head"},
        "map": {"map"},
        "transfer": {"bottleneck", "head"},
    }
    names, parameters = zip(*model.named_parameters(), strict=True)
    for term, parts in wanted.items():
        sent = zip(names, gradients(logged[f"train/{term}_loss"], parameters), strict=True)
        reached = {name for name, gradient in sent if gradient.any()}
        assert {".".join(name.split(".")[: 1 + name.startswith("source.")]) for name in reached} == parts, term
    terms = [logged[f"train/{term}_loss"] for term in wanted]
    torch.testing.assert_close(loss, terms[0] + terms[1] + 3 * terms[2] + 0.5 * terms[3])
    mapped = model.map(model.source["backbone"](batch["source"][0]))
    hidden = model.backbone(batch["target"][0])
    torch.testing.assert_close(terms[2], paired_error(mapped, y, hidden, y.flip(0)))
    torch.testing.assert_close(terms[3], model.task_loss(model.head(model.bottleneck(mapped)), y))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_transfer_the_target_is_trained_alone(weight: float) -> None:
    """Bit by bit, though a map is learned."""
    found = fit(build(Multimodal, **NETWORK, transfer_weight=weight), 12, Modalities())
    alone = {key: value for key, value in NETWORK.items() if key in ("input_shape", "backbone", "bottleneck")}
    expected = fit(build(FineTune, **alone, train_on="target"), 12, Modalities(both=True))
    assert equal(state(found), state(expected)) == (weight == 0)


@pytest.mark.parametrize("standardize", [False, True])
def test_a_fit_is_tested_and_loads(standardize: bool, tmp_path: Path) -> None:
    data = Modalities()
    assert (data.source_shape, data.input_shape) == ((8,), (1, 4, 4))
    given: dict[str, Any] = NETWORK | {"optimizer": toy.ADAM, "standardize": standardize}
    model = fit(build(Multimodal, **given), 60, data)
    found = toy.accuracy(model, data)
    assert found["test/source/acc"] > 0.9
    if standardize:
        assert found["test/target/acc"] > 0.9
        scales = (model.source["standardize"].std, model.standardize.std)
        for scale, role in zip(scales, ("source", "target"), strict=True):
            x = torch.cat(list(data.training_samples((role,))))
            over = (0,) if x.ndim == 2 else (0, 2, 3)
            torch.testing.assert_close(scale[0].flatten(), x.std(dim=over, correction=0), rtol=1e-4, atol=0)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = build(Multimodal, 9, **given)
    loaded = trainer().predict(other, data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    same = trainer().predict(model, data)
    assert loaded
    assert same
    assert all(torch.equal(a, b) for one, two in zip(loaded, same, strict=True) for a, b in zip(one, two, strict=True))


class Codes(PrincipalComponents):
    """Three components, and a pretrained weight."""

    pretrained = True

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__(input_shape, 3)
        self.register_buffer("loaded", torch.tensor(False))

    def load_pretrained(self) -> None:
        self.loaded.fill_(True)  # type: ignore[operator]


@pytest.mark.parametrize("standardize", [False, True])
def test_the_network_of_the_source_is_fitted_and_pretrained_too(standardize: bool) -> None:
    data = Modalities()
    model = fit(build(Multimodal, **NETWORK | {"source_backbone": Codes, "standardize": standardize}), 1, data)
    network = model.source["backbone"]
    assert network.loaded
    x = model.source["standardize"](torch.cat(list(data.training_samples(("source",)))))
    torch.testing.assert_close(network.mean, x.mean(dim=0))
    assert network.components.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_the_features_of_both_domains_are_compared_above_the_map() -> None:
    model = build(Multimodal, **NETWORK)
    for domain, x in (("source", torch.randn(5, 8)), ("target", torch.randn(5, 1, 4, 4))):
        logits, (features, head) = model.activations(x, domain, model.depths)
        assert features.shape == (5, 6)
        assert torch.equal(head, logits)
    model.set_domain("target")
    assert model(torch.randn(5, 1, 4, 4)).shape == (5, 3)


def test_other_methods_refuse_two_shapes() -> None:
    with pytest.raises(DataError, match=r"samples differ in shape .* \(8,\) in domain 'calm', \(1, 4, 4\)"):
        fit(build(FineTune, input_shape=(1, 4, 4), train_on="both"), 1, Modalities())


def test_data_that_do_not_say_both_shapes_are_refused() -> None:
    class Silent(Modalities):
        source_shape = property(lambda self: self.input_shape)

    with pytest.raises(
        DataError, match=r"'calm': samples have the shape \(8,\), and Silent\.source_shape is \(1, 4, 4\)"
    ):
        fit(build(Multimodal, **NETWORK | {"source_shape": (1, 4, 4)}), 1, Silent())


def test_tables_of_two_modalities_have_columns_of_their_own(tmp_path: Path) -> None:
    for name, width in (("sounds", 3), ("pictures", 5)):
        table = pd.DataFrame(normal(60, width).numpy(), columns=[f"{name}{i}" for i in range(width)])
        table.assign(label=np.arange(60) % 3).to_csv(tmp_path / f"{name}.csv", index=False)
    data = FeatureTables("sounds.csv", "pictures.csv", 8, root=str(tmp_path))
    data.check(Roles(supervised=("source", "target"), unlabelled=(), modalities_differ=True))
    with pytest.raises(DataError, match="need the same feature columns"):
        data.check(Roles())


def test_arguments_are_checked() -> None:
    for name in ("map_weight", "transfer_weight"):
        with pytest.raises(ConfigError, match=f"{name}: -1.0 is less than 0"):
            build(Multimodal, **NETWORK | {name: -1.0})


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    """Though partners of a sample are in the other process."""
    given: dict[str, Any] = NETWORK | {"input_shape": (8,)}
    compare_processes(*two_processes(Multimodal, torch.tensor([0, 1, 2, 0, 2, 1, -1, 0, 1, 2, 0, 1, 1]), **given))


@pytest.mark.slow
def test_two_processes_make_the_fit_of_one() -> None:
    toy.check_two_processes(
        lambda: build(Multimodal, **NETWORK, optimizer=toy.SGD), lambda size: Modalities(batch_size=size), 6
    )


def test_the_weight_of_the_transfer_follows_its_schedule() -> None:
    def half(_progress: float) -> float:
        return 0.5

    settings: list[dict[str, Any]] = [{"transfer_schedule": half, "transfer_weight": 2.0}, {}, {"transfer_weight": 2.0}]
    one, two, three = (state(fit(build(Multimodal, **NETWORK | more), 4, Modalities())) for more in settings)
    assert equal(one, two)
    assert not equal(one, three)
