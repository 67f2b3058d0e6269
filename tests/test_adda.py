"""ADDA in two stages: what stays fixed, what moves, and what its checkpoint holds."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.losses.adversarial import inverted_labels
from lightning_da.methods import ADDA, DomainBatch, FineTune
from lightning_da.networks.backbones import FeedForward
from lightning_da.schedules import inverse_decay
from tests.toy import ADAM, BACKBONE, Toy, accuracy, build, equal, fit, trainer

NORMED = partial(FeedForward, hidden=[32, 16], batch_norm=True)


@pytest.fixture
def stage_1(tmp_path: Path) -> tuple[FineTune, str]:
    model = fit(build("source_only", backbone=NORMED, optimizer=ADAM), steps=60)
    path = str(tmp_path / "stage_1.ckpt")
    model.trainer.save_checkpoint(path)
    assert isinstance(model, FineTune)
    return model, path


def adda(path: str | None, **kwargs: Any) -> ADDA:
    given: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": NORMED, "optimizer": ADAM} | kwargs
    return ADDA(init_from=path, **given)


def part(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {key.removeprefix(prefix): value.clone() for key, value in state if key.startswith(prefix)}


def test_the_source_network_stays_and_the_targets_starts_from_it(stage_1: tuple[FineTune, str]) -> None:
    first, path = stage_1
    model = adda(path)
    fit(model, steps=0)
    assert equal(part(model, "backbone."), part(first, "backbone."))
    fit(model, steps=30)
    # weights and, since it is in evaluation mode, the statistics of its batch norm
    assert equal(part(model, "source.backbone."), part(first, "backbone."))
    assert equal(part(model, "head."), part(first, "head."))
    assert not equal(part(model, "backbone."), part(first, "backbone."))
    model.train()
    assert not any(m.training for frozen in (model.source, model.head) for m in frozen.modules())
    assert model.backbone.training


def test_each_domain_is_classified_by_its_own_network(stage_1: tuple[FineTune, str]) -> None:
    first, path = stage_1
    before = accuracy(first)
    found = accuracy(fit(adda(path), steps=150))
    assert found["test/source/acc"] == before["test/source/acc"]
    assert found["test/target/acc"] > before["test/target/acc"] + 0.05


def test_predictions_are_those_of_the_target_network(stage_1: tuple[FineTune, str]) -> None:
    model, data = fit(adda(stage_1[1]), steps=30), Toy()
    model.set_domain("source")
    found = trainer().predict(model, data)
    assert found is not None
    model.eval()
    x = data.dataset("noisy", "test").x
    with torch.no_grad():
        own, sources = (model.head(network(x)).softmax(1) for network in (model.backbone, model.source.backbone))
    torch.testing.assert_close(torch.cat(found[2]), own)
    assert not torch.allclose(own, sources, atol=0.1)


def test_no_label_is_read(stage_1: tuple[FineTune, str]) -> None:
    model, seen = adda(stage_1[1]), []
    step = model.training_step

    def note(batch: dict[str, Any], batch_idx: int) -> Tensor:
        seen.append(batch)
        return step(batch, batch_idx)

    model.training_step = note  # type: ignore[method-assign]
    fit(model, steps=3)
    assert len(seen) == 3
    assert all(isinstance(batch[domain], Tensor) for batch in seen for domain in ("source", "target"))


def test_with_weight_zero_the_target_network_is_that_of_stage_1(tmp_path: Path) -> None:
    first = fit(build("source_only"), steps=20)
    path = str(tmp_path / "plain.ckpt")
    first.trainer.save_checkpoint(path)
    kept = fit(adda(path, backbone=BACKBONE, domain_weight=0.0), steps=20)
    assert equal(part(kept, "backbone."), part(first, "backbone."))
    assert not equal(part(kept, "discriminators."), part(adda(path, backbone=BACKBONE), "discriminators."))


def test_its_checkpoint_needs_nothing_else(stage_1: tuple[FineTune, str], tmp_path: Path) -> None:
    model = fit(adda(stage_1[1]), steps=10)
    found, path = accuracy(model), tmp_path / "stage_2.ckpt"
    model.trainer.save_checkpoint(path)
    Path(stage_1[1]).unlink()
    loaded = ADDA.load_from_checkpoint(path, weights_only=True, num_classes=3, input_shape=(8,), backbone=NORMED)
    assert accuracy(loaded) == found
    one, other = (trainer().predict(m, Toy()) for m in (model, loaded))
    assert one is not None
    assert other is not None
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_clipping_accumulation_schedules_and_mixed_precision(stage_1: tuple[FineTune, str]) -> None:
    norms: list[float] = []
    rates: list[float] = []
    precisions: set[torch.dtype] = set()

    class Watched(ADDA):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            if gradients:
                norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
            rates.append(optimizer.param_groups[0]["lr"])

        def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
            precisions.add(target.layers[0].dtype)
            return super().domain_loss(source, target)

    given: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": NORMED, "optimizer": ADAM}
    model = Watched(init_from=stage_1[1], lr_schedule=inverse_decay, **given)
    fit(model, steps=12, gradient_clip_val=0.01, accumulate_grad_batches=2, precision="bf16-mixed")
    assert model.trainer.global_step == 12
    assert precisions == {torch.bfloat16}
    assert max(norms) <= 0.0101
    assert rates[-1] < 0.5 * rates[0]
    assert not equal(part(model, "backbone."), part(stage_1[0], "backbone."))


def test_without_a_first_stage_it_says_what_to_give(stage_1: tuple[FineTune, str]) -> None:
    with pytest.raises(ConfigError, match=r"starts from a supervised run.*init_from"):
        fit(adda(None), steps=1)
    with pytest.raises(ConfigError, match=r"stage_1\.ckpt.*backbone\.fc2.*\(16, 32\) there, \(17, 32\) here"):
        fit(adda(stage_1[1], backbone=partial(FeedForward, hidden=[32, 17], batch_norm=True)), steps=1)


def test_a_run_that_has_read_target_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "target_only.ckpt"
    given = {"hyper_parameters": {"train_on": "target"}, "state_dict": build("source_only").state_dict()}
    torch.save(given, path)
    with pytest.raises(ConfigError, match="has read labels of the target"):
        fit(adda(str(path), backbone=BACKBONE), steps=1)


def test_the_target_network_learns_from_the_mapping_loss_alone(stage_1: tuple[FineTune, str]) -> None:
    model = adda(stage_1[1])
    model.log_dict = lambda *_args: None  # type: ignore[method-assign]
    source, target = torch.randn(10, 16), torch.randn(10, 16, requires_grad=True)
    labels = torch.full((10,), UNKNOWN)
    model.domain_loss(*(DomainBatch([x], model.head(x), labels) for x in (source, target))).backward()
    assert target.grad is not None
    (expected,) = torch.autograd.grad(inverted_labels(target, model.discriminators[0]), target)
    torch.testing.assert_close(target.grad, expected)
