"""Signs of failure in adaptation: each is named, once, in the log and in the run; a healthy fit has none."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_da.losses.adversarial import domain_classification
from lightning_da.methods import DANN, DeepCORAL
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.discriminators import watch_discriminators, watch_pictures
from lightning_da.methods.signs import LOGGED_STEPS, PICTURE_STEPS, START_STEPS, Signs, largest_share
from tests import toy

HEALTHY = {
    **{"target_top_class": 0.4, "domain_gradient": 1e-6, "discriminator_acc": 0.8, "discriminator_loss": 1.4},
    **{"made_spread": 0.5, "real_or_made_acc": 0.8},
}
BAD = {
    "target_top_class": (1.0, "one class is predicted"),
    "domain_gradient": (0.0, "no gradient"),
    "discriminator_acc": (1.0, "at 100 % accuracy"),
    "discriminator_loss": (3.7, "worse than a guess"),
    "made_spread": (0.0, "the same picture"),
    "real_or_made_acc": (1.0, "made pictures from real"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_sign_is_named_once_and_only_if_it_lasts(name: str) -> None:
    value, text = BAD[name]
    signs = Signs()
    for _ in range(LOGGED_STEPS - 1):
        assert signs.add(HEALTHY | {name: value}, PICTURE_STEPS) == []
    assert [text in sign for sign in signs.add(HEALTHY | {name: value}, PICTURE_STEPS)] == [True]
    for step in range(10):
        assert signs.add(HEALTHY | {name: value * (1 + step)}, PICTURE_STEPS) == []
    assert len(signs.found) == 1


def test_a_value_that_is_not_finite_is_a_sign() -> None:
    signs = Signs()
    for _ in range(LOGGED_STEPS):
        signs.add(HEALTHY | {"domain_gradient": math.nan}, START_STEPS)
    assert list(signs.found) == ["not finite"]


def test_a_healthy_or_a_balanced_game_has_no_sign() -> None:
    signs = Signs()
    for step in range(20):
        signs.add(
            HEALTHY | {"discriminator_acc": 0.5, "discriminator_loss": 2 * math.log(2) + 0.2 * (-1) ** step},
            START_STEPS,
        )
    assert signs.found == {}


def test_one_class_is_no_sign_where_the_source_has_nearly_one_class() -> None:
    for share, found in ((0.9, []), (0.4, ["one class"])):
        signs = Signs()
        for _ in range(LOGGED_STEPS):
            signs.add(HEALTHY | {"target_top_class": 0.99, "source_top_class": share}, START_STEPS)
        assert list(signs.found) == found


def test_one_class_is_no_sign_at_the_start_of_training() -> None:
    """Networks that have just begun predict one class, also where each step is logged and a tenth is a few steps."""
    signs = Signs()
    for step in range(START_STEPS):
        assert signs.add(HEALTHY | {"target_top_class": 1.0}, step) == []
    assert len(signs.add(HEALTHY | {"target_top_class": 1.0}, START_STEPS)) == 1


class Says(nn.Module):
    """A discriminator that calls a fixed share of the samples of either domain right: the domain is the first value."""

    def __init__(self, right: float) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.where(torch.arange(len(x)) < self.right * len(x), 1.0, -1.0)
        return (answers * x[:, 0].sign())[:, None]


@pytest.mark.parametrize("right", [0.0, 0.5, 0.8, 1.0])
def test_accuracy_of_discriminators(right: float) -> None:
    source, target = [torch.ones(40, 16)] * 2, [-torch.ones(40, 16)] * 2
    found = watch_discriminators(source, target, [Says(right), Says(1.0)])
    assert found["discriminator_acc"] == pytest.approx((right + 1) / 2)
    losses = [domain_classification(source[0], target[0], Says(share)) for share in (right, 1.0)]
    assert found["discriminator_loss"] == pytest.approx(float(sum(losses)) / 2)


def test_a_generator_that_has_just_begun_has_no_sign() -> None:
    signs = Signs()
    for step in range(PICTURE_STEPS):
        assert signs.add(HEALTHY | {"made_spread": 0.0, "real_or_made_acc": 1.0}, step) == []
    assert len(signs.add(HEALTHY | {"made_spread": 0.0, "real_or_made_acc": 1.0}, PICTURE_STEPS)) == 2


def test_made_pictures_are_watched_by_the_worst_game() -> None:
    real, apart = torch.randn(40, 6), torch.tensor([[3.0], [5.0]])
    varied = watch_pictures([(apart, -apart, real, 0.5 * real), (apart, apart.flip(0), real, real)])
    assert varied["made_spread"] == pytest.approx(0.5)
    assert varied["real_or_made_acc"] == pytest.approx((4 + 2) / 8)
    assert watch_pictures([(apart, apart, real, real[:1].expand(40, 6))])["made_spread"] == pytest.approx(0, abs=1e-6)
    assert watch_pictures([(apart, -apart, real[:1], real[1:2])]) == {"real_or_made_acc": 1}
    assert set(watch_pictures([(apart, -apart, real, real)], told=False)) == {"made_spread"}


def test_share_of_the_most_frequent_class() -> None:
    assert largest_share(torch.tensor([0, 1, 1, 2, 1])) == pytest.approx(0.6)


class Detached(DeepCORAL):
    """A domain loss that does nothing, as a loss under `no_grad`."""

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return super().domain_loss(source, target).detach()


class Constant(DeepCORAL):
    """A domain loss whose gradient is zero everywhere, as a softmax over one unit."""

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return source.layers[0].sum(dim=1, keepdim=True).softmax(dim=1).mean() + 0 * target.layers[0].sum()


class OneClass(DANN):
    def activations(self, *args: Any, **kwargs: Any) -> Any:
        logits, layers = super().activations(*args, **kwargs)
        return logits + torch.tensor([100.0, 0.0, 0.0]), layers


def fit(kind: type[Any], steps: int = 20, **given: Any) -> Any:
    model = kind(**(toy.NETWORK | {"optimizer": toy.ADAM} | given))
    return toy.fit(model, steps, log_every_n_steps=2)


@pytest.mark.parametrize(
    ("kind", "text"), [(Detached, "no gradient"), (Constant, "no gradient"), (OneClass, "one class is predicted")]
)
def test_a_fit_warns_of_a_method_that_does_nothing(kind: type[Any], text: str) -> None:
    with pytest.warns(UserWarning, match=rf"^{kind.__name__}, step [13][0-9]: .*{text}"):
        model = fit(kind, 36)
    assert any(text in sign for sign in model.signs.found.values())


def test_a_game_that_diverges_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="worse than a guess"):
        fit(DANN, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5), domain_weight=5.0)


@pytest.mark.parametrize("name", toy.each(toy.ADAPTING))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_methods_that_work_have_no_sign(name: str, accumulate: int, recwarn: pytest.WarningsRecorder) -> None:
    model = toy.fit(toy.build(name, optimizer=toy.ADAM), 40, log_every_n_steps=5, accumulate_grad_batches=accumulate)
    assert model.signs.found == {}
    assert model.trainer.callback_metrics["train/domain_gradient"] > 0
    assert not [w for w in recwarn if ", step " in str(w.message)]


def test_signs_are_kept_by_a_resumed_fit(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no gradient"):
        first = fit(Detached)
    first.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Detached(**(toy.NETWORK | {"optimizer": toy.ADAM}))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no gradient")
        quiet = toy.trainer(40, log_every_n_steps=2)
        quiet.fit(resumed, toy.Toy(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert resumed.signs.found == first.signs.found


def test_watching_does_not_change_the_weights() -> None:
    often, never = (toy.fit(toy.build("dann"), 12, log_every_n_steps=every) for every in (1, 100))
    assert toy.equal(toy.state(often), toy.state(never))
