"""Transferability curves: the layers, the table, the figures, the command, and that a fit is not disturbed."""

import copy
import random
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from lightning_da.callbacks.label_free_scores import LabelFreeScores
from lightning_da.callbacks.transfer_curve import TransferCurve
from lightning_da.data import Digits, DomainPairDataModule, TensorDomain
from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.main import main
from lightning_da.methods import ADDA, FineTune
from lightning_da.networks.backbones import Backbone, FeedForward, LeNet, TimmBackbone
from lightning_da.networks.layers import as_vectors, capture, find_layers
from lightning_da.paths import PROJECT
from lightning_da.store import client
from lightning_da.transferability import measures
from lightning_da.transferability.depth import DEFAULT_MEASURES, MEASURES, Features, Measure, depth_table
from lightning_da.transferability.features import collect, project
from lightning_da.transferability.plots import curve_figure, curve_html
from tests import toy

DEEP: Any = {"backbone": lambda shape: FeedForward(shape, [32, 16], dropout=0.3, batch_norm=True)}


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def sample(seed: int = 0, n: int = 120, d: int = 6, shift: float = 0.4) -> Features:
    """Three classes and a shift between the domains."""
    y_source, y_target = torch.arange(n) % 3, torch.arange(n - 20) % 3
    means = 2 * torch.eye(d)
    return Features(
        means[y_source] + normal(n, d, 2 * seed),
        means[y_target] + normal(n - 20, d, 2 * seed + 1, shift),
        y_source,
        y_target,
    )


# ---------------------------------------------------------------- layers of networks


@pytest.mark.parametrize(
    ("model", "layers", "widths"),
    [
        ("resnet18", ["act1", "layer1", "layer2", "layer3", "layer4"], [64, 64, 128, 256, 512]),
        ("mobilenetv2_100", [f"blocks.{i}" for i in (0, 1, 2, 4, 6)], [16, 24, 32, 96, 320]),
        ("vit_tiny_patch16_224", [f"blocks.{i}" for i in range(12)], [192] * 12),
        ("swin_tiny_patch4_window7_224", [f"layers.{i}" for i in range(4)], [96, 192, 384, 768]),
    ],
)
def test_the_layers_of_timm_models(model: str, layers: list[str], widths: list[int]) -> None:
    """Swin has its channels last."""
    shape = (3, 224, 224) if "224" in model else (3, 64, 64)
    network = FineTune(num_classes=5, input_shape=shape, backbone=lambda s: TimmBackbone(s, model)).eval()
    assert network.backbone.layers == [f"model.{layer}" for layer in layers]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, found = network.activations(x, "source", network.depths)
        with capture(network, [f"backbone.model.{layers[-1]}"]) as outputs:
            network(x)
    assert [part.shape for part in found] == [(2, width) for width in (*widths, network.backbone.num_features, 5)]
    assert torch.equal(found[-1], logits)
    (last,) = outputs.values()
    positions = last.flatten(2).transpose(1, 2) if last.shape[1] == widths[-1] else last.flatten(1, -2)
    torch.testing.assert_close(found[-3], positions.mean(dim=1))


@pytest.mark.parametrize(
    ("backbone", "shape", "widths"),
    [(LeNet, (1, 28, 28), [32, 768, 100, 100, 100, 5]), (toy.BACKBONE, (8,), [32, 16, 16, 5])],
)
def test_the_layers_of_small_networks(backbone: Any, shape: tuple[int, ...], widths: list[int]) -> None:
    network = FineTune(num_classes=5, input_shape=shape, backbone=backbone)
    _, found = network.activations(torch.zeros(3, *shape), "target", network.depths)
    assert [part.shape for part in found] == [(3, width) for width in widths]


def test_the_layers_of_a_sequential_end_before_the_next_weights() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3), nn.ReLU()
    )
    assert find_layers(network) == ["4", "6"]
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    assert find_layers(network) == ["0", "1"]
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 4))
    assert find_layers(network) == ["3", "4"]


class InPlace(Backbone):
    """A Sequential with an activation that works in place. It draws random numbers in every forward pass."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(shape[0], 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
        self.layers, self.num_features = [f"net.{name}" for name in find_layers(self.net)], 3

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.net(x + 1e-9 * torch.rand(1) + 1e-9 * random.random() + 1e-9 * np.random.rand())
        return features


def test_a_layer_is_read_before_the_next_works_in_place() -> None:
    network = FineTune(num_classes=2, input_shape=(8,), backbone=InPlace)
    assert network.backbone.layers == ["net.1", "net.2"]
    x = normal(20, 8, 0)
    _, (linear, relu) = network.activations(x, "source", ["net.0", "net.1"])
    assert linear.min() < 0
    torch.testing.assert_close(linear.relu(), relu)


def test_random_numbers_of_the_network_are_drawn_apart() -> None:
    network = FineTune(num_classes=3, input_shape=(8,), backbone=InPlace)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    collect(toy.trainer(), network, toy.Toy(), network.depths, 20)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_layer_that_is_not_called_is_named() -> None:
    network = FineTune(num_classes=2, input_shape=(8,), backbone=toy.BACKBONE)
    network.backbone.add_module("idle", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not call 'idle'"):
        network.activations(torch.zeros(2, 8), "source", ["fc1", "idle"])


# ---------------------------------------------------------------- projection


def test_projection_keeps_distances_and_measures() -> None:
    """2,048 features with a spectrum like that of a network, 1 / i, projected to 256: the measures change little."""
    turn = torch.linalg.qr(normal(2048, 2048, 9))[0]
    scales = torch.arange(1, 2049) ** -0.5

    def wide(n: int, seed: int, shift: float) -> Tensor:
        x = normal(n, 2048, seed)
        x[:, :40] += shift
        return torch.mm(x * scales, turn)

    source, target = wide(400, 0, 0.0), wide(300, 1, 0.25)
    small = project(source), project(target)
    assert small[0].shape == (400, 256)
    ratio = torch.pdist(small[0]).square() / torch.pdist(source).square()
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    assert ratio.std() < 0.12
    assert measures.mmd_test(*small, 1).value == pytest.approx(measures.mmd_test(source, target, 1).value, rel=0.15)
    assert measures.a_distance(*small) == pytest.approx(measures.a_distance(source, target), abs=0.35)
    assert measures.coral_distance(*small) == pytest.approx(measures.coral_distance(source, target), abs=0.1)
    y = (source[:, :5].sum(dim=1) > 0).long()
    accuracy = [measures.Probe(x[:200], y[:200]).accuracy(x[200:], y[200:]) for x in (source, small[0])]
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.1)


@pytest.mark.slow
def test_maps_projected_are_like_whole_maps_and_pooled_maps_are_not() -> None:
    """The first layer of an untrained LeNet on digits. Averages over positions are further apart than maps."""
    seed_everything(0, verbose=False)
    network, data = LeNet((1, 28, 28)).eval(), Digits(num_typeset=1000)
    maps = []
    for domain in ("typeset", "handwritten"):
        x, _ = data.dataset(domain, "val").__getitems__(list(range(100)))
        with torch.no_grad(), capture(network, ["conv1"]) as outputs:
            network(x)
        maps.append(outputs["conv1"])
    whole = [m.flatten(1) for m in maps]
    projected, pooled = [project(x) for x in whole], [as_vectors(m) for m in maps]

    def found(features: list[Tensor]) -> tuple[float, float, float]:
        source, target = features
        mmd = measures.mmd_test(source, target, 0).value
        return mmd, measures.coral_distance(source, target), measures.a_distance(source, target)

    assert found(projected) == pytest.approx(found(whole), rel=0.15)
    assert found(pooled)[0] > 2 * found(whole)[0]
    assert found(pooled)[2] == pytest.approx(found(whole)[2], abs=0.1)


def test_projection_leaves_narrow_features_and_the_random_state_alone() -> None:
    x, state = normal(5, 256, 0), torch.get_rng_state()
    assert torch.equal(project(x), x)
    assert torch.equal(project(normal(5, 300, 0)), project(normal(5, 300, 0)))
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- the table


def test_the_table_has_the_measures_of_each_layer() -> None:
    one, head = sample(0), sample(1, d=3)
    table = depth_table({"fc1": one, "head": head}, list(MEASURES))
    value = {(row["layer"], row["measure"]): row["value"] for row in table.to_dict("records")}
    everywhere = set(MEASURES) - {"leep", "nce"}
    assert value.keys() == {("head", m) for m in MEASURES} | {("fc1", m) for m in everywhere}
    assert dict(zip(table["layer"], table["depth"], strict=True)) == {"fc1": 1, "head": 2}
    assert value["fc1", "a_distance"] == measures.a_distance(one.source, one.target)
    assert value["fc1", "coral"] == measures.coral_distance(one.source, one.target)
    assert value["fc1", "mmd"] == measures.mmd_test(one.source, one.target).value
    assert value["fc1", "logme"] == measures.logme(one.target, one.y_target)
    assert value["fc1", "h_score"] == measures.h_score(one.target, one.y_target)
    probe = measures.Probe(one.source, one.y_source)
    assert value["fc1", "probe_target"] == probe.accuracy(one.target, one.y_target)
    assert value["head", "leep"] == measures.leep(head.target.softmax(1), head.y_target)
    assert value["head", "nce"] == measures.nce(head.target.argmax(1), head.y_target)
    assert 0.5 < value["fc1", "probe_source"] <= probe.accuracy(one.source, one.y_source)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table["p"].notna().tolist() == (table["measure"] == "mmd").tolist()


def test_measures_without_their_labels_are_left_out() -> None:
    f = sample()
    table = depth_table({"head": f._replace(y_target=torch.full_like(f.y_target, UNKNOWN))}, list(MEASURES))
    assert set(table["measure"]) == {"a_distance", "mmd", "coral", "probe_source"}


@pytest.mark.parametrize("measure", ["a_distance", "mmd", "coral", "probe_source", "probe_target", "logme", "h_score"])
def test_the_null_floor_is_that_of_no_difference(measure: str) -> None:
    """The value is at the floor if the domains are equal, or the labels random, and above it if not."""
    equal = sample(3, shift=0.0)
    generator = torch.Generator().manual_seed(5)
    nothing = equal if measure in ("a_distance", "mmd", "coral") else equal.shuffled_labels(generator)
    (at,) = depth_table({"fc1": nothing}, [measure]).to_dict("records")
    spread = at["null_high"] - at["null"]
    assert spread > 0
    assert abs(at["value"] - at["null"]) < 3 * spread
    (above,) = depth_table({"fc1": sample(3, shift=2.0)}, [measure]).to_dict("records")
    if measure == "coral":  # does not see a shift
        wide = equal._replace(target=3 * equal.target)
        (above,) = depth_table({"fc1": wide}, [measure]).to_dict("records")
    assert above["value"] > above["null_high"]


@pytest.mark.parametrize("measure", ["a_distance", "mmd", "coral", "probe_source", "probe_target"])
def test_the_band_is_the_spread_over_fresh_samples(measure: str) -> None:
    # Near the null floor the bands are too wide, by up to a factor of 2.
    drawn = [f._replace(target=2 * f.target) if measure == "coral" else f for f in map(sample, range(70))]
    fresh = np.std([MEASURES[measure].value(f) for f in drawn[:60]], ddof=1)
    bands = []
    for f in drawn[60:]:
        (row,) = depth_table({"fc1": f}, [measure]).to_dict("records")
        bands.append(max(row["high"] - row["value"], row["value"] - row["low"]) / 1.96)
    assert 0.6 < np.mean(bands) / fresh < 2


# ---------------------------------------------------------------- what it touches


def fitted(name: str, curve: TransferCurve | None, **kwargs: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """The state of the network and the random states after a fit."""
    model = toy.build(name, **DEEP, **kwargs)
    callbacks = [] if curve is None else [curve]
    toy.fit(model, steps=25, callbacks=callbacks)
    return model.state_dict(), [torch.get_rng_state().tolist(), random.random(), np.random.rand()]


@pytest.mark.parametrize("name", toy.each(toy.METHODS))
def test_a_fit_with_curves_is_the_fit_without(name: str) -> None:
    """Weights, batch-norm statistics and learned kernel weights are equal bit by bit, with dropout too."""
    plain, state = fitted(name, None)
    curve = TransferCurve(every_n_epochs=1, samples=60)
    watched, state_after = fitted(name, curve)
    assert set(curve.table["network"]) >= {"untrained", "trained", "step 10"}
    assert state == state_after
    for key, value in plain.items():
        assert torch.equal(value, watched[key]), key


def test_collecting_leaves_gradients_modes_and_statistics() -> None:
    model = toy.build("dann", **DEEP, freeze=1)
    data = toy.Toy()
    model.train()
    model(torch.randn(4, 8)).sum().backward()
    modes = {name: part.training for name, part in model.named_modules()}
    assert set(modes.values()) == {True, False}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = copy.deepcopy(model.state_dict())
    collect(toy.trainer(), model, data, model.depths, 50)
    assert modes == {name: part.training for name, part in model.named_modules()}
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not any(part._forward_hooks for part in model.modules())


def test_what_is_collected_is_what_the_layers_return() -> None:
    model, data = toy.build("source_only", **DEEP), toy.Toy()
    found = collect(toy.trainer(), model, data, model.depths, 50)
    again = collect(toy.trainer(), model, data, model.depths, 50)
    whole = collect(toy.trainer(), model, data, model.depths, 10_000)
    model.eval()
    inside = data.dataset("noisy", "val")
    with torch.no_grad():
        hidden = model.backbone.get_submodule("fc1")(inside.x)
    assert found["fc1"].target.shape == (50, 32)
    assert torch.equal(found["fc1"].target, again["fc1"].target)
    assert whole["fc1"].target.shape == hidden.shape
    for row, label in zip(found["fc1"].target, found["fc1"].y_target, strict=True):
        near = (hidden - row).abs().sum(dim=1)
        assert near.min() < 1e-4
        assert inside.y[near.argmin()] == label


def test_each_domain_of_adda_goes_through_its_own_network() -> None:
    model = toy.build("adda")
    assert isinstance(model, ADDA)
    curve = TransferCurve(samples=100)
    toy.fit(model, steps=40, callbacks=[curve])
    found = collect(toy.trainer(), model, toy.Toy(), ["fc1"], 1000)["fc1"]
    calm, noisy = (toy.Toy().dataset(domain, "val") for domain in ("calm", "noisy"))
    with torch.no_grad():
        source, target = (
            model.source.get_submodule("backbone.fc1")(calm.x),
            model.backbone.get_submodule("fc1")(noisy.x),
        )
        wrong = model.backbone.get_submodule("fc1")(calm.x)
    assert found.source.sum() == pytest.approx(source.sum().item(), rel=1e-4)
    assert found.source.sum() != pytest.approx(wrong.sum().item(), rel=1e-3)
    assert found.target.sum() == pytest.approx(target.sum().item(), rel=1e-4)
    # The fit starts from a trained source network, which differs from the untrained and from the trained one.
    assert list(curve.table["network"].unique()) == ["untrained", "start", "trained"]
    values = curve.table[curve.table["layer"] == "fc2"].pivot_table(index="measure", columns="network", values="value")
    assert values.loc["mmd"].nunique() == 3


def test_a_diverged_network_has_no_values() -> None:
    f = sample()
    table = depth_table({"head": f._replace(source=f.source * torch.inf)}, ["a_distance", "mmd"])
    assert table["value"].isna().all()
    curve_figure(table.assign(network="trained"), "diverged")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_dan_brings_the_domains_together_where_it_adapts(seed: int) -> None:
    """Long et al. 2015, figure 4: at the adapted layers the domains are nearer with DAN than without."""
    found = {}
    for name in ("source_only", "dan"):
        curve = TransferCurve()
        kwargs = {} if name == "source_only" else {"domain_weight": 3.0}
        toy.fit(toy.build(name, seed, optimizer=toy.ADAM, **kwargs), 200, toy.Toy(shift="moved"), callbacks=[curve])
        last = curve.table[curve.table["network"] == "trained"]
        found[name] = {(r["layer"], r["measure"]): r["value"] for r in last.to_dict("records")}
    for layer in toy.DEEP:
        for measure in ("mmd", "a_distance"):
            assert found["dan"][layer, measure] < 0.7 * found["source_only"][layer, measure], (layer, measure)
    assert found["dan"]["head", "probe_target"] > found["source_only"]["head", "probe_target"]


# ---------------------------------------------------------------- pictures


def test_the_page_needs_no_network_and_shows_every_curve() -> None:
    table = depth_table({"fc1": sample(0), "head": sample(1)}, ["a_distance", "probe_source", "probe_target"])
    both = pd.concat([table.assign(network=name) for name in ("untrained", "step 5", "trained")])
    page = curve_html(both, "a run")
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    for curve in (
        f"{measure}, {network}"
        for measure in ("probe_source", "probe_target")
        for network in ("untrained", "step 5", "trained")
    ):
        assert re.findall(rf"<title>{curve}, (\w+): ", page) == ["fc1", "head"]
    own = both[both["measure"] == "a_distance"]["value"]
    assert [
        float(value) for value in re.findall(r"<title>(?:untrained|step 5|trained), \w+: (.*?)</title>", page)
    ] == pytest.approx(own.tolist(), rel=1e-3)
    assert len(page) < 150_000
    gap = pd.concat(
        [
            table.iloc[:1].assign(layer=layer, value=value, network="trained")
            for layer, value in zip("abc", (1.0, np.nan, 3.0), strict=True)
        ]
    )
    assert re.findall(r"<title>(trained, .*?)</title>", curve_html(gap.assign(depth=[1, 2, 3]), "a gap")) == [
        "trained, a: 1",
        "trained, c: 3",
    ]
    figure = curve_figure(both, "a run")
    lines = [axes.get_lines() for axes in figure.axes]
    drawn = [line for line in lines[0] if line.get_label() == "trained"]
    assert drawn[0].get_ydata() == pytest.approx(table[table["measure"] == "a_distance"]["value"])


# ---------------------------------------------------------------- measures of one's own

widths = Measure(lambda f: float(f.source.shape[1]), low=0)
gap = Measure(lambda f: float((f.source.mean(0) - f.target.mean(0)).norm()), "distance of the means")
other_gap = Measure(lambda f: float((f.source.mean(0) - f.target.mean(0)).abs().sum()), "distance of the means")
logits = Measure(lambda f: float(f.target.mean()), labels=("target",), head_only=True)


@pytest.mark.parametrize("chosen", [["widths"], ["gap", "other_gap"], ["widths", "mmd", "gap", "probe_source"]])
def test_a_measure_of_your_own_is_in_the_table_the_figure_and_the_page(chosen: list[str]) -> None:
    paths = [name if name in MEASURES else f"{__name__}.{name}" for name in chosen]
    table = depth_table({"fc1": sample(0), "head": sample(1)}, paths).assign(network="trained")
    assert list(table["measure"].unique()) == chosen
    assert table["low"].notna().all()
    panels = {name: (MEASURES.get(name) or globals()[name]).panel or name for name in chosen}
    figure, page = curve_figure(table, "own"), curve_html(table, "own")
    axes = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert axes.keys() == set(panels.values())
    for name, panel in panels.items():
        drawn = [np.asarray(line.get_ydata()) for line in axes[panel].get_lines()]
        values = table[table["measure"] == name]["value"].to_numpy()
        assert any(np.array_equal(values, line) for line in drawn)
        assert panel in page
    assert page.count("<title>") >= 2 * len(chosen)


def test_a_measure_of_your_own_follows_its_definition() -> None:
    f = sample()
    path = f"{__name__}.logits"
    assert list(depth_table({"fc1": f, "head": f}, [path])["layer"]) == ["head"]
    assert depth_table({"head": f._replace(y_target=torch.full_like(f.y_target, UNKNOWN))}, [path]).empty
    flat = depth_table({"fc1": f}, [f"{__name__}.gap", f"{__name__}.logits"])
    assert flat["null"].item() < flat["value"].item() / 2  # domains are shuffled


def test_a_fit_takes_a_measure_of_your_own() -> None:
    curve = TransferCurve(measures=(f"{__name__}.widths",))
    toy.fit(toy.build("source_only"), 2, callbacks=[curve])
    assert curve.table.query("network == 'trained'")["value"].tolist() == [32, 16, 16, 3]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["mdm"], "no measure 'mdm'; did you mean 'mmd'"),
        (["tests.test_curve.widht"], "no measure 'tests.test_curve.widht'; did you mean 'widths'"),
        (["tests.test_curve.sample"], "no measure 'tests.test_curve.sample'"),
        (["tests.nowhere.gap"], "'tests.nowhere.gap' cannot be imported: No module named"),
        ([".gap"], "'.gap'"),
        (["mmd", "mmd"], "each once"),
        ([], "at least one"),
    ],
)
def test_a_measure_that_is_not_there_is_named(chosen: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransferCurve(measures=tuple(chosen))


# ---------------------------------------------------------------- networks that are not trained


class Pretrained(FeedForward):
    """A network with pretrained weights, all 0.1."""

    pretrained = True

    def load_pretrained(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)


@pytest.mark.parametrize(
    ("backbone", "networks"), [(FeedForward, ["untrained"]), (Pretrained, ["untrained", "pretrained"])]
)
def test_a_fit_without_steps_draws_each_network_once(backbone: Any, networks: list[str]) -> None:
    curve = TransferCurve(samples=60)
    toy.fit(toy.build("source_only", backbone=partial(backbone, hidden=[32, 16])), 0, callbacks=[curve])
    assert list(curve.table["network"].unique()) == networks
    assert not curve.table.duplicated(["network", "layer", "measure"]).any()
    assert curve.table.groupby("network")["low"].count()[networks[-1]] > 0
    values = [rows["value"].tolist() for _, rows in curve.table.groupby("network")]
    assert len(values) == 1 or values[0] != values[1]


def test_a_fit_that_stops_after_an_epoch_draws_its_end_once() -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
            trainer.should_stop = trainer.current_epoch == 1

    curve = TransferCurve(every_n_epochs=1, samples=60)
    toy.fit(toy.build("source_only"), 100, callbacks=[Stop(), curve])
    assert list(curve.table["network"].unique()) == ["untrained", "step 10", "trained"]


# ---------------------------------------------------------------- the command line

DIGITS = [
    *("--config", str(PROJECT / "conf/data/digits.yaml"), "--data.init_args.num_typeset", "300"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_steps", "24"),
    *("--trainer.logger.init_args.experiment_name", "curves", "--data.init_args.batch_size", "16"),
]


@pytest.fixture(scope="module")
def run_id() -> str:
    """A fit of 24 steps with the shipped callbacks."""
    seed_everything(0, verbose=False)
    cli = main(["fit", "--config", str(PROJECT / "conf/method/dan.yaml"), *DIGITS])
    return str(cli.trainer.logger.run_id)


def csv(run_id: str) -> pd.DataFrame:
    return pd.read_csv(client().download_artifacts(run_id, "curve/curve.csv"))


LAYERS = ["conv1", "conv2", "fc1", "fc2", "bottleneck", "head"]


def test_a_fit_logs_its_curves(run_id: str) -> None:
    last = csv(run_id).query("network == 'trained'").set_index(["measure", "layer"])["value"]
    for measure in DEFAULT_MEASURES:
        history = client().get_metric_history(run_id, f"depth/{measure}")
        assert sorted(point.step for point in history) == [1, 2, 3, 4, 5, 6]
        by_depth = {point.step: point.value for point in history}
        for depth, layer in enumerate(LAYERS, start=1):
            assert by_depth[depth] == pytest.approx(last[measure, layer])
            over_time = client().get_metric_history(run_id, f"transfer/{measure}/{layer}")
            assert [point.step for point in over_time] == [0, 24]
            assert over_time[-1].value == pytest.approx(last[measure, layer])
    for name in ("curve.png", "curve.html"):
        assert Path(client().download_artifacts(run_id, f"curve/{name}")).stat().st_size > 10_000


def test_the_curve_of_a_finished_run_is_that_of_its_fit(run_id: str) -> None:
    table = main(["curve", "--ckpt_path", run_id, "--out", "here"])
    assert sorted(path.name for path in Path("here").iterdir()) == ["curve.csv", "curve.html", "curve.png"]
    pd.testing.assert_frame_equal(pd.read_csv("here/curve.csv"), table)
    recorded = csv(run_id)
    for network in ("untrained", "trained"):
        now, then = (t[t["network"] == network].reset_index(drop=True) for t in (table, recorded))
        pd.testing.assert_frame_equal(
            now[["layer", "measure", "value"]], then[["layer", "measure", "value"]], atol=1e-6
        )
    # The curve is not logged a second time.
    assert len(client().get_metric_history(run_id, "depth/mmd")) == len(LAYERS)


def test_two_networks_side_by_side(run_id: str) -> None:
    path = client().download_artifacts(run_id, "checkpoints/last.ckpt")
    table = main(["curve", "--ckpt_path", run_id, path, "--measures", "coral", "--layers", "fc1", "head"])
    assert list(table["layer"].unique()) == ["fc1", "head"]
    assert table["network"].nunique() == 3
    alike = table[table["measure"].str.startswith("cka")]
    assert len(alike) == 4
    assert alike["value"].to_numpy() == pytest.approx(1)


def test_networks_of_different_depth_share_the_layers_of_one_name() -> None:
    short = depth_table({"fc1": sample(0), "head": sample(1)}, ["coral"]).assign(network="short")
    long = depth_table({"fc1": sample(0), "fc2": sample(2), "head": sample(1)}, ["coral"]).assign(network="long")
    for both in ([short, long], [long, short]):
        (axes,) = (a for a in curve_figure(pd.concat(both), "two").axes if a.get_title())
        assert [label.get_text() for label in axes.get_xticklabels()] == ["fc1", "fc2", "head"]
        lines = {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()}
        assert (lines["short"], lines["long"]) == ([0, 2], [0, 1, 2])


def test_a_resumed_fit_whose_checkpoint_has_no_curves_has_no_untrained_network(tmp_path: Path) -> None:
    toy.fit(toy.build("dann"), 10).trainer.save_checkpoint(tmp_path / "half.ckpt")
    curve = TransferCurve(samples=50)
    trainer = toy.trainer(20, limit_val_batches=0, callbacks=[curve])
    trainer.fit(toy.build("dann"), toy.Toy(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert set(curve.table["network"]) == {"trained"}


@pytest.mark.parametrize(
    ("weights", "networks"), [("random", ["untrained"]), ("weights.pth", ["untrained", "pretrained"])]
)
def test_the_curve_of_a_network_that_is_not_trained(tmp_path: Path, weights: str, networks: list[str]) -> None:
    """The weights of a file are drawn beside random ones; random ones are drawn once."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", x=rng.random((120, 3, 32, 32), dtype=np.float32), y=np.arange(120) % 3)
    seed_everything(5, verbose=False)
    torch.save(timm.create_model("mobilenetv2_100").state_dict(), "weights.pth")
    experiment = f"untrained {weights}"
    args = [
        *("--config", str(PROJECT / "conf/data/features.yaml")),
        *("--config", str(PROJECT / "conf/backbone/mobilenetv2.yaml")),
        *("--data.init_args.source", "one.npz", "--data.init_args.target", "two.npz"),
        "--model.init_args.standardize=false",
        *("--data.init_args.batch_size", "8", "--model.init_args.backbone.init_args.weights", weights),
        *("--trainer.logger.init_args.experiment_name", experiment, "--trainer.accelerator", "cpu"),
    ]
    table = main(["curve", *args, "--samples", "8", "--measures", "a_distance"])
    assert list(table["network"].unique()) == networks
    own = table[table["network"] == networks[-1]]
    assert own["low"].notna().all()
    values = [rows["value"].tolist() for _, rows in table.groupby("network")]
    assert len(values) == 1 or values[0] != values[1]
    (run,) = client().search_runs([client().get_experiment_by_name(experiment).experiment_id])  # type: ignore[union-attr]
    assert run.info.run_name == "mobilenetv2_100-one-two-s0"
    assert run.info.status == "FINISHED"
    logged = client().get_metric_history(run.info.run_id, "depth/a_distance")
    assert {point.step: point.value for point in logged} == dict(zip(own["depth"], own["value"], strict=True))


def test_the_curve_of_standardised_features_is_that_of_the_fit(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        np.savez(tmp_path / f"{name}.npz", x=100 * normal(120, 5, seed, 1 + seed).numpy(), y=np.arange(120) % 3)
    args = [
        *("--config", str(PROJECT / "conf/method/source_only.yaml"), "--trainer.accelerator", "cpu"),
        *("--config", str(PROJECT / "conf/data/features.yaml"), "--trainer.max_steps", "3"),
        *(
            "--data.init_args.source",
            "one.npz",
            "--data.init_args.target",
            "two.npz",
            "--data.init_args.batch_size",
            "8",
        ),
    ]
    run_id = str(main(["fit", *args]).trainer.logger.run_id)
    table = main(["curve", "--ckpt_path", run_id])
    assert list(table["network"].unique()) == ["untrained", "trained"]
    pd.testing.assert_series_equal(table["value"], csv(run_id)["value"], atol=1e-6)


def test_the_curve_of_a_fit_without_steps_is_that_of_its_start(tmp_path: Path) -> None:
    args = ["fit", "--config", str(PROJECT / "conf/method/source_only.yaml"), *DIGITS, "--name", "zero"]
    cli = main([*args, "--trainer.max_steps", "0"])
    run_id = str(cli.trainer.logger.run_id)
    assert list(csv(run_id)["network"].unique()) == ["untrained"]
    assert len(client().get_metric_history(run_id, "depth/mmd")) == len(LAYERS)
    table = main(["curve", "--ckpt_path", run_id, "--out", str(tmp_path / "zero")])
    pd.testing.assert_series_equal(table["value"], csv(run_id)["value"], atol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers", "fc9"], "no layer 'fc9'; did you mean 'fc"),
        (["--layers", "head", "head"], "layers: 'head' is there twice"),
        (["--measures", "cka"], "no measure 'cka'"),
        (["--measures", "tests.test_curve.gapp"], "no measure .*; did you mean 'gap'"),
        (["--measures", "mmd", "mmd"], "each once"),
        (["--samples", "-5"], "samples: -5 of each domain are too few; give 8 or more"),
        (
            ["--data.init_args.target", "photo"],
            "does not fit these data or options: .* size mismatch for backbone.conv1",
        ),
    ],
)
def test_a_mistake_is_named(run_id: str, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["curve", "--ckpt_path", run_id, *more])
    assert not Path("curve").exists()


def test_a_resumed_fit_has_the_curves_from_the_start(run_id: str) -> None:
    path = client().download_artifacts(run_id, "checkpoints/last.ckpt")
    args = ["fit", "--config", str(PROJECT / "conf/method/dan.yaml"), *DIGITS]
    cli = main([*args, "--trainer.max_steps", "36", "--ckpt_path", path])
    table = csv(cli.trainer.logger.run_id)
    assert list(table["network"].unique()) == ["untrained", "trained"]
    then = csv(run_id)
    now, before = (t[t["network"] == "untrained"].reset_index(drop=True) for t in (table, then))
    pd.testing.assert_frame_equal(now, before, check_like=True)
    assert set(table[table["network"] == "trained"]["step"]) == {36}


class Scarce(DomainPairDataModule):
    """A target with a given number of validation samples, and a given number of labels for them."""

    def __init__(self, samples: int, labels: int) -> None:
        super().__init__("a", "b", batch_size=16)
        self.samples, self.labels = samples, labels

    def dataset(self, domain: str, split: str) -> TensorDomain:
        n = self.samples if (domain, split) == ("b", "val") else 40
        y = torch.arange(n) % 3
        if domain == "b":
            y[self.labels :] = UNKNOWN
        return TensorDomain(normal(n, 8, len(split) + 10 * (domain == "b")), y, ["x", "y", "z"])


@pytest.mark.parametrize(
    ("samples", "labels", "there"),
    [
        (40, 0, {"a_distance", "mmd", "coral", "probe_source"}),
        (40, 5, {"a_distance", "mmd", "coral", "probe_source"}),
        (40, 8, set(MEASURES)),
        (5, 5, set()),
    ],
)
def test_a_target_with_few_samples_or_labels(samples: int, labels: int, there: set[str]) -> None:
    curve, scores = TransferCurve(measures=tuple(MEASURES)), LabelFreeScores()
    with warnings.catch_warnings(record=True, action="always") as said:
        toy.fit(toy.build("dann"), 3, Scarce(samples, labels), callbacks=[curve, scores])
    assert len([own for own in said if "fewer than 8 validation samples" in str(own.message)]) == (samples < 8)
    assert set(curve.table["measure"]) == there
    assert curve.table["value"].isna().sum() == 0
