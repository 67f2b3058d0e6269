"""Conservative training: its two terms against closed forms, and what they do to forgetting."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_da.data import TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.methods import Conservative, FineTune, Progressive
from lightning_da.networks import LSTM
from lightning_da.networks.backbones import FeedForward
from lightning_da.paths import find_method
from lightning_da.schedules import inverse_decay
from lightning_da.text.words import code_of
from tests.toy import ADAM, SGD, Toy, check_two_processes, equal, fit, state, trainer

NORMED = partial(FeedForward, hidden=[32, 16], batch_norm=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    L.seed_everything(0, verbose=False)
    model = fit(FineTune(num_classes=3, input_shape=(8,), backbone=NORMED, optimizer=ADAM), steps=60)
    path = tmp_path_factory.mktemp("earlier") / "first.ckpt"
    model.trainer.save_checkpoint(path)
    return str(path)


def build(kind: Any, start: str | None, seed: int = 1, **kwargs: Any) -> Any:
    L.seed_everything(seed, verbose=False)
    given: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": NORMED, "optimizer": ADAM}
    return kind(**given | {"train_on": "target", "init_from": start} | kwargs)


WEIGHTLESS: dict[str, Any] = {"start_decay": 0.0, "new_decay": 0.0}
NOTHING: dict[str, Any] = {"start_decay": 0.0, "new_decay": 0.0, "output_weight": 0.0}


@pytest.mark.parametrize("keep_head", [True, False])
def test_without_weights_it_is_fine_tuning_bit_by_bit(start: str, keep_head: bool) -> None:
    plain = fit(build(FineTune, start, keep_head=keep_head), steps=20)
    held = fit(build(Conservative, start, keep_head=keep_head, **NOTHING), steps=20)
    assert equal(state(held, ("",)), state(plain, ("",)))


def test_its_file_has_the_settings_of_fine_tuning() -> None:
    """So that weights of 0 are fine-tuning with the files too, and tables compare the penalties alone."""
    files = (yaml.safe_load(find_method(name).read_text()) for name in ("conservative", "fine_tune"))
    one, other = (file["model"]["init_args"] for file in files)
    assert one == other


def test_the_distance_of_weights_is_the_papers(start: str) -> None:
    model = build(Conservative, start, start_decay=0.3, new_decay=0.7)
    fit(model, steps=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert model.weight_penalty().item() == pytest.approx(0.7 / 2 * squares(before, "head."))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    new = 0.7 / 2 * squares(dict(model.named_parameters()), "head.")
    expected = 0.3 / 2 * squares(moved, "backbone.") + new
    assert model.weight_penalty().item() == pytest.approx(expected, rel=1e-5)
    model.weight_penalty().backward()
    for name, p in model.named_parameters():
        pull = 0.7 * p if name.startswith("head.") else 0.3 * moved[name]
        assert torch.allclose(p.grad, pull, rtol=1e-4, atol=1e-6)


def squares(weights: dict[str, Tensor], prefix: str) -> float:
    return sum(float(p.detach().double().square().sum()) for name, p in weights.items() if name.startswith(prefix))


def test_frozen_weights_are_in_no_term(start: str) -> None:
    model = build(Conservative, start, freeze="all", start_decay=1.0, new_decay=0.0)
    fit(model, steps=0)
    assert model.weight_penalty() == 0
    assert model.weight_penalty().requires_grad
    model = build(Conservative, start, start_decay=1.0, new_decay=1.0)
    fit(model, steps=0)
    assert model.weight_penalty() > 0
    model.head.requires_grad_(False)
    assert model.weight_penalty() == 0


@pytest.mark.parametrize("keep_head", [True, False])
def test_the_distance_of_outputs_is_the_divergence_from_the_earlier_network(start: str, keep_head: bool) -> None:
    """Against the earlier network, built anew from its checkpoint."""
    first = earlier(start)
    model = build(Conservative, start, output_weight=1.0, start_decay=0.0, new_decay=0.0, keep_head=keep_head)
    fit(model, steps=7)
    model.eval()
    x = torch.randn(20, 8)
    features, logits = model.classify(x)
    now = logits if keep_head else first.head(features)
    p0, p = first(x).double().softmax(dim=1), now.double().softmax(dim=1)
    expected = (p0 * (p0.log() - p.log())).sum(dim=1).mean()
    found = model.output_penalty(x, features, logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found > 1e-4
    model.zero_grad()
    found.backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == ({"backbone", "head"} if keep_head else {"backbone"})


def test_the_earlier_network_scales_its_inputs_as_it_did(tmp_path: Path) -> None:
    """A run on other data has another mean and deviation; its predictions stay what they were."""

    class Far(Toy):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            return TensorDomain(3 * data.x + 5, data.y, data.classes)

    first = fit(build(FineTune, None, train_on="source", standardize=True), steps=40)
    first.trainer.save_checkpoint(tmp_path / "first.ckpt")
    model = build(
        Conservative, str(tmp_path / "first.ckpt"), standardize=True, output_weight=1.0, keep_head=True, **WEIGHTLESS
    )
    fit(model, 0, Far())
    x = torch.randn(20, 8)
    p0, p = first.eval()(x).log_softmax(dim=1), model.eval()(x).log_softmax(dim=1)
    expected = (p0.exp() * (p0 - p)).sum(dim=1).mean()
    assert expected > 0.01
    assert model.output_penalty(x, *model.classify(x)).item() == pytest.approx(expected.item(), rel=1e-4)
    other = build(Conservative, str(tmp_path / "first.ckpt"), output_weight=1.0)
    with pytest.raises(ConfigError, match=r"output_weight: .*network differs.*standardize.*missing here"):
        fit(other, steps=0)


def test_only_pretrained_parts_of_a_backbone_are_held_at_their_start(tmp_path: Path) -> None:
    """An LSTM with word vectors of a file: the vectors are copied, the recurrent weights are new."""
    (tmp_path / "vectors.txt").write_text("the 0.1 0.2 0.3\ngood 0.4 0.5 0.6\n")
    lstm = partial(LSTM, words=4, width=3, hidden=5, vectors=str(tmp_path / "vectors.txt"))
    model = build(Conservative, None, backbone=lstm, input_shape=(4,), start_decay=1.0, new_decay=0.0)
    words = torch.tensor([[code_of("the"), code_of("good"), code_of("pan"), 0]])
    model.backbone.fit(lambda _role: [words])
    model.initialise()
    held = {name.split(".")[1] for name in model._copied}
    assert held == {"embedding"}
    with torch.no_grad():
        for p in model.backbone.lstm.parameters():
            p.add_(1)
    assert model.weight_penalty() == 0


def test_at_the_start_the_outputs_have_no_distance(start: str) -> None:
    model = build(Conservative, start, output_weight=1.0)
    fit(model, steps=0)
    model.eval()
    x = torch.randn(20, 8)
    assert model.output_penalty(x, *model.classify(x)).abs() < 1e-6


@pytest.mark.parametrize("terms", [{"start_decay": 3.0}, {"output_weight": 10.0, "start_decay": 0.0}])
def test_it_forgets_less(start: str, terms: dict[str, Any]) -> None:
    """The predictions of the earlier network for samples of the source, after a fit on the target."""
    x = torch.cat([x for x, _ in Toy().sample_dataloader("source", "test", 200)])
    kept: dict[str, Any] = {"keep_head": True, "optimizer": partial(torch.optim.Adam, lr=0.01)}

    def moved(model: Any) -> float:
        before, now = (torch.nn.functional.log_softmax(part(x), dim=1) for part in (earlier(start), model.eval().cpu()))
        return float((before.exp() * (before - now)).sum(dim=1).mean())

    plain = moved(fit(build(FineTune, start, **kept), steps=100))
    assert moved(fit(build(Conservative, start, **kept, **terms), steps=100)) < plain / 2


def earlier(start: str) -> FineTune:
    model = FineTune(num_classes=3, input_shape=(8,), backbone=NORMED)
    model.load_state_dict(torch.load(start, weights_only=True)["state_dict"])
    return model.eval()


def test_a_large_weight_holds_the_network_at_its_start(start: str) -> None:
    model = build(Conservative, start, start_decay=1.0, new_decay=0.0, optimizer=partial(SGD, lr=0.1))
    fit(model, steps=0)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        model.weight_penalty().backward()
        optimizer.step()
    assert all(torch.allclose(p, before[name], atol=1e-5) for name, p in model.backbone.named_parameters())


def test_resumed_equals_unbroken_without_the_earlier_run(start: str, tmp_path: Path) -> None:
    terms: dict[str, Any] = {"output_weight": 1.0, "lr_schedule": inverse_decay}
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    unbroken = build(Conservative, start, **terms)
    trainer(12, enable_checkpointing=True, callbacks=[keep]).fit(unbroken, Toy(number=96))
    resumed = build(Conservative, str(tmp_path / "gone.ckpt"), seed=9, **terms)
    L.seed_everything(1, verbose=False)
    trainer(12).fit(resumed, Toy(number=96), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert equal(state(resumed, ("",)), state(unbroken, ("",)))
    assert not [name for name in state(unbroken, ("",)) if "earlier" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_from": None}, "stays near earlier weights.*--after source_only"),
        ({"output_weight": 1.0, "init_layers": 1}, "output_weight: it needs the whole network"),
    ],
)
def test_a_start_is_needed(start: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(build(Conservative, start, **arguments), steps=0)


def test_weights_are_not_negative(start: str) -> None:
    with pytest.raises(ConfigError, match="output_weight: -1"):
        build(Conservative, start, output_weight=-1.0)


def test_a_run_without_a_head_of_classes_or_with_columns_is_refused(start: str, tmp_path: Path) -> None:
    state = torch.load(start, weights_only=True)["state_dict"]
    headless = {name: value for name, value in state.items() if not name.startswith("head.")}
    torch.save({"state_dict": headless}, tmp_path / "headless.ckpt")
    build(Conservative, str(tmp_path / "headless.ckpt")).initialise()
    with pytest.raises(ConfigError, match=r"output_weight: '.*headless.ckpt' has no head that names classes"):
        build(Conservative, str(tmp_path / "headless.ckpt"), output_weight=1.0).initialise()
    column = fit(build(Progressive, start), steps=2)
    column.trainer.save_checkpoint(tmp_path / "column.ckpt")
    for method in (FineTune, Conservative):
        with pytest.raises(ConfigError, match="it is a column of a progressive network, which is nothing without"):
            build(method, str(tmp_path / "column.ckpt")).initialise()


@pytest.mark.slow
def test_two_processes_make_the_fit_of_one(start: str) -> None:
    plain = partial(FeedForward, hidden=[32, 16])
    first = fit(FineTune(num_classes=3, input_shape=(8,), backbone=plain, optimizer=ADAM), steps=60)
    path = Path(start).with_name("plain.ckpt")
    first.trainer.save_checkpoint(path)
    check_two_processes(
        lambda: build(Conservative, str(path), backbone=plain, output_weight=1.0, optimizer=SGD),
        lambda size: Toy(batch_size=size),
        6,
    )
