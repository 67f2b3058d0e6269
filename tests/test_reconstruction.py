"""DRCN and DSN: their terms and gradients against the definitions, and pictures of what they reconstruct."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_da.callbacks import Reconstructions
from lightning_da.callbacks.reconstructions import reconstruction_figure
from lightning_da.data.base import TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.losses.separation import difference, scale_invariant_mse
from lightning_da.methods import DRCN, DSN
from lightning_da.networks import LSTM
from lightning_da.networks.backbones import FeedForward
from lightning_da.testing import AT_ONCE, batch_of, gradients, ready, step
from lightning_da.tracking import Tracker
from tests import toy
from tests.references import centred_directions

BOTTLENECK: dict[str, Any] = {"bottleneck": partial(FeedForward, hidden=[6])}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the losses


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (1, 7), (6, 40)])
def test_the_scale_invariant_error_is_the_formula(n: int, k: int) -> None:
    found, expected = normal(n, k), normal(n, k, seed=1)
    errors = (found - expected).numpy()
    wanted = np.mean([e @ e / k - (e @ np.ones(k)) ** 2 / k**2 for e in errors])
    assert scale_invariant_mse(found, expected).item() == pytest.approx(wanted, abs=1e-12)
    moved = found + normal(n, 1, seed=2)
    assert scale_invariant_mse(moved, expected).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "p"), [(2, 1, 1), (5, 4, 4), (7, 30, 3), (40, 2, 9)])
def test_the_difference_is_the_formula(n: int, c: int, p: int) -> None:
    shared, private = normal(n, c) + 3, 2 * normal(n, p, seed=1)
    one, other = centred_directions(shared.numpy()), centred_directions(private.numpy())
    wanted = sum((one[:, i] @ other[:, j]) ** 2 for i in range(c) for j in range(p)) / (c * p)
    assert difference(shared, private).item() == pytest.approx(wanted, rel=1e-10)


def test_the_difference_is_zero_for_orthogonal_features_and_blind_to_lengths() -> None:
    basis = torch.linalg.qr(normal(8, 7) - normal(8, 7).mean(dim=0))[0]  # columns orthogonal to 1
    assert difference(basis[:, :1] * 3 + 1, basis[:, :1]).item() > 0.1
    rows = normal(6, 3)
    assert difference(5 * rows, rows / 7).item() == pytest.approx(difference(rows, rows).item(), rel=1e-9)
    ones = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    others = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    assert difference(ones, others).item() == 0


@pytest.mark.parametrize("loss", [scale_invariant_mse, difference])
def test_gradients_of_the_losses(loss: Any) -> None:
    assert torch.autograd.gradcheck(loss, (normal(6, 4).requires_grad_(), normal(6, 4, seed=1).requires_grad_()))


@pytest.mark.parametrize("loss", [scale_invariant_mse, difference])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e4])
@pytest.mark.parametrize("n", [1, 8])
def test_the_losses_stay_finite(loss: Any, scale: float, n: int) -> None:
    one, other = (scale * normal(n, 4, seed=seed).float() for seed in (0, 1))
    one.requires_grad_()
    value = loss(one, other)
    value.backward()
    assert one.grad is not None
    assert value.isfinite()
    assert one.grad.isfinite().all()


@pytest.mark.parametrize("loss", [scale_invariant_mse, difference])
def test_the_losses_are_float32_under_autocast(loss: Any) -> None:
    one, other = (normal(16, 8, seed=seed).bfloat16() for seed in (0, 1))
    expected = loss(one.float(), other.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(one, other), expected)


# ---------------------------------------------------------------- the methods


def both(model: Any) -> dict[str, Any]:
    return batch_of(model, normal(9, 8), 2 * normal(7, 8, seed=1) + 1)


def test_drcn_reconstructs_the_target_alone() -> None:
    model = ready(DRCN, **AT_ONCE)
    batch = both(model)
    seen = step(model, batch)
    x = batch["target"]
    wanted = (model.decoder(model.features(x)) - x).square().sum() / x.numel()
    assert seen.domain_loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    source, target = seen.source.layers[0], seen.target.layers[0]
    assert gradients(seen.domain_loss, [source])[0].abs().max() == 0
    assert gradients(seen.domain_loss, [target])[0].abs().max() > 0
    assert all(g.abs().max() == 0 for g in gradients(seen.domain_loss, model.head.parameters()))
    assert all(g.abs().max() > 0 for g in gradients(seen.domain_loss, model.decoder.parameters()))


@pytest.mark.parametrize(
    ("standardize", "norm"), [(False, "separate"), ("per_domain", "separate"), ("per_domain", "joint")]
)
@pytest.mark.parametrize("similarity", ["dann", "mmd"])
def test_dsn_is_the_sum_of_its_terms(similarity: str, standardize: Any, norm: str) -> None:
    given: dict[str, Any] = {
        "batch_norm": norm,
        "reconstruction_weight": 2.0,
        "difference_weight": 3.0,
        "similarity_weight": 5.0,
    }
    logged: dict[str, Any] = {}
    model = ready(DSN, logged, similarity=similarity, standardize=standardize, **BOTTLENECK, **AT_ONCE, **given)
    if standardize:
        model.standardize.std[1] = 4.0
    batch = both(model)
    seen = step(model, batch)
    terms = {"reconstruction": 0.0, "difference": 0.0}
    for domain, x in (("source", batch["source"][0]), ("target", batch["target"] / (4.0 if standardize else 1.0))):
        shared = model.bottleneck(model.backbone(x))
        private = model.private[domain](x)
        errors = (model.decoder(shared + private) - x).detach().numpy()
        terms["reconstruction"] += np.mean([e @ e / 8 - e.sum() ** 2 / 64 for e in errors])
        one, other = (centred_directions(part.detach().numpy()) for part in (shared, private))
        terms["difference"] += np.square(one.T @ other).mean()
    for name, value in terms.items():
        assert logged[f"train/{name}_loss"].item() == pytest.approx(value, rel=1e-9), name
    weighted = sum(given[f"{name}_weight"] * logged[f"train/{name}_loss"].item() for name in (*terms, "similarity"))
    assert seen.domain_loss.item() == pytest.approx(weighted, rel=1e-12)


def reached(term: str, similarity: str = "dann") -> set[str]:
    """The parts of DSN that one term sends a gradient into."""
    weights: dict[str, Any] = {
        f"{name}_weight": float(name == term) for name in ("reconstruction", "difference", "similarity")
    }
    model = ready(DSN, similarity=similarity, **BOTTLENECK, **AT_ONCE, **weights)
    loss = step(model, both(model)).domain_loss
    names, parameters = zip(*model.named_parameters(), strict=True)
    sent = zip(names, gradients(loss, parameters), strict=True)
    return {".".join(name.split(".")[: 1 + name.startswith("private")]) for name, g in sent if g.abs().max() > 0}


def test_gradients_of_dsn_go_where_they_belong() -> None:
    shared, private = {"backbone", "bottleneck"}, {"private.source", "private.target"}
    assert reached("reconstruction") == shared | private | {"decoder"}
    assert reached("difference") == shared | private
    assert reached("similarity") == shared | {"discriminators"}
    assert reached("similarity", "mmd") == shared


def test_private_encoders_begin_with_weights_of_their_own_and_have_no_part_in_predictions() -> None:
    model = toy.build("dsn", **BOTTLENECK)
    weights = [model.backbone.fc1[0].weight, *(model.private[d][0].fc1[0].weight for d in ("source", "target"))]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    x = torch.randn(5, 8)
    before = model(x)
    for part in (model.private, model.decoder, model.discriminators):
        for p in part.parameters():
            torch.nn.init.zeros_(p)
    assert torch.equal(model(x), before)


class Pretrained(FeedForward):
    """Knows whether its pretrained weights are loaded."""

    pretrained = True

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__(input_shape, [6])
        self.register_buffer("loaded", torch.tensor(False))

    def load_pretrained(self) -> None:
        self.loaded.fill_(True)  # type: ignore[operator]


def test_private_encoders_begin_with_pretrained_weights_too() -> None:
    model = toy.fit(toy.build("dsn", backbone=Pretrained), 1)
    assert model.backbone.loaded
    assert all(model.private[domain][0].loaded for domain in ("source", "target"))


def test_a_fit_reconstructs() -> None:
    """The samples of both domains, better than their mean does."""
    model = toy.build("dsn", optimizer=toy.ADAM, reconstruction_weight=1.0, standardize=True, **AT_ONCE)
    toy.fit(model, 150)
    model.eval()
    for domain, name in (("source", "calm"), ("target", "noisy")):
        found = model.reconstructions(toy.Toy().dataset(name, "test").x, domain)
        errors = {key: scale_invariant_mse(value, found["samples"]).item() for key, value in found.items()}
        assert errors["both parts"] < 0.7 * scale_invariant_mse(0 * found["samples"], found["samples"]).item()
        assert errors["both parts"] < min(errors["shared part"], errors["private part"])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (DSN, {"difference_weight": -1.0}, "difference_weight: -1"),
        (DRCN, {"backbone": partial(LSTM, words=4, width=3, hidden=5), "input_shape": (4,)}, "numbers, not words"),
    ],
)
def test_arguments_are_checked(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**toy.NETWORK | arguments)


# ---------------------------------------------------------------- pictures


class Images(toy.Toy):
    """The values of `Toy` as pixels, four times."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        return TensorDomain(data.x.repeat(1, 4).view(-1, 1, 4, 8), data.y, data.classes)


def fitted(kind: str, data: toy.Toy, **kwargs: Any) -> Any:
    backbone = partial(FeedForward, hidden=[8], dropout=0.3, batch_norm=True)
    model = toy.build(kind, input_shape=data.input_shape, backbone=backbone)
    return toy.fit(model, 20, data, **kwargs)


def pictures(logger: Tracker) -> list[str]:
    return [file.path for file in logger.experiment.list_artifacts(logger.run_id, "reconstructions")]


@pytest.mark.parametrize("kind", ["drcn", "dsn"])
def test_pictures_of_images_are_logged_and_leave_the_fit_as_it_is(kind: str) -> None:
    logger = Tracker("pictures", run_name=kind)
    drawn = fitted(kind, Images(), logger=logger, callbacks=[Reconstructions(every_n_epochs=1, samples=3)])
    plain = fitted(kind, Images())
    assert toy.equal(toy.state(drawn, ""), toy.state(plain, ""))
    assert pictures(logger) == [f"reconstructions/step_{step:06d}.png" for step in (10, 20)]
    assert drawn.training == plain.training


def test_vectors_and_other_methods_have_no_picture() -> None:
    for kind, data in (("drcn", toy.Toy()), ("source_only", Images())):
        logger = Tracker("pictures", run_name=kind)
        fitted(kind, data, logger=logger, callbacks=[Reconstructions()])
        assert pictures(logger) == []


def test_a_picture_has_a_row_of_images_for_each_part() -> None:
    rng = np.random.default_rng(0)
    read, made = rng.uniform(2, 6, (3, 4, 5, 1)), rng.uniform(0, 9, (3, 4, 5, 1))
    figure = reconstruction_figure({"one": {"samples": read, "reconstructed": made}, "two": {"samples": read[:2]}})
    rows = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [axes.get_ylabel() for axes in figure.axes] == ["one\nsamples", "one\nreconstructed", "two\nsamples"]
    assert [row.shape for row in rows] == [(4, 15), (4, 15), (4, 10)]
    low, high = read.min(), read.max()
    np.testing.assert_allclose(rows[0][:, 5:10], (read[1, ..., 0] - low) / (high - low))
    np.testing.assert_allclose(rows[1][:, 10:], ((made[2, ..., 0] - low) / (high - low)).clip(0, 1))
