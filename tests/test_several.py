"""Several domains as one source or one target: samples, shares of a batch, figures, checks and names."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_da.callbacks import TestFigures
from lightning_da.commands.compare import comparison, of_each_target, rows_of
from lightning_da.data import (
    DataError,
    DomainPairDataModule,
    FeatureTables,
    Identities,
    ImageFolders,
    Roles,
    TensorDomain,
)
from lightning_da.data.base import UNKNOWN
from lightning_da.data.loading import Mixed
from lightning_da.data.several import Joined, JoinedTensors, Mixture, proximity, shares, vectors
from lightning_da.main import main as lightning_da
from lightning_da.methods import DANN, FineTune
from lightning_da.names import joined_name, metric_names, short_name
from lightning_da.networks import FeedForward
from lightning_da.store import client, search_runs
from lightning_da.testing import check_data
from lightning_da.tracking import find_experiment, pair_of, parameters
from tests.test_image_folders import fill
from tests.toy import ADAM, DANN_OF_TABLES, NETWORK, accuracy, build, equal, fit, state, trainer

SIZES = {"a": 60, "b": 24, "c": 90, "d": 30}
NAMES = ["class 0", "class 1", "class 2"]
OTHERS = [*NAMES[:2], "x"]


class Four(DomainPairDataModule):
    """Four domains of vectors, each farther from the first; the last dimension numbers the samples (see `numbers`)."""

    def __init__(self, source: Any = "a", target: Any = "c", batch_size: int = 12, **kwargs: Any) -> None:
        super().__init__(source, target, batch_size, **kwargs)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        place, size = list(SIZES).index(domain), SIZES[domain]
        rng = np.random.default_rng([place, len(split)])
        y = np.arange(size) % 3
        x = rng.normal(0, 0.4, (size, 8)) + 0.3 * place
        x[:, :3] += 2 * np.eye(3)[y]
        x[:, 7] = (place + 4 * np.arange(size)) / 1e4
        return TensorDomain(torch.tensor(x).float(), torch.tensor(y), NAMES)


def numbers(x: Tensor) -> list[int]:
    """Which samples these are: the place of the domain + 4 times the number in it."""
    found: list[int] = (1e4 * x[:, 7]).round().int().tolist()
    return found


def batches(data: DomainPairDataModule, epochs: int = 1, role: str = "source") -> list[list[int]]:
    """The samples of a role in the training batches."""
    data.check(Roles())
    loader: Any = data._train_loader(role, labels=False)
    found: list[list[int]] = []
    for _ in range(epochs):
        read = len(found)
        loader.sampler.batches_read = lambda read=read: read
        found += [numbers(x) for x in loader]
    return found


# ---------------------------------------------------------------- one domain in a list


@pytest.mark.parametrize("weights", ["size"])
def test_one_domain_in_a_list_is_the_plain_name(weights: Any) -> None:
    plain, listed = Four("a", "c"), Four(["a"], ["c"], source_weights=weights)
    assert (listed.source, listed.target, listed.fingerprint()) == ("a", "c", plain.fingerprint())
    models = [fit(build("dann"), 12, data) for data in (plain, listed)]
    assert equal(*(state(model, ("",)) for model in models))
    assert accuracy(models[0], plain) == accuracy(models[1], listed)


def test_domains_read_by_size_are_one_domain_with_all_samples() -> None:
    class Whole(Four):
        """The two domains as one, made by hand."""

        def dataset(self, domain: str, split: str) -> TensorDomain:
            parts = [Four.dataset(self, name, split) for name in domain.split("+")]
            return TensorDomain(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]), NAMES)

    several, whole = Four(["a", "b"], ["c", "d"]), Whole("a+b", "c+d")
    for role in ("source", "target"):
        assert batches(several, 2, role) == batches(whole, 2, role)
    models = [fit(build("dann"), 12, data) for data in (several, whole)]
    assert equal(*(state(model, ("",)) for model in models))


# ---------------------------------------------------------------- shares of a batch


@pytest.mark.parametrize("number", [3, 8, 64, 257])
@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0.2, 0.1), (1, 0, 0), (5, 3, 1e-9)])
def test_shares_are_as_the_weights_with_one_sample_each(weights: tuple[float, ...], number: int) -> None:
    found = shares(weights, number)
    assert sum(found) == number
    assert min(found) >= 1
    if min(weights) * number >= sum(weights):  # no domain needs the one that it is given
        for own, weight in zip(found, weights, strict=True):
            assert abs(own - number * weight / sum(weights)) < 1


@pytest.mark.parametrize(("weights", "expected"), [("equal", [6, 6]), ("proximity", None)])
def test_every_batch_has_the_same_shares_and_no_sample_is_lost(weights: Any, expected: Any) -> None:
    data = Four(["a", "b"], "c", source_weights=weights)
    found = batches(data, 6)
    wanted = expected or shares(list(data.weights.values()), 12)
    if expected is None:
        assert wanted[0] != wanted[1], "the weights differ"
    for batch in found:
        assert [sum(number % 4 == place for number in batch) for place in (0, 1)] == wanted
    for place, domain in enumerate(("a", "b")):
        own = [number // 4 for batch in found for number in batch if number % 4 == place]
        times = np.bincount(own, minlength=SIZES[domain])
        assert len(own) == len(found) * wanted[place]
        assert times.max() - times.min() <= 1, "each sample is read before one is read again"
    assert found[0] != sorted(found[0])
    assert len(batches(data)) == (60 + 24) // 12, "an epoch is as long as all samples"


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_read_the_batches_of_one(world: int) -> None:
    domain = torch.tensor([0] * 60 + [1] * 24)

    def sampler(rank: int, world: int, start: int = 0) -> list[int]:
        mixture = Mixture(domain, [8, 4], 5, lambda rows, seed: torch.randperm(len(rows), generator=_seeded(seed)))
        return list(Mixed(mixture, domain, world, rank, 5, 12 // world, lambda: start, 20))

    alone = sampler(0, 1)
    together = [sampler(rank, world) for rank in range(world)]
    for number in range(20):
        size = 12 // world
        batch = [index for share in together for index in share[number * size : (number + 1) * size]]
        assert sorted(batch) == sorted(alone[number * 12 : (number + 1) * 12])
    assert sampler(1, world, start=7) == together[1][7 * 12 // world :], "a resumed fit reads what is left"
    assert len(set(alone)) == len(alone), "a sample that is read again is in another pass"


@pytest.mark.parametrize("count", [5, 7, 12, 13])
def test_no_batch_has_a_sample_twice(count: int) -> None:
    domain = torch.tensor([0] * 13 + [1] * 60)
    mixture = Mixture(domain, [count, 3], 5, lambda rows, seed: torch.randperm(len(rows), generator=_seeded(seed)))
    found = [mixture.batch(number) % len(domain) for number in range(40)]
    for batch in found:
        assert len(batch.unique()) == count + 3
    own = torch.cat([batch[batch < 13] for batch in found])
    times = own.bincount(minlength=13)
    assert times.max() - times.min() <= 1, "each sample is read before one is read again"
    assert torch.equal(mixture.batch(11) % len(domain), found[11]), "a batch depends on its number only"
    assert len({tuple(batch.tolist()) for batch in found}) == 40


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_fit_goes_on_from_any_step(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    data = partial(Four, ["a", "b"], "c", source_weights="proximity")
    unbroken = build("dann")
    L.seed_everything(5, verbose=False)
    trainer(17, enable_checkpointing=True, callbacks=[keep]).fit(unbroken, data())
    for step in (4, 7, 13):  # an epoch has 7 steps
        resumed = build("dann", 9)
        L.seed_everything(5, verbose=False)
        trainer(17).fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert equal(state(resumed, ("",)), state(unbroken, ("",)))


def test_a_few_labels_of_the_source_keep_the_shares() -> None:
    class Sparse(Four):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            data.y[data.y == 2] = UNKNOWN
            return data

    data = Sparse(["a", "b"], "c", source_weights="equal")
    data.check(Roles())
    loader = data.train_dataloader()
    for batch, _, _ in loader:
        x, y = batch["source"]
        assert [sum(number % 4 == place for number in numbers(x)) for place in (0, 1)] == [6, 6]
        assert (y != UNKNOWN).all()


# ---------------------------------------------------------------- proximity


def test_the_nearer_domain_has_the_larger_share_without_any_label() -> None:
    class Unlabelled(Four):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            data.y = data.y.flip(0) if domain != "d" else torch.full_like(data.y, UNKNOWN)
            return data

    found = Four(["a", "c"], "d", source_weights="proximity").weights
    assert found["c"] > found["a"]
    assert sum(found.values()) == pytest.approx(1)
    assert Unlabelled(["a", "c"], "d", source_weights="proximity").weights == found
    before = torch.get_rng_state()
    assert Four(["a", "c"], "d", source_weights="proximity").weights == found
    assert torch.equal(torch.get_rng_state(), before)


def test_proximity_is_1_for_equal_and_0_for_separate_domains() -> None:
    x = torch.randn(400, 5, generator=_seeded(0)).double()
    assert proximity(x[:200], x[200:]) > 0.85
    assert proximity(x[:200], x[200:] + 10) == 0
    assert proximity(x[:200], x[200:] + 1) < proximity(x[:200], x[200:] + 0.3)
    assert proximity(x[:200], x[200:300] + 0.5) == proximity(x[:200] * 7 - 3, (x[200:300] + 0.5) * 7 - 3)


def test_domains_that_are_all_far_away_have_equal_weights() -> None:
    class Far(Four):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            data.x += 50 * list(SIZES).index(domain)
            return data

    assert Far(["a", "b"], "c", source_weights="proximity").weights == {"a": 0.5, "b": 0.5}


def test_vectors_of_images_and_sentences() -> None:
    images = torch.rand(3, 3, 40, 50, generator=_seeded(0))
    assert vectors(images).shape == (3, 3 * 16 * 16)
    torch.testing.assert_close(vectors(images).mean(), images.double().mean(), rtol=0.05, atol=0)
    words = torch.tensor([[5, 5, 5 + 256, 7, 0, 0], [7, 0, 0, 0, 0, 0]])
    counts = vectors(words)
    assert [float(part) for part in (counts[0, 5], counts[0, 7], counts[1, 7], counts.sum())] == [3, 1, 1, 5]


# ---------------------------------------------------------------- samples and figures


def test_names_labels_and_domains_of_joined_samples() -> None:
    data = Four(["a", "b"], ["c", "d"])
    whole = data._get("c+d", "test")
    names = data.names("target", "test")
    assert isinstance(whole, JoinedTensors)
    assert len(set(names)) == len(names) == 120
    assert names[0] == "c/0"
    assert names[90] == "d/0"
    assert data.domains_of("target", "test") == ["c"] * 90 + ["d"] * 30
    assert torch.equal(whole.x[90:], data.dataset("d", "test").x)
    assert whole.y[90:].tolist() == data.dataset("d", "test").y.tolist()
    assert data.fingerprint() != Four(["b", "a"], ["c", "d"]).fingerprint()
    whole.x[90] += 1
    assert torch.equal(whole.x[90], data._get("d", "test").x[0]), "the samples are in memory once"
    assert [name for name, _, _ in data.sets(("source",), ("target",))] == ["a", "b", "c", "d", "a", "b", "c", "d"]
    assert data.sets(("source",), ("target",))[0][2] == "source/train"
    check_data(data)


def test_each_target_has_its_own_figures() -> None:
    several = Four(["a", "b"], ["c", "d"])
    model = fit(build("dann"), 8, several)
    found = accuracy(model, several)
    for role, domains in (("source", "ab"), ("target", "cd")):
        for domain in domains:
            alone = accuracy(model, Four("a" if domain != "a" else "b", domain))
            for metric in ("acc", "class_acc", "imbalance"):
                assert found[f"test/{role}/{domain}/{metric}"] == alone[f"test/target/{metric}"]
        sizes = [SIZES[domain] for domain in domains]
        mean = np.average([found[f"test/{role}/{domain}/acc"] for domain in domains], weights=sizes)
        assert found[f"test/{role}/acc"] == pytest.approx(mean)
    assert not [key for key in accuracy(model, Four("a", "c")) if key.count("/") > 2]


def test_numbers_as_labels_are_joined() -> None:
    for name, shift in (("one", 0.0), ("two", 10.0), ("three", 0.5)):
        rng = np.random.default_rng([ord(letter) for letter in name])
        x = rng.normal(size=(60, 3))
        np.savez(f"{name}.npz", x=x, y=np.where(np.arange(60) < 5, np.nan, x[:, 0] + shift))
    data = FeatureTables(["one.npz", "two.npz"], "three.npz", batch_size=8, labels="numbers")
    data.check()
    owns = [data.dataset(name, "train") for name in ("one.npz", "two.npz")]
    torch.testing.assert_close(
        data.training_numbers("source"),
        torch.cat([own[i][1][None] for own in owns for i in range(len(own))]),
        equal_nan=True,
    )
    model = FineTune(num_classes=1, input_shape=(3,), backbone=NETWORK["backbone"], optimizer=ADAM)
    found = accuracy(fit(model, 5, data), data)
    assert {"test/source/one/rmse", "test/source/two/rmse", "test/target/rmse"} <= found.keys()


def test_a_few_target_labels_are_drawn_from_all_targets() -> None:
    data = Four("a", ["c", "d"], target_labels="4/class")
    rows = data._rows("target")
    assert torch.bincount(data._get("c+d", "train").y[rows]).tolist() == [4, 4, 4]
    assert {data.domains_of("target", "train")[row] for row in rows.tolist()} == {"c", "d"}


def test_training_images_of_open_sets_are_predicted_without_augmentation(tmp_path: Path) -> None:
    fill(tmp_path / "art")
    fill(tmp_path / "photo", classes=("bike", "mug", "pen"))
    data = ImageFolders(str(tmp_path), "art", "photo", image_size=8, batch_size=4, num_workers=0, class_sets="open")
    twice = [torch.cat(list(data.unlabelled_dataloader("target"))) for _ in range(2)]
    assert torch.equal(*twice)
    assert not torch.equal(*(data._get("photo", "train")[0][0] for _ in range(2))), "training draws"


def test_image_folders_are_joined_and_read_without_augmentation(tmp_path: Path) -> None:
    for number, domain in enumerate(("art", "photo", "web")):
        fill(tmp_path / domain, number=10 + number)
    (tmp_path / "photo" / "bike" / "broken.png").write_bytes(b"")
    options: dict[str, Any] = {"image_size": 8, "batch_size": 4, "num_workers": 0, "damaged": "skip"}
    data = ImageFolders(str(tmp_path), ["art", "photo"], "web", source_weights="equal", **options)
    data.check(Roles())
    assert data.left_out == {"photo": 1}
    whole = data._get("art+photo", "train")
    assert isinstance(whole, Joined)
    assert all(name.startswith(("art/", "photo/")) for name in whole.names)
    assert whole.reads == data.dataset("art", "train").reads
    plain: list[Tensor] = [x for batch in data.unlabelled_dataloader("source") for x in batch]
    for sample, domain, place in ((0, "art", 0), (len(plain) - 1, "photo", -1)):
        own = data._evaluated(domain, "train")
        assert torch.equal(plain[sample], own[range(len(own))[place]][0])
    x, y, place = next(iter(data.test_dataloader()[0]))
    assert x.shape[1:] == (3, 8, 8)
    assert len(y) == len(place)
    fit(DANN(num_classes=2, input_shape=(3, 8, 8), backbone=partial(FeedForward, hidden=[4]), optimizer=ADAM), 3, data)


# ---------------------------------------------------------------- checks


class Changed(Four):
    """One thing is wrong in the training split of one domain."""

    def __init__(self, change: Any, where: str = "b", **kwargs: Any) -> None:
        super().__init__(["a", "b"], ["c", "d"], **kwargs)
        self.change, self.where = change, where

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        return self.change(data) if domain == self.where else data


def changed_x(function: Any) -> Any:
    return lambda data: TensorDomain(function(data.x.clone()), data.y, data.classes)


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (changed_x(lambda x: x * 255), "b", "value ranges differ: .* in domain 'a' and .* in domain 'b'"),
        (changed_x(lambda x: x * 255), "d", "value ranges differ: .* in domain '.' and .* in domain 'd'"),
        (changed_x(lambda x: x[:, :7]), "b", r"\(8,\) in domain 'a', \(7,\) in domain 'b'"),
        (changed_x(lambda x: x[:, :7]), "d", r"\(8,\) in domain '.', \(7,\) in domain 'd'"),
        (changed_x(lambda x: x / 0), "d", "domain 'd': sample 0 .* NaN or infinite"),
        (lambda data: TensorDomain(data.x[:0], data.y[:0], NAMES), "b", "domain 'b': the train split is empty"),
        (lambda data: TensorDomain(data.x, data.y + 1, NAMES), "b", "domain 'b': label 3 in the train split"),
        (lambda data: TensorDomain(data.x, data.y * 0 - 1, NAMES), "b", "domain 'b': its training labels are needed"),
        (lambda data: TensorDomain(data.x, data.y, OTHERS), "b", "'a' has 'class 2' alone.* 'b' has 'x' alone"),
        (lambda data: TensorDomain(data.x, data.y, OTHERS), "d", "'a' has 'class 2' alone.* 'd' has 'x' alone"),
        (lambda _: Four().dataset("a", "train"), "b", "source 'a' and source 'b' are the same data"),
        (lambda _: Four().dataset("a", "train"), "d", "source 'a' and target 'd' are the same data"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weights", ["size", "proximity"])
def test_a_check_names_the_domain_at_fault(change: Any, where: str, message: str, weights: Any) -> None:
    with pytest.raises(DataError, match=message):
        Changed(change, where, source_weights=weights).check(Roles())


def test_two_modalities_have_no_proximity() -> None:
    class Modalities(Four):
        source_shape = (8,)

    with pytest.raises(DataError, match="samples of two modalities have no proximity; set size or equal"):
        Modalities(["a", "b"], "c", source_weights="proximity").check(Roles(modalities_differ=True))


def test_a_method_that_reads_all_samples_needs_no_labels_of_each_batch() -> None:
    def few(data: TensorDomain) -> TensorDomain:
        return TensorDomain(data.x, torch.where(torch.arange(len(data.y)) < 3, data.y, UNKNOWN), NAMES)

    Changed(few, batch_size=12, source_weights="equal").check(Roles(reads_unlabelled=True))
    with pytest.raises(DataError, match="domain 'b': 3 training samples are fewer than its 6"):
        Changed(few, batch_size=12, source_weights="equal").check(Roles())


def test_pictures_of_a_test_show_all_domains() -> None:
    figures, model, data = TestFigures(samples=30), fit(build("dann"), 1, Four()), Four(["a", "b"], ["c", "d"])
    trainer(callbacks=[figures]).test(model, data, verbose=False)
    for role, domains in (("source", "ab"), ("target", "cd")):
        rows = torch.cat([x for x, _, _ in figures._kept[role]])
        places = [number % 4 for number in numbers(rows)]
        assert 20 <= len(places) <= 30
        assert set(places) == {list(SIZES).index(domain) for domain in domains}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": ["a", "b", "a"]}, "data.source: domain 'a' is named twice"),
        ({"source": []}, "data.source: the list is empty"),
        ({"target": ["c", ""]}, "data.target: the name is empty"),
        ({"source": ["a"], "source_weights": "equal"}, "source_weights: equal is for several .* one, 'a'"),
        ({"target": ["c", "d"], "source_weights": "proximity"}, "source_weights: proximity is for several"),
    ],
)  # fmt: skip
def test_wrong_names_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Four(**arguments)


def test_a_domain_is_not_source_and_target() -> None:
    with pytest.raises(DataError, match="source 'b' and target 'b' are the same data"):
        Four(["a", "b"], ["b", "c"]).check()


@pytest.mark.parametrize(
    ("source", "batch_size", "message"),
    [
        (["a", "b", "d"], 2, "batch_size: 2 samples are fewer than the 3 domains of the source"),
        (["a", "b"], 60, "'b': 24 training samples are fewer than its 30 in a batch of 60; .*data.source_weights size"),
    ],
)
def test_a_batch_has_room_for_each_domain(source: list[str], batch_size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Four(source, "c", batch_size, source_weights="equal").check()
    Four(source, "c", batch_size).check()


def test_the_class_sets_of_one_source_are_joined() -> None:
    rng = np.random.default_rng(0)
    for name, classes in (("one", ["ant", "bee"]), ("two", ["bee", "cat"]), ("three", ["bee", "dog"])):
        np.savez(f"{name}.npz", x=rng.normal(size=(60, 3)), y=np.repeat(classes, 30))
    tables: Any = partial(FeatureTables, ["one.npz", "two.npz"], "three.npz", batch_size=8)
    with pytest.raises(
        DataError, match=r"classes differ: domain 'one.npz' has 'ant' alone, domain 'two.npz' has 'cat'"
    ):
        tables().check()
    with pytest.raises(
        DataError, match=r"'one.npz\+two.npz' has 'ant', 'cat' alone, domain 'three.npz' has 'dog' alone"
    ):
        tables(class_sets="partial").check()
    data = tables(class_sets="open")
    data.check()
    assert data.classes == ["ant", "bee", "cat", "unknown"]
    for role, own in (("source", {"ant", "bee", "cat"}), ("target", {"bee", "unknown"})):
        assert {data.classes[label] for label in data._get(getattr(data, role), "train").y} == own
    assert (
        data.setting == r"open-set and partial: 'one.npz+two.npz' alone has 'ant', 'cat'; 'three.npz' alone has 'dog'"
    )


def test_several_domains_without_a_source_are_one_labelled_domain() -> None:
    data = Four(None, ["a", "b"])
    found = accuracy(fit(build("source_only", train_on="target"), 8, data), data)
    assert {key.rpartition("/")[0] for key in found} == {"test/target", "test/target/a", "test/target/b"}

    class Other(Four):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            return TensorDomain(data.x, data.y, OTHERS if domain == "b" else NAMES)

    with pytest.raises(DataError, match="'a' has 'class 2' alone, domain 'b' has 'x' alone"):
        Other(None, ["a", "b"]).check(Roles(("target",), ()))


def test_identities_of_several_files_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.source: name one domain, not 2: an identity of 'one\.npz'"):
        Identities(["one.npz", "two.npz"], "three.npz")


# ---------------------------------------------------------------- names, tables and commands


def test_names() -> None:
    assert joined_name(["a", "b"]) == "a+b"
    assert short_name("x/a.npz+b.mat:webcam") == "a+webcam"
    assert short_name("plain") == "plain"
    assert metric_names(["x/a.npz", "b.mat:webcam"]) == ["a", "webcam"]
    assert metric_names(["x/a.npz", "y/a.npz"]) == ["x_a.npz", "y_a.npz"]
    assert metric_names(["照片", "素描"]) == ["___0", "___1"]
    assert metric_names(["b&w", ".."]) == ["b_w_0", ".._1"]


def test_a_table_of_each_target() -> None:
    metrics = {
        "test/target/acc": 0.5,
        "test/target/h_score": 0.1,
        "test/target/c/acc": 0.25,
        "test/target/c/class_acc": 0.2,
    }

    runs = [NamedRun(seed, metrics | {"test/target/d/acc": 0.75 + 0.1 * seed}) for seed in (0, 1)]
    text = of_each_target(comparison(rows_of(runs)))  # type: ignore[arg-type]
    assert text.to_dict("records") == [{"method": "dann", "seeds": 2, "c": "0.250 ± 0.000", "d": "0.800 ± 0.071"}]


class NamedRun:
    """A run as far as `compare` reads it."""

    def __init__(self, seed: int, metrics: dict[str, float]) -> None:
        params = {"method": "dann", "seed": str(seed), "source": "a+b", "target": "c+d", "train_on": "source"}
        self.data = SimpleNamespace(params=params, metrics=metrics, tags={})
        self.info = SimpleNamespace(run_id=str(seed), run_name=f"dann-a+b-c+d-s{seed}")


def test_parameters_join_the_names() -> None:
    config = {
        "name": "dann", "after": None, "seed_everything": 0, "trainer": {},
        "model": {"class_path": "M", "init_args": {}},
        "data": {"class_path": "D", "init_args": {"source": ["a.npz", "b.npz"], "target": ["c.npz"]}},
    }  # fmt: skip
    assert pair_of(parameters(config)) == "a.npz+b.npz -> c.npz"


@pytest.mark.slow
def test_the_commands_take_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three", "four"):
        y = np.arange(160) % 2
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(160, 5)) + 3 * y[:, None], y=y)
    words = [*DANN_OF_TABLES, "--model.backbone.hidden=[4]", "--trainer.max_steps", "8"]
    words += ["--data.source", "[one.npz, two.npz]", "--data.target", "[three.npz, four.npz]"]
    words += ["--data.source_weights", "proximity", f"--trainer.logger.experiment_name={tmp_path.name}"]
    lightning_da(["sweep", *words])
    shown = capsys.readouterr().out
    assert "one.npz+two.npz -> three.npz+four.npz, accuracy on each target" in shown
    assert " three " in shown
    (run,) = [
        run for run in search_runs(find_experiment(tmp_path.name).experiment_id) if "method" in run.data.params
        and run.info.run_name != "sweep-one+two-three+four"
    ]  # fmt: skip
    assert run.info.run_name == "dann-one+two-three+four-s0"
    assert run.data.tags["pair"] == "one.npz+two.npz -> three.npz+four.npz"
    assert run.data.tags["source_weights"].startswith("one.npz 0.")
    assert {"test/target/three/acc", "test/target/four/acc"} <= run.data.metrics.keys()
    lightning_da(["report", tmp_path.name])
    assert "<th>three</th><th>four</th>" in (page := Path("report.html").read_text())
    assert "Accuracy on each target." in page
    lightning_da(["predict", "--ckpt_path", "dann-one+two-three+four-s0"])
    rows = list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))
    assert len({row["sample"] for row in rows}) == 320
    assert all(row["sample"].startswith(f"{row['domain']}/") for row in rows)
    inputs: Any = client().get_run(run.info.run_id).inputs
    assert sorted({entry.dataset.name for entry in inputs.dataset_inputs}) == [
        f"{name}.npz" for name in ("four", "one", "three", "two")
    ]
