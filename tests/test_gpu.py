"""Every method on a GPU, in each precision, beside the same training on the CPU."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_da import testing
from lightning_da.callbacks import CompileLayers, KeepRandomState
from lightning_da.networks.backbones import FeedForward
from lightning_da.testing import ADAM, Toy, accuracy, equal, fit, state, trainer
from tests import test_masks, test_pictures, toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
ACCELERATOR = "gpu"
STEPS = 40
CLOSE = {"32-true": 0.02, "bf16-mixed": 0.1, "16-mixed": 0.1}
"""How far the mean loss of the last ten steps may be from that on the CPU, in units of the first loss."""


class Losses(L.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
        self.seen.append(float(outputs["loss"]))


def trained(name: str, **kwargs: Any) -> tuple[Any, list[float]]:
    """A method after a short fit, and its losses."""
    losses = Losses()
    own = kwargs.pop("callbacks", [])
    model = fit(toy.build(name, optimizer=ADAM), steps=STEPS, callbacks=[losses, *own], **kwargs)
    return model, losses.seen


@pytest.mark.parametrize("precision", CLOSE)
@pytest.mark.parametrize("name", toy.METHODS)
def test_a_method_trains_as_on_the_cpu(name: str, precision: Any) -> None:
    data = Toy(shift=toy.METHODS[name].shift)
    cpu, expected = trained(name, data=data)
    gpu, losses = trained(name, data=data, accelerator=ACCELERATOR, precision=precision)
    assert all(math.isfinite(loss) for loss in losses)
    assert all(value.isfinite().all() for value in gpu.state_dict().values())
    far = abs(sum(losses[-10:]) - sum(expected[-10:])) / 10
    assert far < CLOSE[precision] * max(1.0, abs(expected[0]))
    key = "test/target/acc"
    assert accuracy(gpu, data)[key] == pytest.approx(accuracy(cpu, data)[key], abs=0.08)


@pytest.mark.parametrize("precision", CLOSE)
@pytest.mark.parametrize("name", ["cycle_gan", "gan_classifier", "segmentation"])
def test_what_makes_pictures_or_masks_begins_as_on_the_cpu(name: str, precision: Any) -> None:
    """The first steps: a game magnifies the rounding, and a GPU draws other noise."""

    slow = partial(torch.optim.Adam, lr=1e-3)

    def losses_of(**kwargs: Any) -> list[float]:
        model: Any
        data: Any
        if name == "segmentation":
            model = test_masks.SEGMENTATIONS["adversarial"](optimizer=slow)
            data = test_masks.hearts(target_labels=6)
        else:
            model = testing.build(test_pictures.KINDS[name], **test_pictures.SMALL, optimizer=slow)
            data = test_pictures.Images()
        losses = Losses()
        fit(model, 8, data, callbacks=[losses], **kwargs)
        assert all(value.isfinite().all() for value in model.state_dict().values())
        return losses.seen

    expected = losses_of()
    found = losses_of(accelerator=ACCELERATOR, precision=precision)
    assert found == pytest.approx(expected, rel=0.02 if precision == "32-true" else 0.15, abs=0.02)


@pytest.mark.parametrize("name", ["dan", "dann", "adda"])
def test_a_compiled_method_trains_as_on_the_cpu(name: str) -> None:
    _, expected = trained(name)
    _, losses = trained(name, accelerator=ACCELERATOR, callbacks=[CompileLayers()])
    assert losses == pytest.approx(expected, rel=0.05, abs=0.02)


@pytest.mark.parametrize("name", ["dan", "dann", "deep_coral"])
def test_a_fit_goes_on_exactly(name: str, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
    backbone = partial(FeedForward, hidden=[32, 16], dropout=0.5)
    whole, resumed = toy.build(name, backbone=backbone), toy.build(name, 9, backbone=backbone)
    options: dict[str, Any] = {"limit_val_batches": 0, "accelerator": ACCELERATOR, "deterministic": True}
    L.seed_everything(5, verbose=False)
    trainer(14, callbacks=[keep, KeepRandomState()], enable_checkpointing=True, **options).fit(whole, Toy())
    last = trainer(14, callbacks=[KeepRandomState()], **options)
    last.fit(resumed, Toy(), ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    assert equal(state(resumed, ("",)), state(whole, ("",)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
@pytest.mark.parametrize("strategy", ["ddp_spawn", "fsdp"])
def test_two_gpus_train_as_one(strategy: str) -> None:
    one, _ = trained("deep_coral", accelerator=ACCELERATOR)
    two, _ = trained("deep_coral", data=Toy(batch_size=16), accelerator=ACCELERATOR, devices=2, strategy=strategy)
    for key, value in state(one).items():
        torch.testing.assert_close(state(two)[key], value, rtol=1e-3, atol=1e-4, msg=key)
