"""CoGAN, CycleGAN and the GAN classifier: their terms and gradients against the definitions, and their networks."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_da import testing
from lightning_da.callbacks import Reconstructions
from lightning_da.callbacks.keep_random_state import KeepRandomState
from lightning_da.data.base import TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.exporting import export
from lightning_da.losses.games import Game, discriminator_loss, feature_matching, generator_loss
from lightning_da.methods import CoGAN, CycleGAN, GANClassifier
from lightning_da.methods.signs import PICTURE_STEPS
from lightning_da.networks import LSTM, LeNet
from lightning_da.networks.backbones import FeedForward
from lightning_da.networks.norms import PerDomain, split_layers
from lightning_da.networks.pictures import Between, generator, patch_discriminator, translator
from lightning_da.paths import CONF
from lightning_da.testing import AT_ONCE, batch_of, compare_processes, gradients, ready, step, two_processes
from lightning_da.tracking import Tracker
from tests import toy

GAMES: tuple[Game, ...] = ("cross_entropy", "least_squares", "wasserstein")
SMALL: dict[str, Any] = {"input_shape": (1, 4, 8), "backbone": partial(FeedForward, hidden=[16, 6])}
BOTTLENECK: dict[str, Any] = {"bottleneck": partial(FeedForward, hidden=[6])}
KINDS: dict[str, Any] = {
    "cogan": partial(CoGAN, noise=4, generator=4, pictures=6, **AT_ONCE),
    "cycle_gan": partial(CycleGAN, width=4, identity_weight=1.0),
    "disco_gan": partial(CycleGAN, width=4, game="cross_entropy", cycle="squared"),
    "dual_gan": partial(CycleGAN, width=4, game="wasserstein"),
    "gan_classifier": partial(GANClassifier, noise=4, generator=4, train_on="source", read_unlabelled="both"),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(model: Any, sizes: tuple[int, int] = (5, 7)) -> dict[str, Any]:
    return batch_of(model, *(normal(n, *model.input_shape, seed=seed) for seed, n in enumerate(sizes)))


def reached(model: nn.Module, loss: Tensor) -> set[str]:
    """The parts of a network that a loss sends a gradient into."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    sent = zip(names, gradients(loss, parameters), strict=True)
    return {name.split(".")[0] for name, gradient in sent if gradient.abs().max() > 0}


class Images(toy.Toy):
    """The values of `Toy` as pixels, four times."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        return TensorDomain(data.x.repeat(1, 4).view(-1, 1, 4, 8), data.y, data.classes)


# ---------------------------------------------------------------- the losses


@pytest.mark.parametrize("game", GAMES)
def test_games_are_the_formulas(game: Game) -> None:
    real, made = normal(5, 3), normal(7, 3, seed=1)
    a, b = real.numpy(), made.numpy()

    def d(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    wanted = {
        "cross_entropy": (-np.log(d(a)).mean() - np.log(1 - d(b)).mean(), -np.log(d(b)).mean()),
        "least_squares": (((a - 1) ** 2).mean() + (b**2).mean(), ((b - 1) ** 2).mean()),
        "wasserstein": (b.mean() - a.mean(), -b.mean()),
    }[game]
    found = discriminator_loss(real, made, game), generator_loss(made, game)
    assert [loss.item() for loss in found] == pytest.approx(wanted, rel=1e-12)
    given = [x.requires_grad_() for x in (real, made)]
    assert torch.autograd.gradcheck(lambda x, y: discriminator_loss(x, y, game) + generator_loss(y, game), given)


@pytest.mark.parametrize("game", GAMES)
def test_games_are_float32_under_autocast_and_finite(game: Game) -> None:
    real, made = (100 * normal(16, 1, seed=seed).bfloat16() for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = discriminator_loss(real, made, game), generator_loss(made, game)
    assert torch.equal(found[0], discriminator_loss(real.float(), made.float(), game))
    assert torch.equal(found[1], generator_loss(made.float(), game))
    assert all(loss.isfinite() for loss in found)


def test_feature_matching_is_the_formula() -> None:
    real, made = normal(5, 3), normal(7, 3, seed=1)
    wanted = np.sum((real.numpy().mean(0) - made.numpy().mean(0)) ** 2)
    assert feature_matching(real, made).item() == pytest.approx(wanted, rel=1e-12)
    assert feature_matching(real, real.flip(0)).item() == pytest.approx(0, abs=1e-24)
    assert torch.autograd.gradcheck(feature_matching, (real.requires_grad_(), made.requires_grad_()))


# ---------------------------------------------------------------- the networks


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32), (1, 16, 24)])
def test_networks_compute_pictures_of_the_shape_of_the_samples(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, *shape)
    assert generator(5, shape)(torch.randn(2, 5)).shape == x.shape
    assert translator(shape)(x).shape == x.shape
    assert patch_discriminator(shape)(x).shape == (2, 1, shape[1] // 4, shape[2] // 4)


def test_a_discriminator_reads_sides_of_any_number_of_pixels_from_four() -> None:
    assert patch_discriminator((2, 4, 15))(torch.randn(3, 2, 4, 15)).shape == (3, 1, 1, 3)
    with pytest.raises(ConfigError, match="a discriminator reads at least 4 x 4 pixels"):
        patch_discriminator((2, 3, 15))


def test_a_translator_changes_nothing_at_first_and_learns() -> None:
    network, x = translator((3, 8, 8)), torch.randn(4, 3, 8, 8)
    assert torch.equal(network(x), x)
    (network(x) - x.flip(0)).square().mean().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert not torch.allclose(network(x), x)


def test_values_lie_between_those_of_the_samples() -> None:
    between, samples = Between((1, 4, 4)), 3 + 2 * torch.rand(50, 1, 4, 4)
    between.fit(samples.split(7))
    torch.testing.assert_close(between(torch.zeros(1, 1, 4, 4))[0], samples.mean(dim=0))
    for x, end in ((1e4, samples.max()), (-1e4, samples.min())):
        torch.testing.assert_close(between(torch.full((1, 1, 4, 4), x)), end.expand(1, 1, 4, 4))


def test_layers_of_each_domain_begin_equal_and_read_their_domain() -> None:
    torch.manual_seed(0)
    plain = LeNet((1, 28, 28), batch_norm=True)
    network = split_layers(LeNet((1, 28, 28), batch_norm=True), 2)
    assert [name for name, part in network.named_modules() if isinstance(part, PerDomain)] == ["conv1", "conv2"]
    network.load_state_dict(plain.state_dict())
    x, outputs = torch.rand(3, 1, 28, 28), {}
    nn.init.zeros_(network.get_submodule("conv1.source.0").weight)  # type: ignore[arg-type]
    for domain in ("source", "target"):
        for part in ("conv1", "conv2"):
            network.get_submodule(part).set_domain(domain)  # type: ignore[operator]
        outputs[domain] = network.eval()(x)
    assert torch.equal(outputs["target"], plain.eval()(x))
    assert not torch.allclose(outputs["source"], outputs["target"])
    with pytest.raises(ConfigError, match="own_layers: 5 of the backbone's 4"):
        split_layers(LeNet((1, 28, 28)), 5)


@pytest.mark.parametrize("name", ["cogan", "cycle_gan", "gan_classifier"])
@pytest.mark.parametrize(
    "given",
    [
        {"input_shape": (8,)},
        {"input_shape": (1, 6, 8)},
        {"input_shape": (4,), "backbone": partial(LSTM, words=4, width=3, hidden=5)},
    ],
)
def test_what_is_no_picture_is_refused(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"makes pictures of shape .* multiples of 4, not \("):
        testing.build(KINDS[name], **SMALL | given)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("cogan", {"pictures": 0}, "pictures: 0"),
        ("cogan", {"noise": 0}, "noise: 0"),
        ("cycle_gan", {"cycle_weight": -1.0}, "cycle_weight: -1"),
        ("cycle_gan", {"width": 0}, "width: 0"),
        ("gan_classifier", {"generator": 0}, "generator: 0"),
    ],
)
def test_arguments_are_checked(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        testing.build(KINDS[name], **SMALL | given)


# ---------------------------------------------------------------- CoGAN


def cogan(logged: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    return ready(KINDS["cogan"], logged, **SMALL | BOTTLENECK | kwargs)


def test_cogan_is_the_sum_of_two_games() -> None:
    logged: dict[str, Any] = {}
    model = cogan(logged, domain_weight=0.3)
    batch = both(model)
    torch.manual_seed(1)
    seen = step(model, batch)
    torch.manual_seed(1)
    noise, wanted = torch.randn(6, 4), {"discriminator": 0.0, "generator": 0.0}
    for domain, x in (("source", batch["source"][0]), ("target", batch["target"])):
        model.set_domain(domain)
        real, made = (
            model.discriminator(model.bottleneck(model.backbone(part))) for part in (x, model.generator(noise.double()))
        )
        wanted["discriminator"] += discriminator_loss(real, made).item()
        wanted["generator"] += generator_loss(made).item()
    for name, value in wanted.items():
        assert logged[f"train/{name}_loss"].item() == pytest.approx(value, rel=1e-10), name
    assert seen.domain_loss.item() == pytest.approx(sum(wanted.values()), rel=1e-10)


def test_gradients_of_cogan_go_where_they_belong() -> None:
    logged: dict[str, Any] = {}
    model = cogan(logged)
    step(model, both(model))
    assert reached(model, logged["train/discriminator_loss"]) == {"backbone", "bottleneck", "discriminator"}
    assert reached(model, logged["train/generator_loss"]) == {"generator"}
    assert reached(model, logged["train/task_loss"]) == {"backbone", "bottleneck", "head"}


def test_the_game_moves_the_layers_of_cogan_by_the_domain_weight() -> None:
    logged: dict[str, Any] = {}
    model = cogan(logged, domain_weight=0.3)
    batch = both(model)
    torch.manual_seed(1)
    step(model, batch)
    shared = [p for name, p in model.backbone.named_parameters() if "source" not in name and "target" not in name]
    found = gradients(logged["train/discriminator_loss"], shared)
    torch.manual_seed(1)
    noise = torch.randn(6, 4).double()
    expected = [torch.zeros_like(p) for p in shared]
    for domain, x in (("source", batch["source"][0]), ("target", batch["target"])):
        model.set_domain(domain)
        below = [model.bottleneck(model.backbone(part)) for part in (x, model.generator(noise).detach())]
        loss = discriminator_loss(*(model.discriminator(features) for features in below))
        expected = [total + 0.3 * g for total, g in zip(expected, gradients(loss, shared), strict=True)]
    assert shared
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_cogan_shares_all_but_the_layers_of_each_domain(tmp_path: Path) -> None:
    """After steps and after a reload; the layers of each domain have moved apart."""
    model = testing.fit(testing.build(KINDS["cogan"], **SMALL), 3, Images())
    model.trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = KINDS["cogan"](**testing.NETWORK | SMALL)
    again.load_state_dict(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"])
    for network in (model, again):
        own: dict[str, set[str]] = {"source": set(), "target": set()}
        shared: set[str] = set()
        for name, p in network.named_parameters():
            domain = next((d for d in own if f".{d}." in name), None)
            (shared if domain is None else own[domain]).add(name)
            if domain == "source":
                assert not torch.equal(p, network.get_parameter(name.replace(".source.", ".target.")))
        assert {name.replace("source", "target") for name in own["source"]} == own["target"]
        assert {name.rpartition(".")[0] for name in own["source"]} >= {
            "backbone.fc1.source.0",
            "generator.last.source.4",
        }
        assert {"backbone.fc2.0.weight", "head.weight", "discriminator.weight", "generator.first.0.weight"} <= shared
    x = torch.randn(3, 1, 4, 8)
    for domain in ("source", "target"):
        for network in (model, again):
            network.eval().set_domain(domain)
        assert torch.equal(model(x), again(x))


def test_made_pictures_leave_the_statistics_of_batch_norm_as_they_are() -> None:
    """Those are of real pictures, on which the classifier is tested."""
    normed: dict[str, Any] = {"backbone": partial(FeedForward, hidden=[16, 6], batch_norm=True)}
    plain, model = (cogan(**normed, domain_weight=weight) for weight in (0.0, 1.0))
    for network in (plain, model):
        step(network, both(network))
    norms = [[m for m in n.modules() if isinstance(m, nn.BatchNorm1d)] for n in (plain, model)]
    assert len(norms[0]) > 4
    for one, other in zip(*norms, strict=True):
        assert torch.equal(one.running_mean, other.running_mean)
        assert one.num_batches_tracked == other.num_batches_tracked


# ---------------------------------------------------------------- CycleGAN


def cycle(logged: dict[str, Any] | None = None, moved: bool = True, **kwargs: Any) -> Any:
    """With translators that change pictures, unless they are to stay as they begin."""
    model = ready(partial(CycleGAN, width=4), logged, **SMALL | kwargs)
    torch.manual_seed(3)
    for translate in model.translators.values() if moved else ():
        nn.init.normal_(translate[-2].weight, std=0.3)
    return model


def test_the_cycle_of_identities_costs_nothing() -> None:
    model = cycle(moved=False, identity_weight=1.0)
    real = {domain: normal(4, 1, 4, 8, seed=seed) for seed, domain in enumerate(("source", "target"))}
    losses = model.translation_losses(real)
    assert losses["cycle"].item() == losses["identity"].item() == 0
    assert cycle().translation_losses(real)["cycle"].item() > 0.1


@pytest.mark.parametrize("distance", ["absolute", "squared"])
@pytest.mark.parametrize("game", GAMES)
def test_cycle_gan_is_the_sum_of_its_terms(game: Game, distance: Any) -> None:
    logged: dict[str, Any] = {}
    model = cycle(logged, game=game, cycle=distance, cycle_weight=3.0, identity_weight=2.0)
    batch = both(model)
    loss = model.training_step(batch, 0)
    s, t = batch["source"][0], batch["target"]
    to_t, to_s = model.translators["target"], model.translators["source"]
    d_s, d_t = model.discriminators["source"], model.discriminators["target"]

    def apart(x: Tensor, y: Tensor) -> float:
        error = (x - y).detach().numpy()
        return float(np.mean(np.abs(error) if distance == "absolute" else error**2))

    wanted: dict[str, Any] = {
        "discriminator": discriminator_loss(d_t(t), d_t(to_t(s)), game)
        + discriminator_loss(d_s(s), d_s(to_s(t)), game),
        "translator": generator_loss(d_t(to_t(s)), game) + generator_loss(d_s(to_s(t)), game),
        "cycle": apart(to_s(to_t(s)), s) + apart(to_t(to_s(t)), t),
        "identity": apart(to_t(t), t) + apart(to_s(s), s),
        "task": cross_entropy(model.head(model.backbone(to_t(s))), batch["source"][1]),
    }
    for name, value in wanted.items():
        assert logged[f"train/{name}_loss"].item() == pytest.approx(float(value), rel=1e-10), name
    weights = {"cycle": 3.0, "identity": 2.0}
    assert loss.item() == pytest.approx(sum(weights.get(k, 1.0) * float(v) for k, v in wanted.items()), rel=1e-10)


def test_gradients_of_cycle_gan_go_where_they_belong() -> None:
    logged: dict[str, Any] = {}
    model = cycle(logged, identity_weight=1.0)
    model.training_step(both(model), 0)
    assert reached(model, logged["train/discriminator_loss"]) == {"discriminators"}
    for name in ("translator", "cycle", "identity"):
        assert reached(model, logged[f"train/{name}_loss"]) == {"translators"}, name
    assert reached(model, logged["train/task_loss"]) == {"backbone", "head"}


def test_the_source_is_classified_as_it_is_translated_and_the_target_as_it_is() -> None:
    model, x = cycle(), normal(4, 1, 4, 8)
    plain = model.head(model.backbone(x))
    translated = model.head(model.backbone(model.translators["target"](x)))
    for domain, wanted in (("target", plain), ("source", translated)):
        model.set_domain(domain)
        torch.testing.assert_close(model(x), wanted)
    model.set_domain({"source": 3, "target": 1})
    torch.testing.assert_close(model(x), torch.cat([translated[:3], plain[3:]]))


def test_a_checkpoint_of_a_game_of_wasserstein_has_clipped_weights(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=1)
    testing.fit(testing.build(KINDS["dual_gan"], **SMALL), 2, Images(), enable_checkpointing=True, callbacks=[keep])
    weights = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    found = [value.abs().max().item() for key, value in weights.items() if key.startswith("discriminators.")]
    assert max(found) == pytest.approx(0.1)


def test_a_game_of_wasserstein_clips_the_discriminators_alone() -> None:
    model = testing.fit(testing.build(KINDS["dual_gan"], **SMALL), 3, Images())
    free = testing.fit(testing.build(KINDS["cycle_gan"], **SMALL), 3, Images())

    def largest(network: nn.Module) -> float:
        return max(p.abs().max().item() for p in network.parameters())

    assert largest(model.discriminators) == pytest.approx(0.1)
    assert min(largest(model.translators), largest(free.discriminators)) > 0.1


def test_few_labels_of_the_target_are_read_beside_the_translations() -> None:
    logged: dict[str, Any] = {}
    model = cycle(logged, train_on="both")
    s, t, few, y = normal(5, 1, 4, 8), normal(6, 1, 4, 8, seed=1), normal(3, 1, 4, 8, seed=2), torch.tensor([2, 1, 0])
    model.training_step({"source": (s, torch.arange(5) % 3), "target": t, "labelled": (few, y)}, 0)
    parts = [(model.translators["target"](s), torch.arange(5) % 3), (few, y)]
    wanted = sum(cross_entropy(model.head(model.backbone(x)), labels).item() for x, labels in parts) / 2
    assert logged["train/task_loss"].item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("name", ["cycle_gan", "disco_gan", "dual_gan"])
def test_the_files_say_what_differs(name: str) -> None:
    given = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())["model"]["init_args"]
    game, distance = {
        "cycle_gan": ("least_squares", "absolute"),
        "disco_gan": ("cross_entropy", "squared"),
        "dual_gan": ("wasserstein", "absolute"),
    }[name]
    assert (given["game"], given["cycle"]) == (game, distance)


# ---------------------------------------------------------------- the GAN classifier


def test_the_gan_classifier_has_one_more_class_and_matches_features() -> None:
    logged: dict[str, Any] = {}
    model = ready(KINDS["gan_classifier"], logged, **SMALL | {"read_unlabelled": "target"})
    batch = both(model)
    torch.manual_seed(1)
    loss = model.training_step(batch, 0)
    torch.manual_seed(1)
    made = model.generator(torch.randn(7, 4).double())
    real_features, made_features = (model.backbone(x) for x in (batch["target"], made))

    def classes(features: Tensor) -> Any:
        """Probabilities of all classes, the last one that of made pictures."""
        logits = model.head(features).detach().numpy()
        odds = np.exp(np.concatenate([logits, np.zeros((len(logits), 1))], axis=1))
        return odds / odds.sum(axis=1, keepdims=True)

    wanted = {
        "discriminator": -np.log(1 - classes(real_features)[:, -1]).mean()
        - np.log(classes(made_features)[:, -1]).mean(),
        "generator": (real_features.mean(0) - made_features.mean(0)).square().sum().item(),
        "task": cross_entropy(model.head(model.backbone(batch["source"][0])), batch["source"][1]).item(),
    }
    for name, value in wanted.items():
        assert logged[f"train/{name}_loss"].item() == pytest.approx(value, rel=1e-10), name
    assert loss.item() == pytest.approx(sum(wanted.values()), rel=1e-10)
    assert reached(model, logged["train/discriminator_loss"]) == {"backbone", "head"}
    assert reached(model, logged["train/generator_loss"]) == {"generator"}


def test_batch_norm_treats_made_pictures_of_the_gan_classifier_as_real_ones() -> None:
    """By their own statistics the means of their features would match whatever they are."""
    logged: dict[str, Any] = {}
    normed: dict[str, Any] = {"backbone": partial(FeedForward, hidden=[16, 6], batch_norm=True)}
    model = ready(KINDS["gan_classifier"], logged, **SMALL | normed | {"read_unlabelled": "target"})
    batch = both(model)
    torch.manual_seed(1)
    model.training_step(batch, 0)
    torch.manual_seed(1)
    made = model.generator(torch.randn(7, 4).double())
    made_features = copy.deepcopy(model.backbone).eval()(made)
    real_features = model.backbone(batch["target"])
    wanted = (real_features.mean(0) - made_features.mean(0)).square().sum().item()
    assert logged["train/generator_loss"].item() == pytest.approx(wanted, rel=1e-10)


# ---------------------------------------------------------------- fits


@pytest.mark.parametrize("name", ["cycle_gan", "gan_classifier"])
def test_what_makes_pictures_is_no_part_of_the_exported_network(name: str) -> None:
    data = Images()
    network = testing.build(KINDS[name], **SMALL)
    program = export(network, data)
    x = data.probe(20)[1]
    network.set_domain("target")
    torch.testing.assert_close(program.module()(x), network.eval()(x).softmax(dim=1))
    made = ("generator", "translators", "discriminators")
    assert not any(part in key for key in program.state_dict for part in made)


class OfVectors:
    """Vectors of 8 values in a batch are pictures of 4 x 8."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        def pictures(x: Any) -> Any:
            return x.repeat(1, 4).view(-1, 1, 4, 8)

        seen = {k: (pictures(v[0]), v[1]) if isinstance(v, tuple) else pictures(v) for k, v in batch.items()}
        loss: Tensor = super().training_step(seen, batch_idx)  # type: ignore[misc]
        return loss


class CycleGANOfVectors(OfVectors, CycleGAN):
    pass


class GANClassifierOfVectors(OfVectors, GANClassifier):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((CycleGANOfVectors, name) for name in ("cycle_gan", "disco_gan", "dual_gan")),
        (GANClassifierOfVectors, "gan_classifier"),
    ],
)
def test_two_processes_make_the_step_of_one(kind: Any, name: str) -> None:
    compare_processes(*two_processes(kind, **SMALL | KINDS[name].keywords))


class SeededGANClassifier(GANClassifier):
    """Draws the same noise in each fit."""

    def on_train_start(self) -> None:
        super().on_train_start()
        torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS["cycle_gan"], partial(SeededGANClassifier, **KINDS["gan_classifier"].keywords)])
def test_two_processes_make_the_fit_of_one(kind: Any) -> None:
    toy.check_two_processes(
        lambda: testing.build(kind, **SMALL, optimizer=toy.SGD), lambda size: Images(batch_size=size), 6
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"cogan"}))
def test_a_fit_moves_all_it_trains_and_goes_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    keep = [KeepRandomState(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)]
    unbroken = testing.build(KINDS[name], **SMALL)
    before = {key: p.detach().clone() for key, p in unbroken.named_parameters()}
    accumulated: dict[str, Any] = {"accumulate_grad_batches": 2}
    testing.trainer(6, enable_checkpointing=True, callbacks=keep, **accumulated).fit(unbroken, Images(number=96))
    still = {key for key, p in unbroken.named_parameters() if torch.equal(before[key], p)}
    constants = {f"discriminators.{domain}.5.bias" for domain in ("source", "target")}  # of answers that are subtracted
    assert still == (constants if name == "dual_gan" else set())
    resumed = testing.build(KINDS[name], seed=9, **SMALL)
    L.seed_everything(0, verbose=False)
    again = testing.trainer(6, callbacks=[KeepRandomState()], **accumulated)
    again.fit(resumed, Images(number=96), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert testing.equal(testing.state(resumed, ""), testing.state(unbroken, ""))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"cogan"}))
def test_weights_stay_float32_and_finite_in_mixed_precision(name: str) -> None:
    model = testing.fit(testing.build(KINDS[name], **SMALL), 4, Images(), precision="bf16-mixed", log_every_n_steps=2)
    for key, value in testing.state(model, "").items():
        assert value.dtype != torch.bfloat16, key
        assert value.isfinite().all(), key


class BrightSource(Images):
    """The pictures of the source are 50 times as bright."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        return TensorDomain(50 * data.x, data.y, data.classes) if domain == self.source else data


def test_a_gan_classifier_of_the_target_does_not_read_the_source() -> None:
    target = {"train_on": "target", "read_unlabelled": "target"}
    fits = [
        testing.fit(testing.build(KINDS["gan_classifier"], **SMALL | target), 3, data())
        for data in (Images, BrightSource)
    ]
    assert testing.equal(*(testing.state(model, "") for model in fits))
    both_read = [
        testing.fit(testing.build(KINDS["gan_classifier"], **SMALL), 1, data()) for data in (Images, BrightSource)
    ]
    assert not testing.equal(*(testing.state(model, "") for model in both_read))


@pytest.mark.slow
@pytest.mark.parametrize("collapsed", [True, False])
def test_a_generator_that_ignores_its_noise_is_noticed(collapsed: bool, recwarn: pytest.WarningsRecorder) -> None:
    """With the bounds as they are: nothing is said of the same network with its noise."""
    model = testing.build(KINDS["gan_classifier"], **SMALL, optimizer=partial(torch.optim.Adam, lr=1e-3))
    if collapsed:
        make = model.made
        toy.replace(model, "made", lambda noise: make(0 * noise))
    testing.fit(model, PICTURE_STEPS + 60, Images(), log_every_n_steps=10)
    assert any("nearly the same picture" in str(warning.message) for warning in recwarn) == collapsed


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_fit_watches_what_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_da.methods.signs.PICTURE_STEPS", 0)
    monkeypatch.setattr("lightning_da.methods.signs.LEAST_SPREAD", 1e9)
    model = testing.build(KINDS[name], **SMALL)
    with pytest.warns(UserWarning, match="nearly the same picture"):
        testing.fit(model, 8, Images(), log_every_n_steps=1)
    assert "one picture" in model.signs.found


@pytest.mark.slow
def test_pictures_are_logged() -> None:
    logger = Tracker("pictures", run_name="cogan")
    drawn = [Reconstructions(every_n_epochs=1, samples=3)]
    testing.fit(testing.build(KINDS["cogan"], **SMALL), 4, Images(number=64), logger=logger, callbacks=drawn)
    found = [file.path for file in logger.experiment.list_artifacts(logger.run_id, "reconstructions")]
    assert found == [f"reconstructions/step_{step:06d}.png" for step in (2, 4)]


@pytest.mark.parametrize("name", ["cogan", "cycle_gan", "gan_classifier"])
def test_pictures_are_of_the_shape_of_the_samples(name: str) -> None:
    model = testing.build(KINDS[name], **SMALL)
    x = torch.randn(3, 1, 4, 8)
    for domain in ("source", "target"):
        found = model.reconstructions(x, domain)
        assert torch.equal(found.pop("samples"), x)
        assert found
        assert all(pictures.shape == x.shape for pictures in found.values())
