"""A step that is not finite ends the fit, and says where."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_da.callbacks.stop_at_divergence import SKIPPED, StopAtDivergence
from lightning_da.errors import RunError
from lightning_da.methods import DeepCORAL
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.testing import build, fit


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
