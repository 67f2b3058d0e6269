"""What every method must hold: each test goes over the methods of `toy.METHODS`."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_da.callbacks.keep_random_state import KeepRandomState
from lightning_da.networks.backbones import FeedForward
from lightning_da.schedules import inverse_decay
from lightning_da.testing import METHOD_CHECKS
from tests.toy import (
    ADAPTING,
    METHODS,
    ON_ONE_NETWORK,
    WITHOUT_DOMAIN_LOSS,
    Toy,
    accuracy,
    build,
    each,
    equal,
    fit,
    having,
    replace,
    state,
    trainer,
)

NORMED = partial(FeedForward, hidden=[32, 16], batch_norm=True)


def check(prop: str, name: str, **kwargs: Any) -> None:
    METHOD_CHECKS[prop](METHODS[name].method, **kwargs)


def check_or_lack(prop: str, name: str) -> None:
    if prop not in METHODS[name].without:
        check(prop, name)
    else:
        with pytest.raises(AssertionError, match=f"^{prop}: "):
            check(prop, name)


OF_A_STEP = ("gradient", "weight", "order", "collapsed")
"""Properties that are seen without a training."""


@pytest.mark.parametrize("name", ADAPTING)
@pytest.mark.parametrize("prop", OF_A_STEP)
def test_a_step_holds(prop: str, name: str) -> None:
    check_or_lack(prop, name)


@pytest.mark.parametrize("name", each(ADAPTING))
@pytest.mark.parametrize("prop", [prop for prop in METHOD_CHECKS if prop not in (*OF_A_STEP, "processes", "better")])
def test_holds(prop: str, name: str) -> None:
    check_or_lack(prop, name)


@pytest.mark.parametrize("name", each(having("better", ADAPTING)))
def test_beats_source_only_on_a_shift_made_for_it(name: str) -> None:
    check("better", name, shifts=(METHODS[name].shift,))


@pytest.mark.parametrize("name", each(ON_ONE_NETWORK))
@pytest.mark.parametrize("batch_norm", ["joint", "separate", "per_domain"])
def test_domain_loss_sends_a_gradient_through_batch_norm(name: str, batch_norm: str) -> None:
    check("gradient", name, batch_norm=batch_norm, backbone=NORMED)


@pytest.mark.parametrize("name", each(having("weight_zero", ON_ONE_NETWORK)))
@pytest.mark.parametrize("batch_norm", ["joint", "separate", "per_domain"])
@pytest.mark.parametrize("short", ["calm", "noisy"])
def test_weight_zero_is_source_only_bit_by_bit(name: str, batch_norm: str, short: str) -> None:
    check("weight_zero", name, batch_norm=batch_norm, short=short)


@pytest.mark.parametrize("name", each(WITHOUT_DOMAIN_LOSS))
@pytest.mark.parametrize("prop", ["precision", "checkpoint", "labels"])
def test_a_method_without_domain_loss_holds(prop: str, name: str) -> None:
    check_or_lack(prop, name)


@pytest.mark.parametrize("name", each(METHODS))
def test_every_trainable_parameter_gets_a_gradient_and_moves(name: str) -> None:
    model = build(name)
    before: dict[str, Tensor] = {}
    seen: set[str] = set()
    start = model.on_train_start

    def copy() -> None:
        start()
        before.update({key: p.detach().clone() for key, p in model.named_parameters()})

    def note(_optimizer: Any) -> None:
        seen.update(key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0)

    replace(model, "on_train_start", copy)
    replace(model, "on_before_optimizer_step", note)
    fit(model, steps=5)
    assert seen == {key for key, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(before[key], p) != p.requires_grad for key, p in model.named_parameters())


@pytest.mark.parametrize("name", each(METHODS))
def test_repeats_itself(name: str) -> None:
    once, again = (fit(build(name, seed=3), steps=12) for _ in range(2))
    assert equal(state(once), state(again))
    assert accuracy(once) == accuracy(again)


@pytest.mark.parametrize("batches_a_step", [1, 2])
@pytest.mark.parametrize("name", each(METHODS))
def test_resumed_equals_unbroken(name: str, batches_a_step: int, tmp_path: Path) -> None:
    # 3 batches an epoch; the checkpoint after the second is resumed, with the schedules on their way
    options: dict[str, Any] = {"accumulate_grad_batches": batches_a_step}
    keep = [KeepRandomState(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)]
    unbroken = build(name, lr_schedule=inverse_decay)
    trainer(12, enable_checkpointing=True, callbacks=keep, **options).fit(unbroken, Toy(number=96))
    resumed = build(name, seed=9, lr_schedule=inverse_decay)
    L.seed_everything(0, verbose=False)
    again = trainer(12, callbacks=[KeepRandomState()], **options)
    again.fit(resumed, Toy(number=96), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert resumed.trainer.global_step == 12
    assert equal(state(resumed, ("",)), state(unbroken, ("",)))
