"""Progressive networks: the columns against the formula, what stays untouched, and the chain."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_da.errors import ConfigError
from lightning_da.methods import FineTune, Progressive
from lightning_da.networks.backbones import FeedForward, LeNet
from lightning_da.schedules import inverse_decay
from tests.toy import ADAM, Toy, equal, fit, state, trainer

NETWORK = partial(FeedForward, hidden=[32, 16])
BOTTLENECK = partial(FeedForward, hidden=[12])


def build(kind: Any, seed: int = 1, **kwargs: Any) -> Any:
    L.seed_everything(seed, verbose=False)
    given: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": NETWORK, "bottleneck": BOTTLENECK}
    return kind(**given | {"optimizer": ADAM, "standardize": True} | kwargs)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, str]]:
    """Three fits, each from the one before."""
    folder = tmp_path_factory.mktemp("chain")
    fits: list[tuple[Any, str]] = []
    for number, kind in enumerate((FineTune, Progressive, Progressive)):
        args: dict[str, Any] = {"columns": number, "init_from": fits[-1][1], "train_on": "target"} if number else {}
        model = fit(build(kind, seed=number, **args), steps=40)
        path = str(folder / f"{number}.ckpt")
        model.trainer.save_checkpoint(path)
        fits.append((model.eval().cpu(), path))
    return fits


def test_without_laterals_it_is_a_network_from_scratch_bit_by_bit(chain: list[tuple[Any, str]]) -> None:
    scratch = fit(build(FineTune, train_on="target"), steps=20)
    alone = fit(build(Progressive, train_on="target", init_from=chain[0][1], laterals=False), steps=20)
    no_column = fit(build(Progressive, train_on="target", columns=0), steps=20)
    parts = ("standardize.", "backbone.", "bottleneck.", "head.")
    assert equal(state(alone, parts), state(scratch, parts))
    assert equal(state(no_column, parts), state(scratch, parts))


def test_it_begins_as_a_network_from_scratch(chain: list[tuple[Any, str]]) -> None:
    x = torch.randn(10, 8)
    model = fit(build(Progressive, init_from=chain[0][1]), steps=0).eval()
    scratch = fit(build(FineTune), steps=0).eval()
    assert torch.equal(model(x), scratch(x))
    assert not torch.equal(model.columns[0]["backbone"](x), scratch.backbone(x))


def test_earlier_columns_are_untouched(chain: list[tuple[Any, str]]) -> None:
    (first, _), (second, _), (third, _) = chain
    own = ("standardize", "backbone", "bottleneck")
    for part in own:
        begun = state(first.get_submodule(part), ("",))
        for later in (second, third):
            assert equal(state(later.columns[0][part], ("",)), begun)
        assert equal(state(third.columns[1][part], ("",)), state(second.get_submodule(part), ("",)))
    assert not equal(state(third.backbone, ("",)), state(second.backbone, ("",)))


def sideways(adapter: Any, below: list[Tensor]) -> Tensor:
    """The adapter of the formula: U f(V [a_1 h_1, ..., a_n h_n])."""
    joined = torch.cat([adapter.scales[j] * h for j, h in enumerate(below)], dim=1)
    found: Tensor = (joined @ adapter.reduce.weight.T + adapter.reduce.bias).relu() @ adapter.lateral.weight.T
    return found


def linears(column: Any) -> list[nn.Module]:
    modules = [*column["backbone"].modules(), *column["bottleneck"].modules()]
    return [module for module in modules if isinstance(module, nn.Linear)]


def columns_of(model: Any) -> list[Any]:
    own = {name: getattr(model, name) for name in ("standardize", "backbone", "bottleneck", "laterals")}
    return [*model.columns, own]


def test_the_outputs_are_those_of_the_formula(chain: list[tuple[Any, str]]) -> None:
    """Three columns of three layers and a head, by hand."""
    model = chain[2][0]
    x = torch.randn(10, 8)
    levels: list[list[Tensor]] = [[], [], []]  # what enters layers 2 and 3, and the head, of the columns
    for column in columns_of(model):
        below = [list(level) for level in levels]
        first, second, third = linears(column)
        h = first(column["standardize"](x)).relu()
        levels[0].append(h)
        for place, linear in ((0, second), (1, third)):
            beside = sideways(column["laterals"][place], below[place]) if below[place] else 0
            h = (linear(h) + beside).relu()
            levels[place + 1].append(h)
    logits = model.head(h) + sideways(model.laterals[2], below[2])
    features, found = model.classify(x)
    assert torch.allclose(features, h, atol=1e-5)
    assert torch.allclose(found, logits, atol=1e-5)
    assert all(adapter.lateral.weight.abs().sum() > 0 for adapter in model.laterals)


def test_activations_are_those_with_the_laterals(chain: list[tuple[Any, str]]) -> None:
    model = chain[1][0]
    x = torch.randn(10, 8)
    logits, (features, head) = model.activations(x, "target", ["bottleneck", "head"])
    assert torch.equal(head, logits)
    assert torch.equal(features, model.classify(x)[0])


def test_laterals_alone_learn_what_the_earlier_column_knows(chain: list[tuple[Any, str]]) -> None:
    """The new column is frozen at random weights but for its head and the laterals."""
    model = build(Progressive, init_from=chain[0][1], optimizer=partial(torch.optim.Adam, lr=0.02))
    for part in (model.backbone, model.bottleneck):
        part.requires_grad_(False)
    found = Toy().sample_dataloader("source", "test", 300)
    x, y = (torch.cat(part) for part in zip(*found, strict=True))
    before = (fit(model, steps=0).eval()(x).argmax(dim=1) == y).float().mean()
    after = (fit(model, steps=100).eval()(x).argmax(dim=1) == y).float().mean()
    assert after > 0.95 > before


def test_convolutions_have_laterals_too(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "input_shape": (1, 28, 28),
        "backbone": partial(LeNet, batch_norm=True),
        "bottleneck": None,
    }
    first = build(FineTune, **shape)
    torch.save({"state_dict": first.state_dict()}, tmp_path / "first.ckpt")
    model = build(Progressive, init_from=str(tmp_path / "first.ckpt"), **shape)
    model.initialise()
    x = torch.rand(4, 1, 28, 28)
    before = model.eval()(x)
    assert len(model.laterals) == len(model.backbone.layers)
    for place, adapter in enumerate(model.laterals):
        with torch.no_grad():
            adapter.lateral.weight.normal_()
        changed = model(x)
        assert not torch.allclose(changed, before), place
        nn.init.zeros_(adapter.lateral.weight)


def test_resumed_equals_unbroken_without_the_earlier_run(chain: list[tuple[Any, str]], tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    args: dict[str, Any] = {"columns": 2, "train_on": "target", "lr_schedule": inverse_decay}
    unbroken = build(Progressive, init_from=chain[1][1], **args)
    trainer(12, enable_checkpointing=True, callbacks=[keep]).fit(unbroken, Toy(number=96))
    resumed = build(Progressive, seed=9, init_from=str(tmp_path / "gone.ckpt"), **args)
    L.seed_everything(1, verbose=False)
    trainer(12).fit(resumed, Toy(number=96), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert equal(state(resumed, ("",)), state(unbroken, ("",)))


def test_only_what_is_new_learns(chain: list[tuple[Any, str]]) -> None:
    model = build(Progressive, init_from=chain[1][1], columns=2, train_on="target")
    names = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"backbone", "bottleneck", "head", "laterals"}
    fit(model, steps=5)
    assert all(p.grad is None for p in model.columns.parameters())
    assert not any(module.training for column in model.train().columns for module in column.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "adds a column to those of an earlier run.*--model.columns 0"),
        ({"init_from": 1, "columns": 1}, "has 2, not 1; set --model.columns 2"),
        ({"init_from": 0, "columns": 3}, "has 1, not 3; set --model.columns 1"),
        ({"init_from": 0, "backbone": partial(FeedForward, hidden=[32, 17])}, r"network differs.*\(16, 32\) there"),
        ({"init_from": 0, "standardize": False}, r"network differs.*standardize.*missing here"),
    ],
)
def test_the_earlier_run_has_the_same_network(
    chain: list[tuple[Any, str]], arguments: dict[str, Any], message: str
) -> None:
    given = dict(arguments)
    if "init_from" in given:
        given["init_from"] = chain[given["init_from"]][1]
    with pytest.raises(ConfigError, match=message):
        fit(build(Progressive, **given), steps=0)


def test_a_number_of_columns_is_not_negative() -> None:
    with pytest.raises(ConfigError, match="columns: -1"):
        build(Progressive, columns=-1)
