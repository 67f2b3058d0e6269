"""The contract of the pair: what reaches a method, in which order, and what is checked before."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_da.data import DataError, TensorDomain
from lightning_da.data.base import UNKNOWN
from lightning_da.data.loading import Share, Shuffle, even_batch
from tests.toy import Toy, Uneven, build, trainer

NAMES = ["class 0", "class 1", "class 2"]


class Changed(Toy):
    """The toy pair with one thing wrong in one split of one domain."""

    def __init__(self, change: Any, domain: str = "noisy", split: str = "train", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.change, self.where = change, (domain, split)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        return self.change(data) if (domain, split) == self.where else data


def with_x(function: Any) -> Any:
    return lambda data: TensorDomain(function(data.x.clone()), data.y, data.classes)


def with_y(function: Any) -> Any:
    return lambda data: TensorDomain(data.x, function(data.y.clone()), data.classes)


def poisoned(value: float) -> Any:
    def change(x: Tensor) -> Tensor:
        x[7, 2] = value
        return x

    return with_x(change)


def relabelled(label: int) -> Any:
    def change(y: Tensor) -> Tensor:
        y[5] = label
        return y

    return with_y(change)


def cut(number: int) -> Any:
    return lambda data: TensorDomain(data.x[:number], data.y[:number], data.classes)


def renamed(names: list[str]) -> Any:
    return lambda data: TensorDomain(data.x, data.y, names)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Changed(cut(0), split="val"), "'noisy': the val split is empty"),
        (Changed(cut(0)), "'noisy': the train split is empty"),
        (Changed(cut(0), domain="calm"), "'calm': the train split is empty; .* give it more samples"),
        (Changed(cut(20)), "'noisy': 20 training samples are fewer than a batch of 32.*batch_size to at most 20"),
        (Changed(poisoned(float("nan"))), "'noisy': sample 7 of the train split holds NaN"),
        (Changed(poisoned(float("inf")), split="test"), "'noisy': sample 7 of the test split"),
        (Changed(relabelled(3), domain="calm"), "'calm': label 3 in the train split is out of range.* 0 to 2"),
        (Changed(relabelled(-2)), "'noisy': label -2"),
        (Changed(renamed(["class 0", "class 1", "kitten"])), "'calm' has 'class 2' alone.*'noisy' has 'kitten' alone"),
        (Changed(renamed(NAMES[::-1])), "classes differ.*same order"),
        (
            Changed(renamed(["Class 0", "class 1 ", "class 2"])),
            "differ in capitals or spaces alone: write each name alike",
        ),
        (Changed(renamed(NAMES[:2])), "'calm' has 'class 2' alone"),
        (Changed(with_x(lambda x: 255 * x)), "value ranges differ: the largest value is .* 'calm' and .* 'noisy'"),
        (Changed(with_x(lambda x: x.reshape(-1, 2, 4))), r"shape"),
        (Changed(with_y(lambda y: torch.full_like(y, -1)), domain="calm"), "'calm': its training labels"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_checked_before_training(data: Toy, message: str) -> None:
    if "shape" in message:
        for split in ("val", "test"):
            data._datasets["noisy", split] = Changed(data.change, split=split).dataset("noisy", split)  # type: ignore[attr-defined]
        message = r"\(8,\) in domain 'calm', \(2, 4\) in domain 'noisy'"
    model = build("dann")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(DataError, match=message):
        trainer().fit(model, data)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_labelled_target_is_needed_by_those_who_read_it() -> None:
    data = Changed(with_y(lambda y: torch.full_like(y, -1)))
    with pytest.raises(DataError, match="'noisy': its training labels are needed, but no sample has one"):
        trainer().fit(build("source_only", train_on="target"), data)


def test_good_data_pass() -> None:
    Toy().check()


def test_tensor_domain_batches_by_index_and_scales_images() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    domain = TensorDomain(images, torch.tensor([3, 1, 2, 0]), list("abcd"), names=["w", "x", "y", "z"])
    x, y = domain.__getitems__([2, 0])
    torch.testing.assert_close(x, images[[2, 0]].float() / 255)
    assert y.tolist() == [2, 3]
    assert torch.equal(domain[2][0], x[0])
    assert domain.names == ["w", "x", "y", "z"]
    assert TensorDomain(images.float(), domain.y, list("abcd"))[1][0].max() == 127


def test_fingerprint_follows_samples_and_labels() -> None:
    same = Toy().fingerprint()
    assert Toy().fingerprint() == same
    assert Changed(poisoned(1.0), split="test").fingerprint() != same
    assert Changed(relabelled(0), split="val").fingerprint() != same


def batches(data: Toy, steps: int, seed: int = 0) -> list[Any]:
    """What the steps of a fit are given."""
    seen: list[Any] = []
    model = build("dann", seed)
    setattr(model, "on_train_batch_start", lambda batch, _idx: seen.append(batch))  # noqa: B010
    trainer(steps, limit_val_batches=0).fit(model, data)
    return seen


def test_training_batches_are_full_shuffled_and_unlabelled_on_target() -> None:
    seen = batches(Toy(number=100), steps=6)
    for batch in seen:
        assert [part.shape for part in batch["source"]] == [(32, 8), (32,)]
        assert batch["target"].shape == (32, 8)
    for epoch in (seen[:3], seen[3:]):
        assert len(torch.cat([batch["source"][0] for batch in epoch]).unique(dim=0)) == 96
    assert not torch.equal(seen[0]["target"], seen[3]["target"])
    again = batches(Toy(number=100), steps=3)
    assert torch.equal(again[2]["target"], seen[2]["target"])
    assert not torch.equal(batches(Toy(number=100), steps=1, seed=1)[0]["target"], seen[0]["target"])


def test_a_cycled_domain_is_read_pass_by_pass_across_epochs() -> None:
    """Two batches a pass of the short domain, ten a pass of the long one, each pass in an order of its own."""
    targets = [batch["target"] for batch in batches(Uneven("noisy"), steps=22)]
    for first, second in zip(targets[::2], targets[1::2], strict=True):
        assert len(torch.cat([first, second]).unique(dim=0)) == 64
    assert not any(torch.equal(targets[0], other) for other in targets[1:])
    assert len(torch.cat(targets).unique(dim=0)) == 72


def test_what_is_read_of_the_source_does_not_depend_on_the_target() -> None:
    for short in ("calm", "noisy"):
        beside_target = [batch["source"][0] for batch in batches(Uneven(short), steps=25)]
        data, alone = Uneven(short), []
        model = build("source_only")
        setattr(model, "on_train_batch_start", lambda batch, _idx: alone.append(batch["source"][0]))  # noqa: B010, B023
        trainer(25, limit_val_batches=0).fit(model, data)
        assert all(torch.equal(one, other) for one, other in zip(beside_target, alone, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7, 64, 65, 129, 130])
def test_shares_are_disjoint_and_whole(world: int, size: int) -> None:
    data = list(range(size))
    shares = [list(Share(data, world, rank)) for rank in range(world)]  # type: ignore[arg-type]
    assert sorted(itertools.chain(*shares)) == data
    if size < world:
        return
    shuffled = [list(Shuffle(data, world, rank, 3, 1, lambda: 0)) for rank in range(world)]
    assert len({len(share) for share in shuffled}) == 1
    assert len(set(itertools.chain(*shuffled))) == size // world * world


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [2, 3, 32])
def test_every_process_has_the_same_number_of_batches(world: int, batch_size: int) -> None:
    for size in range(world, 200):
        batch = even_batch(size, world, batch_size)
        numbers = {-(-len(range(rank, size, world)) // batch) for rank in range(world)}
        assert len(numbers) == 1


def test_predict_reads_the_whole_target() -> None:
    data = Toy(number=50)
    model = build("dann")
    parts = trainer().predict(model, data)
    assert parts is not None
    assert [sum(len(batch) for batch in split) for split in parts] == [50, 50, 50]


@pytest.mark.parametrize("name", ["calm", "its copy"])
def test_one_domain_is_no_pair(name: str) -> None:
    """Neither under one name nor under two."""

    class One(Toy):
        def dataset(self, domain: str, split: str) -> Any:  # noqa: ARG002
            return super().dataset("calm", split)

    data = One()
    data.target = name
    with pytest.raises(DataError, match=f"source 'calm' and target '{name}' are the same data, so there is nothing"):
        data.check()


def test_a_copy_without_labels_is_no_other_domain() -> None:
    class Copied(Toy):
        def dataset(self, domain: str, split: str) -> Any:
            data = super().dataset("calm", split)
            return TensorDomain(data.x, torch.full_like(data.y, -1), []) if domain == "noisy" else data

    with pytest.raises(DataError, match="are the same data"):
        Copied().check()


def test_an_empty_split_is_named_in_a_test_too() -> None:
    model, data = build("source_only"), Changed(cut(0), split="test")
    with pytest.raises(DataError, match="'noisy': the test split is empty"):
        trainer().test(model, data, verbose=False)
    everything = Toy()
    everything.predicted = ()
    with pytest.raises(DataError, match="'noisy': there is nothing to predict"):
        trainer().predict(model, everything)


def test_the_shape_of_a_domain_is_that_of_the_first_split_that_has_samples() -> None:
    assert Changed(cut(0), domain="noisy").input_shape == (8,)
    data = Toy(number=0)
    with pytest.raises(DataError, match="'noisy': the train split is empty"):
        _ = data.input_shape


@pytest.mark.parametrize(("domain", "split"), [("calm", "train"), ("noisy", "test")])
def test_a_class_that_is_missing_from_a_split_is_named(domain: str, split: str) -> None:
    def drop(y: Tensor) -> Tensor:
        return torch.where(y == 1, UNKNOWN, y)

    with pytest.warns(UserWarning, match=rf"domain '{domain}': there is no sample of class 'class 1' in {split}"):
        Changed(with_y(drop), domain=domain, split=split).check()


def test_whole_and_unlabelled_splits_are_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    Changed(with_y(lambda y: torch.full_like(y, UNKNOWN))).check()
    assert not [w for w in recwarn if "there is no sample" in str(w.message)]


def test_missing_labels_of_the_source_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_da.data.base.rank_zero_info", said.append)
    data = Changed(with_y(lambda y: torch.where(torch.arange(len(y)) < 7, UNKNOWN, y)), domain="calm")
    data.check()
    number = len(data.dataset("calm", "train"))
    assert said == [
        f"domain 'calm': 7 of {number} training samples have no label; the task loss leaves them out",
    ]
    Changed(lambda split: split, domain="calm").check()
    assert len(said) == 1
