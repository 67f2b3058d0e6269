"""A step that is not finite ends the fit, and says where."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_da.callbacks.stop_at_divergence import SKIPPED, StopAtDivergence
from lightning_da.errors import RunError
from lightning_da.methods import DeepCORAL
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.networks.backbones import FeedForward
from lightning_da.testing import AT_ONCE, build, equal, fit, state


class BrokenAt(DeepCORAL):
    """A domain loss that is finite, with a gradient that is not: the root of 0."""

    def __init__(self, step: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._step = step

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        away = source.layers[0].sum() * 0
        loss = super().domain_loss(source, target)
        return loss + away.abs().sqrt() if self.global_step == self._step else loss


def test_a_gradient_that_is_not_finite_ends_the_fit_before_the_step() -> None:
    model = build(BrokenAt, step=3)
    with pytest.raises(RunError, match=r"diverged at step 4: the gradients of \d of \d+ tensors .* that of backbone\."):
        fit(model, steps=6, callbacks=[StopAtDivergence()])
    assert all(value.isfinite().all() for value in model.parameters())


def overflowing(*steps: int) -> Any:
    """A network with batch norm whose activations are infinite at some training steps, counted from 0."""
    model = build(DeepCORAL, backbone=partial(FeedForward, hidden=[16], batch_norm=True), **AT_ONCE)

    def overflow(module: nn.Module, x: Any) -> Any:
        return x[0] + (torch.inf if module.training and model.global_step in steps else 0)

    model.backbone.register_forward_pre_hook(overflow)
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_are_not_finite_are_skipped_if_asked_for(accumulate: int) -> None:
    """A skipped step leaves weights and buffers as they were."""
    callback, model = StopAtDivergence(skip=2), overflowing(3, 5)
    with pytest.warns(match="2 step.s. were skipped"):
        fit(model, steps=6, callbacks=[callback], accumulate_grad_batches=accumulate)
    assert model.trainer.callback_metrics["train/skipped_steps"] == callback.skipped == 2
    assert all(value.isfinite().all() for value in model.state_dict().values())

    short, long = overflowing(3), overflowing(3)
    for model, steps in ((short, 3), (long, 4)):
        fit(model, steps=steps, callbacks=[StopAtDivergence(skip=1)], accumulate_grad_batches=accumulate)
    assert equal(state(short), state(long))


def test_a_loss_that_is_not_finite_is_skipped_beside_a_scaled_gradient() -> None:
    """Overflow of the scaled gradient is another thing: it is not counted, and its step has finite statistics."""
    callback, model = StopAtDivergence(skip=2), overflowing(3)
    fit(model, steps=6, callbacks=[callback], plugins=MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")))
    assert callback.skipped == 1
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_more_steps_than_may_be_skipped_end_the_fit() -> None:
    with pytest.raises(RunError, match=r"diverged at step 6 \(after 1 skipped steps\): train/task_loss is nan"):
        fit(overflowing(3, 5), steps=8, callbacks=[StopAtDivergence(skip=1)])


def test_the_number_of_skipped_steps_is_kept() -> None:
    callback, resumed = StopAtDivergence(skip=3), StopAtDivergence(skip=3)
    callback.skipped = 2
    resumed.load_state_dict(callback.state_dict())
    assert resumed.skipped == 2


def test_large_gradients_are_no_divergence() -> None:
    """Their squares overflow in a norm."""
    model = build(DeepCORAL)
    model.head.weight.register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    fit(model, steps=2, callbacks=[StopAtDivergence()])


def test_steps_that_mixed_precision_skips_end_the_fit_if_they_do_not_end() -> None:
    model: Any = build(DeepCORAL)
    model.head.weight.grad = torch.full_like(model.head.weight, float("inf"))
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()), global_step=0)
    callback: Any = StopAtDivergence()
    for _ in range(SKIPPED):
        callback.on_before_optimizer_step(trainer, model, None)
    with pytest.raises(RunError, match=r"the gradients of 1 of 1 tensors .* head\.weight"):
        callback.on_before_optimizer_step(trainer, model, None)
    model.head.weight.grad.zero_()
    callback.on_before_optimizer_step(trainer, model, None)
    model.head.weight.grad.fill_(float("inf"))
    callback.on_before_optimizer_step(trainer, model, None)
