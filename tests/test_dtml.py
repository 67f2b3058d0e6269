"""Metric learning: scatters, verification, identities that are disjoint in the splits, and the methods of DTML."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.miners import BatchEasyHardMiner
from torch import Tensor, nn

from lightning_da import errors, testing
from lightning_da.data import Identities
from lightning_da.data.base import UNKNOWN, DataError, Roles, TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.losses.scatter import MarginalFisher, scatters
from lightning_da.methods import DTML
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.verification import Verification, curves_of, fold_accuracies
from lightning_da.networks import FeedForward, LeNet, TimmBackbone
from lightning_da.testing import METHOD_CHECKS

DEEP = partial(DTML, layers=("fc1", "bottleneck"))
TANH = partial(FeedForward, hidden=[16, 8], activation="tanh")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- scatters


def naive(x: Tensor, y: Tensor, k: int, same: bool) -> Tensor:
    whole = torch.zeros((), dtype=x.dtype)
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and bool(y[j] == y[i]) is same]
        for j in sorted(others, key=lambda j: (x[i] - x[j]).square().sum().item())[:k]:
            whole = whole + (x[i] - x[j]).square().sum()
    return whole / (len(x) * k)


@pytest.mark.parametrize(("within", "between"), [(1, 1), (2, 5), (5, 10), (20, 40)])
def test_scatters_are_those_of_a_double_loop(within: int, between: int) -> None:
    x, y = normal(17, 4).requires_grad_(), torch.arange(17) % 5
    for found, k, same in zip(scatters(x, y, within, between), (within, between), (True, False), strict=True):
        expected = naive(x, y, k, same)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(loss, x, retain_graph=True) for loss in (found, expected)))


def test_one_neighbour_is_the_pair_that_the_miner_finds() -> None:
    x, y = normal(16, 3), torch.arange(16) // 4
    distance = LpDistance(normalize_embeddings=False)
    a1, p, a2, n = BatchEasyHardMiner("easy", "hard", distance=distance)(x, y)
    compact, apart = scatters(x, y, 1, 1)
    torch.testing.assert_close(compact, (x[a1] - x[p]).square().sum(dim=1).mean())
    torch.testing.assert_close(apart, (x[a2] - x[n]).square().sum(dim=1).mean())
    torch.testing.assert_close(MarginalFisher(0.3, 1, 1)(x, y), compact - 0.3 * apart)


def test_a_miner_chooses_the_pairs_of_the_loss() -> None:
    distance = LpDistance(normalize_embeddings=False)
    loss, miner = ContrastiveLoss(0, 1, distance=distance), BatchEasyHardMiner("easy", "hard", distance=distance)
    given: dict[str, Any] = {"num_classes": 4, "input_shape": (6,), "backbone": testing.NETWORK["backbone"]}
    x, y = normal(16, 3).double(), torch.arange(16) // 4
    batch = DomainBatch([x], x, y)
    (mined,) = DTML(loss, miner, **given).metric_losses(batch)
    (plain,) = DTML(loss, **given).metric_losses(batch)
    torch.testing.assert_close(mined, loss(x, y, miner(x, y)))
    assert not torch.equal(mined, plain)
    with pytest.raises(ConfigError, match="miner: it chooses pairs for a loss of pytorch-metric-learning"):
        DTML(miner=miner, **given)


@pytest.mark.parametrize("y", [torch.zeros(6), torch.arange(6), torch.zeros(0)])
def test_scatters_without_neighbours_are_zero(y: Tensor) -> None:
    x = torch.ones(len(y), 2, requires_grad=True)
    loss = MarginalFisher()(x, y.long())
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_scatters_compute_in_full_precision() -> None:
    x, y = 100 + normal(12, 4).bfloat16(), torch.arange(12) % 3
    for found, expected in zip(scatters(x, y, 2, 2), scatters(x.float(), y, 2, 2), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


# ---------------------------------------------------------------- the method


@pytest.mark.parametrize("method", [DTML, DEEP])
@pytest.mark.parametrize("name", ["gradient", "weight", "order", "collapsed", "precision", "checkpoint", "labels"])
def test_holds(name: str, method: Any) -> None:
    METHOD_CHECKS[name](method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [DTML, DEEP])
@pytest.mark.parametrize("name", ["null", "processes"])
def test_holds_in_many_samples_and_in_two_processes(name: str, method: Any) -> None:
    METHOD_CHECKS[name](method)


@pytest.mark.parametrize("layers", [("bottleneck",), ("fc1", "bottleneck")])
@pytest.mark.parametrize("threshold", [-1e6, 0.05, None, 1e6])
def test_the_step_is_the_objective_of_the_paper(layers: tuple[str, ...], threshold: float | None) -> None:
    """Its gradient is that of J_top + w sum_m max(J_m - tau, 0), written down from the layers of a plain network.

    Without a threshold it is just below J_m, so that the hinge is open with the domain term alone.
    """
    model = testing.ready(
        DTML, layers=layers, hidden_weight=0.7, hidden_threshold=threshold or 0.0, domain_weight=3.0, backbone=TANH,
        **testing.AT_ONCE,
    )  # fmt: skip
    source, target = normal(18, 8, seed=1), 2 * normal(14, 8, seed=2) + 1
    y = torch.arange(18) % 3

    def objective(name: str) -> Tensor:
        def output(x: Tensor) -> Tensor:
            x = model.backbone.fc1(x)
            return x if name == "fc1" else model.backbone.fc2(x)

        s, t = output(source), output(target)
        compact, apart = naive(s, y, 5, True), naive(s, y, 10, False)
        return compact - 0.1 * apart + 3 * (s.mean(dim=0) - t.mean(dim=0)).square().sum()

    if threshold is None:
        threshold = objective("fc1").item() - 1e-3
        model._hidden = (0.7, threshold)
    expected = objective("bottleneck")
    for name in layers[:-1]:
        expected = expected + 0.7 * torch.relu(objective(name) - threshold)
    seen = testing.step(model, testing.batch_of(model, source, target, y))
    parameters = list(model.backbone.parameters())
    for found, wanted in zip(
        testing.gradients(seen.loss, parameters), testing.gradients(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_closed_hinge_leaves_the_top_alone_and_an_open_one_reaches_the_hidden_layer_twice() -> None:
    def gradient(**kwargs: Any) -> Tensor:
        model = testing.ready(DTML, domain_weight=1.0, backbone=TANH, **testing.AT_ONCE, **kwargs)
        seen = testing.step(model, testing.batch_of(model, normal(18, 8, seed=1), normal(14, 8, seed=2) + 1))
        return testing.gradients(seen.loss, [model.backbone.fc1[0].weight])[0]

    top = gradient(layers=("bottleneck",))
    assert torch.equal(gradient(layers=("fc1", "bottleneck"), hidden_threshold=1e6), top)
    assert not torch.allclose(gradient(layers=("fc1", "bottleneck"), hidden_threshold=-1e6), top)


def test_weight_zero_is_the_method_without_a_domain_term_bit_by_bit() -> None:
    class Without(DTML):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
            x, y = batch["source"]
            return self.loss(self(x), y)  # type: ignore[no-any-return]

    without, with_none, some = (
        testing.state(testing.fit(testing.build(method, backbone=TANH, domain_weight=weight), 12))
        for method, weight in ((Without, 1.0), (DTML, 0.0), (DTML, 0.1))
    )
    assert testing.equal(without, with_none)
    assert not testing.equal(without, some)


def test_ddml_is_the_hinge_of_each_pair() -> None:
    loss = ContrastiveLoss(49.0, 51.0, distance=LpDistance(normalize_embeddings=False, power=2))
    x, y = 3 * normal(12, 6), torch.arange(12) % 4
    terms: dict[bool, list[float]] = {True: [], False: []}
    for i, j in itertools.permutations(range(12), 2):
        same = bool(y[i] == y[j])
        d2 = float((x[i] - x[j]).square().sum())
        terms[same].append(max(0.0, 1 - (1 if same else -1) * (50 - d2)))
    expected = sum(sum(part) / max(sum(value > 0 for value in part), 1) for part in terms.values())
    assert loss(x, y).item() == pytest.approx(expected)
    model = testing.ready(DTML, loss=loss, domain_weight=0.0, backbone=TANH)
    seen = testing.step(model, testing.batch_of(model, normal(12, 8), normal(12, 8, seed=1)))
    assert all(gradient.any() for gradient in testing.gradients(seen.loss, model.backbone.parameters()))


def test_samples_of_unknown_identity_are_left_out() -> None:
    model = testing.ready(DTML, domain_weight=0.0, backbone=TANH)
    x, y = normal(12, 8), torch.arange(12) % 3
    more = torch.cat([x, normal(5, 8, seed=3)]), torch.cat([y, torch.full((5,), UNKNOWN)])
    known, with_unknown = (
        testing.gradients(testing.step(model, testing.batch_of(model, *part)).loss, model.backbone.parameters())
        for part in ((x, x, y), (more[0], x, more[1]))
    )
    torch.testing.assert_close(with_unknown, known)


def test_every_parameter_of_a_convolutional_network_is_trained() -> None:
    """A network of images needs no change; there is no head that distributed training would miss."""
    model = testing.ready(DTML, input_shape=(1, 16, 16), backbone=LeNet, domain_weight=1.0)
    loss = testing.step(model, testing.batch_of(model, normal(9, 1, 16, 16), normal(8, 1, 16, 16))).loss
    assert all(gradient.any() for gradient in testing.gradients(loss, model.parameters()))
    assert not list(model.head.parameters())


def test_orthogonal_layers_keep_distances() -> None:
    network = FeedForward((6,), [9], orthogonal=True).double()
    x = normal(7, 6)
    turned = network.get_submodule("fc1.0")(x)
    torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(x, x))


# ---------------------------------------------------------------- verification


def folds_by_loop(d: Any, y: Any) -> list[float]:
    """Each threshold between two distances is tried; identities are 0, 1, ..., each with two samples or more."""
    number = min(10, len(set(y)))
    pairs = [
        (d[i, j], y[i] == y[j], (y[i] if y[i] == y[j] else y[i] + y[j]) % number)
        for i, j in itertools.combinations(range(len(y)), 2)
    ]

    def accuracy(threshold: float, kept: list[Any]) -> float:
        right = {same: [(x <= threshold) == same for x, s, _ in kept if s == same] for same in (True, False)}
        return float(sum(sum(part) / len(part) for part in right.values()) / 2)

    found = []
    for fold in range(number):
        train, held = [p for p in pairs if p[2] != fold], [p for p in pairs if p[2] == fold]
        best = max(sorted({x for x, _, _ in pairs}), key=lambda t: accuracy(t, train))
        found.append(accuracy(best, held))
    return found


@pytest.mark.parametrize("identities", [3, 4])
def test_fold_accuracies_are_those_of_a_loop(identities: int) -> None:
    y = np.arange(3 * identities) % identities
    x = normal(len(y), 2) + 0.8 * normal(identities, 2, seed=1)[y]
    d = torch.cdist(x, x).numpy().round(1)  # with ties
    assert fold_accuracies(d, y).tolist() == pytest.approx(folds_by_loop(d, y))


def verified(x: Tensor, y: Tensor) -> dict[str, float]:
    metric = Verification()
    for part in range(0, len(x), 7):
        metric.update(x[part : part + 7], y[part : part + 7])
    return {key: float(value) for key, value in metric.compute().items()}


def test_scores_at_the_ends() -> None:
    y = torch.arange(60) % 12
    apart = verified(torch.nn.functional.one_hot(y).double() + 0.01 * normal(60, 12), y)
    for key in ("auc", "rank_1", "rank_10", "map_at_r"):
        assert apart[key] == 1
    assert apart["acc"] > 0.98  # the widest pair of an identity may be in the fold that is held out
    chance = verified(normal(60, 12), y)
    assert chance["acc"] == pytest.approx(0.5, abs=0.1)
    assert chance["auc"] == pytest.approx(0.5, abs=0.1)
    assert chance["rank_1"] < chance["rank_5"] < chance["rank_10"] < 1


def test_scores_do_not_depend_on_the_order_of_samples() -> None:
    y = torch.arange(40) % 9
    x = normal(40, 3) + normal(9, 3, seed=1)[y]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert verified(x[order], y[order]) == pytest.approx(verified(x, y))


def test_rank_one_is_that_of_the_nearest_neighbour() -> None:
    y = torch.arange(30) % 7
    x = normal(30, 3) + normal(7, 3, seed=1)[y]
    d = torch.cdist(x, x).fill_diagonal_(torch.inf)
    cmc = curves_of(torch.cdist(x, x).numpy(), y.numpy()).cmc
    assert cmc[0] == pytest.approx((y[d.argmin(dim=1)] == y).double().mean().item())
    nearest = d.argsort(dim=1)[:, :4]
    assert cmc[3] == pytest.approx((y[nearest] == y[:, None]).any(dim=1).double().mean().item())
    assert cmc[-1] == 1


def test_unknown_identities_are_not_counted() -> None:
    y = torch.arange(40) % 9
    x = normal(40, 3) + normal(9, 3, seed=1)[y]
    more = torch.cat([x, normal(9, 3, seed=5)]), torch.cat([y, torch.full((9,), UNKNOWN)])
    assert verified(*more) == pytest.approx(verified(x, y))
    assert verified(x, torch.full((40,), UNKNOWN)) == {}


# ---------------------------------------------------------------- the data


@pytest.fixture(scope="module")
def faces() -> Identities:
    return Identities("indoors", "outdoors", batch_size=32)


def test_data_hold_the_properties(faces: Identities) -> None:
    testing.check_data(faces, skip=("read",))
    faces.check(Roles(tasks_differ=True))


def test_identities_of_other_splits_are_not_warned_of(faces: Identities, recwarn: pytest.WarningsRecorder) -> None:
    faces.check(Roles(tasks_differ=True))
    assert not [w for w in recwarn if "no sample of class" in str(w.message)]


def test_identities_are_disjoint(faces: Identities) -> None:
    for domain in ("indoors", "outdoors"):
        known = [set(faces.dataset(domain, split).y.tolist()) for split in ("train", "val", "test")]
        assert [len(part) for part in known] == [24, 12, 24]
        assert len(set.union(*known)) == 60


def test_a_batch_has_several_samples_of_each_identity_and_the_same_ones_again(faces: Identities) -> None:
    y = faces.dataset("indoors", "train").y
    order = faces.reading_order(y, 3)
    assert sorted(order.shape) == [len(y)]
    groups = y[order].unflatten(0, (-1, 4))
    assert (groups == groups[:, :1]).all()
    assert groups[:24, 0].unique().numel() == 24  # each identity once, before one comes again
    assert torch.equal(order, faces.reading_order(y, 3))
    assert not torch.equal(order, faces.reading_order(y, 4))
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    faces.reading_order(y, 5)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


def test_the_labels_of_the_target_do_not_order_its_batches(faces: Identities) -> None:
    faces_of = [batch for batch, _, _ in faces.train_dataloader()]
    assert all(isinstance(batch["target"], Tensor) for batch in faces_of)
    unlabelled = faces.reading_order(torch.full((480,), UNKNOWN), 0)
    assert sorted(unlabelled.tolist()) == list(range(480))


def test_predefined_splits_must_not_share_an_identity(tmp_path: Path) -> None:
    y = np.repeat(np.arange(8), 3)
    train, test, x = y < 5, y >= 4, np.ones((24, 2))
    np.savez(tmp_path / "one.npz", x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
    with pytest.raises(DataError, match=r"identity 4.* 'train' and in another"):
        Identities("one.npz", "one.npz", root=str(tmp_path)).dataset("one.npz", "train")


def test_identities_of_both_domains_are_warned_of(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(0)
    for name, first in (("one", 0), ("two", 20), ("three", 49)):
        persons = [f"p{first + number // 4}" for number in range(120)]
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(120, 3)), y=persons)
    for target, shared in (("three", False), ("two", True)):
        Identities("one.npz", f"{target}.npz", root=str(tmp_path), batch_size=8).check(Roles(tasks_differ=True))
        said = [str(w.message) for w in recwarn if "identities with the same names" in str(w.message)]
        assert bool(said) == shared
    assert "'one.npz' and 'two.npz' both have 10 identities with the same names, 'p20'" in said[0]


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"30 is no multiple of data\.samples_per_identity, 4"):
        Identities("indoors", "outdoors", batch_size=30)
    with pytest.raises(DataError, match="set it to split"):
        Identities("indoors", "outdoors", protocol="all")
    np.savez(tmp_path / "few.npz", x=np.zeros((10, 2)), y=np.arange(10) // 2)
    with pytest.raises(DataError, match=r"split has \d identities with two samples or more; it needs 3"):
        Identities("few.npz", "few.npz", root=str(tmp_path)).dataset("few.npz", "val")


def test_without_the_package_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda _: None)
    for make in (lambda: Identities("indoors", "outdoors"), lambda: testing.build(DTML)):
        with pytest.raises(ConfigError, match=r"pip install 'pytorch-metric-learning.*extra \[metric\]"):
            make()


# ---------------------------------------------------------------- transfer


class Shifted(testing.Toy):
    """The classes of the target are others, and in most of its samples a part of the input is moved, and of no use."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        rng = np.random.default_rng([["train", "val", "test"].index(split), len(domain)])
        y = rng.integers(12, size=240)
        x = np.random.default_rng(len(domain)).normal(size=(12, 8))[y] + rng.normal(0, 0.4, (240, 8))
        if domain == "noisy":
            x[:, 4:] = 3 * (rng.random((240, 4)) < 0.7)
        return TensorDomain(torch.from_numpy(x).float(), torch.from_numpy(y), [str(i) for i in range(12)])


@pytest.mark.slow
def test_the_domain_loss_helps_where_a_part_of_the_input_moves() -> None:
    found = {}
    for weight in (0.0, 5.0):
        values = []
        for seed in range(2):
            model = testing.build(
                DTML, seed, num_classes=12, backbone=TANH, optimizer=testing.ADAM, domain_weight=weight,
                loss=MarginalFisher(0.1, 2, 10), **testing.AT_ONCE,
            )  # fmt: skip
            values.append(testing.accuracy(testing.fit(model, 60, Shifted()), Shifted())["test/target/acc"])
        found[weight] = sum(values) / 2
    assert found[5.0] > found[0.0] + 0.03


def crops(path: Path, people: range, blue: float, seed: int) -> None:
    """Pictures of persons from one camera: coat and trousers before any background, and the tint of the camera."""
    rng = np.random.default_rng(seed)
    y = np.repeat(people, 8)
    clothes = np.random.default_rng(99).uniform(0, 255, size=(200, 2, 3))[y]
    x = rng.uniform(50, 200, size=(len(y), 1, 1, 3)) + rng.normal(0, 40, size=(len(y), 32, 16, 3))
    x[:, 6:26, 5:11] = np.repeat(clothes, 10, axis=1)[:, :, None] * rng.uniform(0.7, 1, size=(len(y), 1, 1, 1))
    x[..., 2] += blue
    np.savez(path, x=x.clip(0, 255).astype(np.uint8), y=y)


def test_a_network_of_images_learns_re_identification_without_a_change(tmp_path: Path) -> None:
    """Rank 1 for new persons before the camera that has no labels, from a ResNet of timm."""
    crops(tmp_path / "street.npz", range(60), 0, seed=1)
    crops(tmp_path / "station.npz", range(60, 120), 60, seed=2)
    data = Identities("street.npz", "station.npz", root=str(tmp_path), batch_size=32)
    L.seed_everything(0, verbose=False)
    model = DTML(
        num_classes=data.num_classes, input_shape=data.input_shape, loss=MarginalFisher(1.0, 3, 10),
        backbone=partial(TimmBackbone, model="resnet10t"), domain_weight=1.0,
        bottleneck=partial(FeedForward, hidden=[32], activation="tanh"), optimizer=partial(torch.optim.Adam, lr=1e-3),
    )  # fmt: skip
    ranks = []
    for steps in (0, 60):
        trainer = testing.trainer(steps)
        trainer.fit(model, data)
        trainer.test(model, data, verbose=False)
        ranks.append(trainer.callback_metrics["test/target/rank_1"].item())
    assert ranks[1] > ranks[0] + 0.1


def test_the_head_is_the_embedding() -> None:
    model = testing.build(DTML)
    assert isinstance(model.head, nn.Identity)
    assert model(torch.zeros(2, 8)).shape == (2, 16)
