"""A random forest and a network that teach each other."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_da.callbacks.keep_random_state import KeepRandomState
from lightning_da.data.base import UNKNOWN, TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.methods import CoTrans, FineTune
from lightning_da.methods.semi_supervised import NEVER, bounds_of_classes, certain
from lightning_da.networks import LSTM, PrincipalComponents, Raw
from lightning_da.networks.backbones import FeedForward
from lightning_da.networks.forest import Forest
from lightning_da.schedules import inverse_decay
from lightning_da.testing import compare_processes, two_processes
from tests.toy import ADAM, SGD, Toy, check_two_processes, equal, fit, replace, state, trainer

NETWORK: dict[str, Any] = {
    "backbone": partial(FeedForward, hidden=[16], batch_norm=True, dropout=0.2),
    "optimizer": ADAM,
}
FOREST: dict[str, Any] = {"forest_reads": Raw, "trees": 5}


class Turned(Toy):
    """Its target is `turned`, where most predictions are right."""

    def __init__(self, number: int = 96, batch_size: int = 32) -> None:
        super().__init__(batch_size, number, shift="turned")


def made(seed: int = 0, **kwargs: Any) -> Any:
    L.seed_everything(seed, verbose=False)
    return CoTrans(num_classes=3, input_shape=(8,), **NETWORK | FOREST | kwargs)


def alone() -> Any:
    L.seed_everything(0, verbose=False)
    return FineTune(num_classes=3, input_shape=(8,), **NETWORK)


def weights(model: Any) -> dict[str, Tensor]:
    """Weights and statistics of the network alone."""
    return state(model, ("backbone.", "head."))


def test_without_exchange_the_network_is_the_network_alone_bit_by_bit() -> None:
    plain = fit(alone(), 12, Turned())
    taught = fit(made(certain_share=0.0), 12, Turned())
    assert equal(weights(plain), weights(taught))
    assert not equal(weights(plain), weights(fit(made(), 12, Turned())))


def test_the_labels_of_the_target_are_not_read() -> None:
    class Wrong(Turned):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            if domain == "noisy":
                data.y = (data.y + 1) % 3
            return data

    own, other = (fit(made(), 12, data) for data in (Turned(), Wrong()))
    assert equal(state(own, ("",)), state(other, ("",)))
    assert own.round == 4


def test_a_forest_that_knows_all_gives_the_network_exactly_its_labels() -> None:
    data = Turned()
    x, y = data.dataset("noisy", "train").__getitems__(list(range(96)))
    model = made(backbone=partial(FeedForward, hidden=[16]))
    model.bounds.zero_()
    replace(model.forest, "forward", lambda z: one_hot(y[(x[None] == z[:, None]).all(dim=2).int().argmax(dim=1)]))
    logged: dict[str, Tensor] = {}
    replace(model, "log", lambda name, value: logged.update({name: value}))
    found = model.unlabelled_loss(x[:40])
    assert found.item() == pytest.approx(cross_entropy(model(x[:40]), y[:40]).item(), rel=1e-6)
    assert logged["train/taught_by_forest"] == 1


def one_hot(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y, 3).float()


class Seen(CoTrans):
    """Keeps the labels that each forest learns from, and the step."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lessons: list[tuple[int, Tensor]] = []
        fit_forest = self.forest.fit

        def keep(x: Tensor, y: Tensor) -> None:
            self.lessons.append((self.trainer.global_step, y))
            fit_forest(x, y)

        replace(self.forest, "fit", keep)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_forest_is_grown_once_a_round_and_learns_what_the_network_is_certain_of(rounds: int) -> None:
    L.seed_everything(0, verbose=False)
    given = {"rounds": rounds}
    model: Any = fit(Seen(num_classes=3, input_shape=(8,), **NETWORK | FOREST | given), 12, Turned())
    assert [step for step, _ in model.lessons] == [12 * number // rounds for number in range(rounds)]
    source = Turned().dataset("calm", "train").y
    for number, (_, labels) in enumerate(model.lessons):
        assert torch.equal(labels[:96], source)
        assert (len(labels) > 96) == (number > 0)


def test_numbers_that_are_fitted_are_fitted_before_the_forest_is() -> None:
    model: Any = fit(made(forest_reads=partial(PrincipalComponents, components=3)), 2, Turned())
    x = Turned().dataset("calm", "train").x.float()
    torch.testing.assert_close(model.numbers.mean, x.mean(dim=0))
    assert model.numbers.components.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_the_forest_stays_exact_in_half_precision() -> None:
    model, lessons = made(forest_reads=partial(PrincipalComponents, components=3)), []
    grow = model.forest.fit

    def keep(x: Tensor, y: Tensor) -> None:
        lessons.append((x, y))
        grow(x, y)

    replace(model.forest, "fit", keep)
    trainer(2, precision="bf16-true").fit(model, Turned())
    assert model.head.weight.dtype == torch.bfloat16
    assert model.forest.threshold.dtype == model.forest.values.dtype == torch.float32
    again = Forest(3, 3, 5)
    again.fit(*lessons[-1])
    assert torch.equal(model.forest(lessons[-1][0]), again(lessons[-1][0]))


def test_words_are_no_numbers() -> None:
    with pytest.raises(ConfigError, match="forest_reads: for numbers, not words"):
        CoTrans(num_classes=2, input_shape=(7,), backbone=partial(LSTM, hidden=4, width=3), standardize=False, **FOREST)


def test_an_answer_is_the_mean_of_both() -> None:
    data = Turned()
    model = fit(made(rounds=1), 12, data).eval()
    x = data.dataset("noisy", "test").x.float()
    with torch.no_grad():
        answer, forest = model(x).softmax(dim=1), model.forest(x)
        model._weight_of_forest = 0
        network = model(x).softmax(dim=1)
        model._weight_of_forest = 1
        assert torch.allclose(model(x).softmax(dim=1), forest, atol=1e-6)
    assert torch.allclose(answer, (forest + network) / 2, atol=1e-6)
    assert not torch.allclose(forest, network, atol=0.1)


def test_labels_of_the_target_that_are_read_teach_the_forest() -> None:
    class Few(Seen):
        pass

    L.seed_everything(0, verbose=False)
    given: dict[str, Any] = {"train_on": "target", "rounds": 2}
    model: Any = fit(Few(num_classes=3, input_shape=(8,), **NETWORK | FOREST | given), 4, Turned())
    assert len(model.lessons) == 2
    for _, labels in model.lessons:
        assert torch.equal(labels, Turned().dataset("noisy", "train").y)


def test_resumed_equals_unbroken(tmp_path: Path) -> None:
    given: dict[str, Any] = {"lr_schedule": inverse_decay}
    keep = [KeepRandomState(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)]
    unbroken = made(**given)
    trainer(12, enable_checkpointing=True, callbacks=keep).fit(unbroken, Turned())
    resumed = made(9, **given)
    L.seed_everything(0, verbose=False)
    again = trainer(12, callbacks=[KeepRandomState()])
    again.fit(resumed, Turned(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert resumed.trainer.global_step == 12
    assert equal(state(resumed, ("",)), state(unbroken, ("",)))


class Taught(CoTrans):
    """Its forest is grown, and certain of some samples."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, **FOREST)
        x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
        self.forest.fit(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
        self.bounds.fill_(0.7)


def test_two_processes_make_the_step_of_one() -> None:
    one, two = two_processes(Taught)
    compare_processes(one, two)
    shares = [outcome.logged["train/taught_by_forest"].item() for outcome in (one, *two)]
    assert 0 < shares[0] < 1
    assert shares == pytest.approx([shares[0]] * 3)


@pytest.mark.slow
def test_two_processes_make_the_fit_of_one() -> None:
    network: dict[str, Any] = {"backbone": partial(FeedForward, hidden=[16]), "optimizer": SGD}
    check_two_processes(lambda: made(rounds=3, **network), lambda size: Turned(batch_size=size), 9)


def test_the_most_certain_of_each_class_are_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(90, 3, generator=generator).double().softmax(dim=1)
    x[:, 1] *= 0.6  # a class that is seldom predicted, and never with much certainty
    x[x.argmax(dim=1) == 2] = torch.tensor([0.5, 0.2, 0.3]).double()
    labels = x.argmax(dim=1)
    for share in (0.0, 0.25, 1.0):
        found = certain(x, bounds_of_classes(x, share))
        for label in (0, 1):
            own = x[labels == label, label].sort().values
            taken = x[found == label, label].sort().values
            if label == 1:  # no ties
                assert torch.equal(taken, own[len(own) - round(share * len(own)) :])
        assert (found != UNKNOWN).sum() >= round(share * 90) - 2
        assert torch.equal(found[found != UNKNOWN], labels[found != UNKNOWN])
    assert bounds_of_classes(x, 1.0)[2] == NEVER


@pytest.mark.parametrize(
    "wrong",
    [
        *({"rounds": 0}, {"certain_share": 1.1}, {"forest_weight": -0.1}, {"trees": 0}),
        {"forest_reads": partial(FeedForward, hidden=[4])},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: "):
        made(**wrong)
