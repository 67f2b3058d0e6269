"""Few labels and many samples: an autoencoder, pseudo-labels, self-taught learning, and features without labels."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, sparse_encode

from lightning_da import testing
from lightning_da.data import FeatureTables
from lightning_da.data.base import DataError, DomainPairDataModule, Roles, TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.methods import Autoencoder, Clusters, FineTune, PseudoLabels, SelfTaught
from lightning_da.networks import LSTM, PrincipalComponents, Raw, SparseCoding
from lightning_da.networks.backbones import FeedForward
from lightning_da.schedules import constant
from lightning_da.testing import compare_processes, two_processes
from tests import toy
from tests.toy import accuracy, equal, fit, state, trainer

NETWORK = partial(FeedForward, hidden=[16], batch_norm=True, dropout=0.2)


class Blobs(DomainPairDataModule):
    """Vectors around centres in a plane of 20 values; the target has the classes c and d, the source a and b.

    Args:
        same: Whether the target has the classes of the source instead.
        noise: Deviation outside of the plane.
        **kwargs: Arguments of `DomainPairDataModule`.
    """

    def __init__(self, same: bool = False, noise: float = 0.7, **kwargs: Any) -> None:
        super().__init__("one", "two", 32, **{"target_labels": "2/class"} | kwargs)
        self.same, self.noise = same, noise

    def dataset(self, domain: str, split: str) -> TensorDomain:
        rng = np.random.default_rng([["train", "val", "test"].index(split), domain == "one"])
        plane = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 2)))[0].T
        y = rng.integers(2, size=160)
        jitter = rng.uniform(-np.pi / 2, np.pi / 2, 160) if domain == "one" else 0
        angle = np.pi * y + (0 if domain == "one" or self.same else np.pi / 2) + jitter
        points = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(0, 0.7, (160, 2))
        x = points @ plane + rng.normal(0, self.noise, (160, 20))
        names = ["a", "b"] if domain == "one" or self.same else ["c", "d"]
        return TensorDomain(torch.from_numpy(x).float(), torch.from_numpy(y), names)


def half(_progress: float) -> float:
    return 0.5


def build(kind: Any, seed: int = 0, classes: int = 2, **kwargs: Any) -> Any:
    L.seed_everything(seed, verbose=False)
    given: dict[str, Any] = {
        "num_classes": classes,
        "input_shape": (20,),
        "backbone": NETWORK,
        "optimizer": partial(torch.optim.Adam, lr=0.01),
    }
    if kind is not SelfTaught:
        given["train_on"] = "target"
    return kind(**given | kwargs)


# ---------------------------------------------------------------- semi-supervised


@pytest.mark.parametrize("kind", [Autoencoder, Clusters, PseudoLabels])
@pytest.mark.parametrize("labels", ["2/class", None])
def test_weight_zero_is_the_supervised_method_bit_by_bit(kind: Any, labels: str | None) -> None:
    data: dict[str, Any] = {"same": True, "target_labels": labels}
    plain = state(fit(build(FineTune), 8, Blobs(**data)))
    without = state(fit(build(kind, unlabelled_weight=0.0), 8, Blobs(**data)))
    weighted = state(
        fit(build(kind, unlabelled_weight=1.0, unlabelled_schedule=constant, **sure(kind)), 8, Blobs(**data))
    )
    assert equal(plain, {name: without[name] for name in plain})
    assert not equal(plain, {name: weighted[name] for name in plain})


def sure(kind: Any) -> dict[str, Any]:
    return {"threshold": 0.5} if kind is PseudoLabels else {}


@pytest.mark.parametrize("kind", [Autoencoder, Clusters, PseudoLabels])
def test_labels_that_are_not_drawn_are_not_read(kind: Any) -> None:
    """The other labels of the target may be anything."""

    class Wrong(Blobs):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            if (domain, split) == ("two", "train"):
                kept = Blobs(same=True)._rows("target")
                y = 1 - data.y
                y[kept] = data.y[kept]
                data.y = y
            return data

        def _rows(self, role: str) -> torch.Tensor:
            return Blobs(same=True)._rows(role)

    given = {"unlabelled_schedule": constant, **sure(kind)}
    found = [state(fit(build(kind, **given), 6, data)) for data in (Blobs(same=True), Wrong(same=True))]
    assert equal(*found)


def test_the_reconstruction_loss_and_its_gradient_are_the_definition() -> None:
    model = build(Autoencoder, backbone=partial(FeedForward, hidden=[5]), decoder=(7,))
    x = torch.randn(6, 20)
    (first, _), (second, _), last = model.backbone.fc1, model.decoder[0].fc1, model.decoder[1]

    def linear(layer: Any, z: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = z @ layer.weight.double().T + layer.bias.double()
        return found

    expected = (linear(last, linear(second, linear(first, x.double()).relu()).relu()) - x.double()).square().mean()
    found = model.unlabelled_loss(x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    pair = [torch.autograd.grad(loss, first.weight)[0] for loss in (found, expected)]
    assert torch.allclose(pair[0], pair[1], atol=1e-6)
    assert pair[0].abs().sum() > 0


@pytest.mark.parametrize("kind", [Autoencoder, PseudoLabels])
def test_the_weight_follows_its_schedule(kind: Any) -> None:
    def fitted(weight: float, schedule: Any) -> Any:
        model = build(kind, unlabelled_weight=weight, unlabelled_schedule=schedule, **sure(kind))
        return state(fit(model, 4, Blobs(same=True)))

    assert equal(fitted(2.0, half), fitted(1.0, constant))
    assert not equal(fitted(2.0, half), fitted(2.0, constant))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Autoencoder, Clusters, PseudoLabels])
def test_two_processes_make_the_step_of_one(kind: Any) -> None:
    arguments: Any = {"threshold": 0.35} if kind is PseudoLabels else {}
    compare_processes(*two_processes(kind, unlabelled_schedule=constant, **arguments))


@pytest.mark.slow
def test_two_processes_make_the_fit_of_one() -> None:
    toy.check_two_processes(
        lambda: testing.build(Clusters, optimizer=toy.SGD), lambda size: toy.Toy(batch_size=size), 6
    )


def test_a_probability_at_the_threshold_is_certain() -> None:
    model = build(PseudoLabels, threshold=0.5)
    model.log = lambda *_args: None
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    assert model.unlabelled_loss(torch.randn(6, 20)).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_the_loss_of_pseudo_labels_and_its_gradient_are_the_definition(threshold: float) -> None:
    model = build(PseudoLabels, backbone=partial(FeedForward, hidden=[5]), threshold=threshold)
    model.log = lambda *_args: None
    x = 3 * torch.randn(12, 20)
    p = model(x).double().softmax(dim=1)
    certain = p.detach().max(dim=1).values >= threshold
    expected = -(p.max(dim=1).values.log() * certain).sum() / 12
    found = model.unlabelled_loss(x)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    assert certain.sum() == {0.0: 12, 1.0: 0}.get(threshold, certain.sum())
    assert 0 < certain.sum() < 12 or threshold != 0.6
    pair = [torch.autograd.grad(loss, model.backbone.fc1[0].weight)[0] for loss in (found, expected)]
    assert torch.allclose(pair[0], pair[1], atol=1e-6)


@pytest.mark.parametrize("domains", ["target", "both"])
@pytest.mark.parametrize("standardize", [False, "per_domain"])
def test_clusters_are_those_of_the_samples_as_they_are_read(domains: Any, standardize: Any) -> None:
    """Two groups in the target, and the loss and its gradient against the definition."""
    data = Blobs(same=True)
    backbone = partial(FeedForward, hidden=[5])
    model = build(Clusters, backbone=backbone, per_class=1, read_unlabelled=domains, standardize=standardize)
    model.log = lambda *_args: None
    model.fit_inputs(data)
    x, y = torch.cat(list(data.training_samples(("target",)))), data.dataset("two", "train").y
    agree = (model.clusters(x) == y).float().mean()
    assert max(agree, 1 - agree) > 0.95
    if domains == "target":
        z = model.standardize(x)
        wanted = torch.stack([z[model.clusters(x) == group].mean(dim=0) for group in range(2)])
        torch.testing.assert_close(model.centroids, wanted, rtol=1e-3, atol=1e-3)
    squares = (model.standardize(x)[:, None] - model.centroids).square().sum(dim=2)
    log_p = model.cluster_head(model.features(x)).double().log_softmax(dim=1)
    expected = -log_p[torch.arange(len(x)), squares.argmin(dim=1)].mean()
    found = model.unlabelled_loss(x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    pair = [torch.autograd.grad(loss, model.backbone.fc1[0].weight)[0] for loss in (found, expected)]
    assert torch.allclose(pair[0], pair[1], atol=1e-6)
    assert pair[0].abs().sum() > 0


def test_clusters_are_kept_in_the_checkpoint(tmp_path: Path) -> None:
    model = fit(build(Clusters), 4, Blobs(same=True))
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = build(Clusters, 9)
    trainer().test(other, Blobs(same=True), ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)
    assert torch.equal(other.centroids, model.centroids)
    assert model.centroids.any()


def test_more_clusters_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="per_class: 162 clusters are more than the 160 training samples"):
        fit(build(Clusters, per_class=81), 1, Blobs(same=True))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "arguments"), [(PseudoLabels, {"threshold": 0.8}), (Clusters, {"per_class": 1})])
def test_samples_without_a_label_help(kind: Any, arguments: dict[str, Any]) -> None:
    """Mean accuracy over three seeds, two labels a class."""

    def mean(of: Any, **kwargs: Any) -> float:
        given = {"backbone": partial(FeedForward, hidden=[16]), **kwargs}
        models = [fit(build(of, seed, **given), 100, Blobs(same=True, noise=2.0)) for seed in range(3)]
        return float(np.mean([accuracy(model, Blobs(same=True, noise=2.0))["test/target/acc"] for model in models]))

    assert mean(kind, **arguments) > mean(FineTune) + 0.02


def test_pseudo_labels_take_the_source_as_labelled_and_the_target_without_a_label() -> None:
    model = build(PseudoLabels, train_on="source")
    roles = Roles.of(model, 1)
    assert (roles.supervised, roles.unlabelled) == (("source",), ("target",))
    data = Blobs(same=True, target_labels=None)
    assert accuracy(fit(model, 60, data), data)["test/target/acc"] > 0.9


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (PseudoLabels, {"threshold": 1.5}, "threshold: 1.5"),
        (Autoencoder, {"unlabelled_weight": -1.0}, "unlabelled_weight: -1"),
        (
            Autoencoder,
            {"backbone": partial(LSTM, words=4, width=3, hidden=5), "input_shape": (4,)},
            "computes numbers, not words",
        ),
        (Clusters, {"per_class": 0}, "per_class: 0"),
        (
            Clusters,
            {"backbone": partial(LSTM, words=4, width=3, hidden=5), "input_shape": (4,)},
            "k-means reads numbers, not words",
        ),
    ],
)
def test_arguments_are_checked(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, **arguments)


# ---------------------------------------------------------------- self-taught


def test_labels_train_the_head_alone_and_the_source_the_features() -> None:
    """The backbone is that of an autoencoder of the source, whatever the labels of the target are."""

    class Swapped(Blobs):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            return TensorDomain(data.x, data.y if domain == "one" else 1 - data.y, data.classes)

    plain = partial(FeedForward, hidden=[16])
    one, other = (fit(build(SelfTaught, classes=4, backbone=plain), 10, data()) for data in (Blobs, Swapped))
    before = build(SelfTaught, classes=4, backbone=plain)
    assert equal(state(one, ("backbone.", "decoder.")), state(other, ("backbone.", "decoder.")))
    assert not equal(state(one, ("head.",)), state(other, ("head.",)))
    for name, p in before.named_parameters():
        assert not torch.equal(p, one.get_parameter(name).cpu()), name


@pytest.mark.slow
def test_components_of_other_classes_help() -> None:
    """Beside the values as they are, three seeds; the target chooses among its own classes."""

    def found(of: Any) -> float:
        models = [fit(build(SelfTaught, seed, 4, backbone=of), 150, Blobs(noise=2.0)) for seed in range(3)]
        assert all(model.own.tolist() == [[True, True, False, False], [False, False, True, True]] for model in models)
        return float(np.mean([accuracy(model, Blobs(noise=2.0))["test/target/acc"] for model in models]))

    assert found(partial(PrincipalComponents, components=2)) > found(Raw) + 0.03


@pytest.mark.parametrize("backbone", [NETWORK, partial(SparseCoding, components=8)])
def test_a_backbone_without_weights_needs_no_autoencoder(backbone: Any) -> None:
    model = build(SelfTaught, classes=4, backbone=backbone)
    roles = Roles.of(model, 1)
    assert roles.supervised == ("target",)
    assert roles.unlabelled == (("source",) if backbone is NETWORK else ())
    assert hasattr(model, "decoder") == (backbone is NETWORK)


def test_the_source_of_a_file_needs_no_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.normal(size=(90, 20)))
    np.savez(tmp_path / "b.npz", x=rng.normal(size=(90, 20)), y=np.arange(90) % 2)
    data = FeatureTables("a.npz", "b.npz", 32, root=str(tmp_path), target_labels=10)
    assert fit(build(SelfTaught), 2, data).own.tolist() == [[False, False], [True, True]]
    with pytest.raises(DataError, match="the source needs labels"):
        fit(build(FineTune, train_on="source"), 0, FeatureTables("a.npz", "b.npz", 32, root=str(tmp_path)))


# ---------------------------------------------------------------- features without labels


def fitted(network: Any, x: torch.Tensor) -> Any:
    network.fit(lambda role: iter(x.split(17)) if role == "source" else pytest.fail(role))
    return network


def test_sparse_codes_are_those_of_scikit_learn() -> None:
    x = 2 * torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    network = fitted(SparseCoding((3, 4), components=9, penalty=0.8, steps=400), x.view(60, 3, 4))
    rows = network.components.double().numpy()
    assert (np.linalg.norm(rows, axis=1) <= 1 + 1e-6).all()
    centred = (x - x.mean(dim=0)).double().numpy()
    expected = sparse_encode(centred, rows, algorithm="lasso_cd", alpha=0.8, max_iter=5000)
    found = network(x.view(60, 3, 4)).numpy()
    assert np.abs(found - expected).max() < 1e-3
    assert 0.05 < (found == 0).mean() < 0.95


def test_the_dictionary_is_learnt() -> None:
    """Samples of two rows each: their codes reconstruct them better than with random rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(10, 16, generator=generator), dim=1)
    weights = torch.zeros(400, 10).scatter(1, torch.rand(400, 10, generator=generator).argsort(dim=1)[:, :2], 4.0)
    x = weights @ rows
    network = fitted(SparseCoding((16,), components=10, penalty=0.5), x)

    def error() -> float:
        return float((network(x) @ network.components + network.mean - x).square().mean())

    learnt = error()
    network.components.copy_(torch.nn.functional.normalize(torch.randn(10, 16, generator=generator), dim=1))
    network.lipschitz.copy_(torch.linalg.matrix_norm(network.components, 2) ** 2)
    assert learnt < error() / 2


def test_principal_components_are_those_of_scikit_learn() -> None:
    x = torch.randn(50, 6) @ torch.randn(6, 6)
    found = fitted(PrincipalComponents((6,), components=3), x)(x)
    expected = torch.from_numpy(PCA(3).fit_transform(x.double().numpy()))
    assert torch.allclose(found.double().abs(), expected.abs(), atol=1e-4)
    with pytest.raises(ConfigError, match="components: 7 are more than 6"):
        fitted(PrincipalComponents((6,), components=7), x)


def test_values_as_they_are() -> None:
    x = torch.randn(3, 2, 4)
    assert torch.equal(Raw((2, 4))(x), x.flatten(1))


def test_features_are_fitted_to_what_the_network_reads() -> None:
    """With standardised inputs, to these."""
    model = fit(
        build(SelfTaught, classes=4, backbone=partial(PrincipalComponents, components=3), standardize=True), 0, Blobs()
    )
    x = torch.cat(list(Blobs().training_samples(("source",))))
    assert torch.allclose(model.backbone.mean, model.standardize(x).mean(dim=0), atol=1e-5)
