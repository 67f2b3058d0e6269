"""Files of features: each format, how labels are read, how samples are split, and what is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.datasets import dump_svmlight_file

from lightning_da.data.base import UNKNOWN, DataError, Roles, TensorDomain
from lightning_da.data.features import FeatureTables
from lightning_da.methods import FineTune
from lightning_da.networks import FeedForward
from tests import toy

Array = NDArray[Any]
SPLITS = ("train", "val", "test")


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


@pytest.fixture
def y() -> Array:
    return np.repeat(np.arange(3, 7), 10)


def npz(path: Path, x: Array, y: Array) -> None:
    np.savez(path, x=x, y=y)


def mat(path: Path, x: Array, y: Array) -> None:
    scipy.io.savemat(path, {"x": x, "y": y[:, None]})


def npy(path: Path, x: Array, y: Array) -> None:
    np.save(path, x)
    np.save(path.with_name(f"{path.stem}_labels.npy"), y)


def csv(path: Path, x: Array, y: Array) -> None:
    frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])])
    frame.insert(2, "label", y)
    frame.to_csv(path, index=False)


def svmlight(path: Path, x: Array, y: Array) -> None:
    dump_svmlight_file(x, y, str(path))


WRITERS: dict[str, Callable[[Path, Array, Array], None]] = {
    ".npz": npz,
    ".mat": mat,
    ".npy": npy,
    ".csv": csv,
    ".svmlight": svmlight,
    ".libsvm": svmlight,
}


class OneFile(FeatureTables):
    """Many tests need one file only."""

    def _check_pair(self) -> None:
        pass


def tables(root: Path, source: str = "a.npz", target: str = "a.npz", **arguments: Any) -> FeatureTables:
    return OneFile(source, target, root=str(root), **{"batch_size": 4} | arguments)


def whole(data: FeatureTables, domain: str) -> TensorDomain:
    """All splits of a domain, in the order of the file."""
    parts = [data.dataset(domain, split) for split in SPLITS]
    names = [name for part in parts for name in part.names]
    order = np.argsort([int(name) for name in names])
    assert [names[i] for i in order] == [str(i) for i in range(len(names))]
    return TensorDomain(
        torch.cat([part.x for part in parts])[order], torch.cat([part.y for part in parts])[order], parts[0].classes
    )


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_samples_and_labels(tmp_path: Path, x: Array, y: Array, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"a{suffix}", x, y)
    data = tables(tmp_path, f"a{suffix}", f"a{suffix}")
    data.check()
    read = whole(data, f"a{suffix}")
    assert read.classes == data.classes == ["3", "4", "5", "6"]
    assert data.input_shape == (5,)
    torch.testing.assert_close(read.x, torch.from_numpy(x))
    assert read.x.dtype == torch.float32
    assert torch.equal(read.y, torch.from_numpy(y - 3))


@pytest.mark.parametrize("suffix", [".npz", ".mat", ".npy", ".csv"])
def test_labels_may_be_names(tmp_path: Path, x: Array, y: Array, suffix: str) -> None:
    names = np.array(["cat", "dog", "None", "zebra"])[y - 3]
    WRITERS[suffix](tmp_path / f"a{suffix}", x, names)
    data = tables(tmp_path, f"a{suffix}", f"a{suffix}")
    data.check()
    read = whole(data, f"a{suffix}")
    assert read.classes == ["None", "cat", "dog", "zebra"]
    assert [read.classes[i] for i in read.y] == list(names)


def test_the_two_files_may_differ_in_format(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y)
    csv(tmp_path / "b.csv", x + 1, y)
    tables(tmp_path, "a.npz", "b.csv").check()


def test_keys_and_columns_can_be_named(tmp_path: Path, x: Array, y: Array) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"fts": scipy.sparse.csc_matrix(x), "labels": y})
    pd.DataFrame(x).assign(kind=y).to_csv(tmp_path / "b.csv", index=False)
    data = tables(tmp_path, "a.mat", "b.csv", x_key="fts", y_key="labels", label_column="kind")
    data.check()
    torch.testing.assert_close(whole(data, "a.mat").x, whole(data, "b.csv").x)
    assert torch.equal(whole(data, "a.mat").y, whole(data, "b.csv").y)


def test_labels_may_be_bytes(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, np.array([b"cat", b"dog", b"eel", b"fox"])[y - 3])
    assert tables(tmp_path).classes == ["cat", "dog", "eel", "fox"]


def test_numbers_sort_by_value(tmp_path: Path, x: Array) -> None:
    labels = np.tile([10, 9, 2, 1], 10)
    for suffix in (".npz", ".mat", ".csv"):
        WRITERS[suffix](tmp_path / f"a{suffix}", x, labels.astype(float))
        assert tables(tmp_path, f"a{suffix}").classes == ["1", "2", "9", "10"]


def test_svmlight_files_with_predefined_splits(tmp_path: Path, x: Array, y: Array) -> None:
    rows = {"train": slice(0, 20), "val": slice(20, 25), "test": slice(25, 40)}
    for split, part in rows.items():
        svmlight(tmp_path / f"a_{split}.svmlight", x[part] * [1, 1, 1, 1, split == "test"], y[part])
    svmlight(tmp_path / "b.svmlight", x[:, :3], y)
    data = tables(tmp_path, "a.svmlight", "b.svmlight")
    data.check()
    for split, part in rows.items():
        found = data.dataset("a.svmlight", split)
        torch.testing.assert_close(found.x[:, :4], torch.from_numpy(x[part][:, :4]).float())
        assert found.x.shape[1] == 5
    (tmp_path / "a_test.svmlight").unlink()
    with pytest.raises(DataError, match=r"a\.svmlight: no 'x', and not both of 'x_train' and 'x_test'"):
        tables(tmp_path, "a.svmlight", "b.svmlight").check()


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_two_domains_in_one_file(tmp_path: Path, x: Array, y: Array, suffix: str) -> None:
    both: dict[str, Any] = {"X_src": x.T, "Y_src": y[:, None], "X_tar": 2 * x[::-1].T, "Y_tar": y[::-1][:, None]}
    if suffix == ".npz":
        np.savez(tmp_path / "pair.npz", **both)
    else:
        scipy.io.savemat(tmp_path / "pair.mat", both)
    source, target = f"pair{suffix}:src", f"pair{suffix}:tar"
    data = tables(tmp_path, source, target, x_key="X", y_key="Y", samples_last=True)
    data.check()
    torch.testing.assert_close(whole(data, target).x, torch.from_numpy(2 * x[::-1].copy()).float())
    assert data.classes_of(source) == data.classes_of(target)
    with pytest.raises(DataError, match=rf"pair\{suffix}: no 'X_tgt'.*'X_tar'"):
        tables(tmp_path, source, f"pair{suffix}:tgt", x_key="X", y_key="Y", samples_last=True).check()


def test_all_samples_are_in_each_split(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y)
    npz(tmp_path / "b.npz", 2 * x, y)
    data = tables(tmp_path, "a.npz", "b.npz", protocol="all")
    data.check()
    for split in SPLITS:
        torch.testing.assert_close(data.dataset("b.npz", split).x, torch.from_numpy(2 * x).float())
    assert [len(loader.dataset) for loader in data.predict_dataloader()] == [40]  # type: ignore[arg-type]


def test_training_on_tested_target_labels_is_warned_of(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y)
    npz(tmp_path / "b.npz", 2 * x, y)
    with pytest.warns(UserWarning, match="the labels of the target are trained on and tested"):
        tables(tmp_path, "a.npz", "b.npz", protocol="all").check(Roles(("target",), ()))


def test_svmlight_files_share_their_width(tmp_path: Path, x: Array, y: Array) -> None:
    """The target has only zeros in the last column, of which its file says nothing."""
    svmlight(tmp_path / "a.svmlight", x, y)
    svmlight(tmp_path / "b.svmlight", x * [1, 1, 1, 1, 0], y)
    data = tables(tmp_path, "a.svmlight", "b.svmlight")
    data.check()
    torch.testing.assert_close(whole(data, "b.svmlight").x[:, :4], whole(data, "a.svmlight").x[:, :4])
    assert (whole(data, "b.svmlight").x[:, 4] == 0).all()


def test_samples_last(tmp_path: Path, x: Array, y: Array) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"x": x.T, "y": y})
    with pytest.raises(DataError, match=r"a\.mat: 'y' has shape \(40,\).*5 samples.*samples_last"):
        tables(tmp_path, "a.mat").check()
    images = np.random.default_rng(0).integers(256, size=(6, 7, 3, 40), dtype=np.uint8)
    scipy.io.savemat(tmp_path / "b.mat", {"x": images, "y": y})
    data = tables(tmp_path, "a.mat", "b.mat", samples_last=True)
    torch.testing.assert_close(whole(data, "a.mat").x, torch.from_numpy(x))
    assert torch.equal(whole(data, "b.mat").x, torch.from_numpy(images.transpose(3, 2, 0, 1)))


# ---------------------------------------------------------------- kinds of samples


@pytest.mark.parametrize("shape", [(40, 6, 7), (40, 6, 7, 1), (40, 6, 7, 3), (40, 3, 6, 7)])
def test_images(tmp_path: Path, y: Array, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    npz(tmp_path / "a.npz", images, y)
    data = tables(tmp_path)
    data.check()
    last = {(40, 6, 7): images[:, None], (40, 3, 6, 7): images}.get(
        shape, images.transpose(0, *range(3, len(shape)), 1, 2)
    )
    assert torch.equal(whole(data, "a.npz").x, torch.from_numpy(last))
    sample, _ = data.dataset("a.npz", "train")[0]
    assert sample.shape == data.input_shape == last.shape[1:]
    assert 0.5 < sample.max() <= 1


def test_vectors_of_uint8_keep_their_values(tmp_path: Path, y: Array) -> None:
    counts = np.random.default_rng(0).integers(256, size=(40, 5), dtype=np.uint8)
    npz(tmp_path / "a.npz", counts, y)
    read = whole(tables(tmp_path), "a.npz")
    assert read.x.dtype == torch.float32
    assert torch.equal(torch.stack([read[i][0] for i in range(40)]), torch.from_numpy(counts).float())


@pytest.mark.parametrize("x", [np.zeros(40), np.zeros((40, 5), dtype=complex), np.full((40, 5), "a")])
def test_samples_of_another_kind(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y)
    with pytest.raises(DataError, match=rf"a\.npz: 'x' is of .* and shape \({x.shape[0]},"):
        tables(tmp_path).check()


def test_images_of_too_many_channels(tmp_path: Path, y: Array) -> None:
    npz(tmp_path / "a.npz", np.zeros((40, 8, 8, 8), dtype=np.uint8), y)
    with pytest.raises(DataError, match=r"a\.npz: 'x' of shape \(40, 8, 8, 8\)"):
        tables(tmp_path).check()


def test_a_sample_that_is_not_finite_is_named_before_it_is_standardized(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "b.npz", x, y)
    row = int(tables(tmp_path, "b.npz", "b.npz").dataset("b.npz", "train").names[3])
    x[row, 1] = np.nan
    npz(tmp_path / "a.npz", x, y)
    network = FineTune(num_classes=4, input_shape=(5,), backbone=partial(FeedForward, hidden=[4]), standardize=True)
    with pytest.raises(DataError, match=rf"a\.npz: sample {row} of 'x', counted from 0, holds nan"):
        toy.trainer(1).fit(network, tables(tmp_path, "a.npz", "b.npz"))


def test_shapes_that_differ(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y)
    npz(tmp_path / "b.npz", x[:, :1], y)
    with pytest.raises(DataError, match=r"shape.*\(5,\).*a\.npz.*\(1,\).*b\.npz"):
        tables(tmp_path, "a.npz", "b.npz").check()


def test_a_file_without_samples(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x[:0], y[:0])
    with pytest.raises(DataError, match=r"a\.npz: 'x' holds no samples"):
        _ = tables(tmp_path).input_shape


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("suffix", [".npz", ".mat", ".csv"])
def test_missing_labels(tmp_path: Path, x: Array, y: Array, suffix: str, named: bool) -> None:
    labels: Array = np.array(["cat", "dog", "eel", "fox"])[y - 3] if named else y.astype(float)
    WRITERS[suffix](tmp_path / f"a{suffix}", x, labels)
    labels[[1, 15]] = "" if named else np.nan
    WRITERS[suffix](tmp_path / f"b{suffix}", x, labels)
    data = tables(tmp_path, f"a{suffix}", f"b{suffix}")
    data.check()
    expected = torch.from_numpy(y - 3)
    expected[[1, 15]] = UNKNOWN
    assert torch.equal(whole(data, f"b{suffix}").y, expected)
    assert whole(data, f"b{suffix}").classes == data.classes


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv"])
def test_target_without_labels(tmp_path: Path, x: Array, y: Array, suffix: str) -> None:
    npz(tmp_path / "a.npz", x, y)
    path = tmp_path / f"b{suffix}"
    if suffix == ".npz":
        np.savez(path, x=x)
    elif suffix == ".npy":
        np.save(path, x)
    else:
        pd.DataFrame(x).to_csv(path, index=False)
    data = tables(tmp_path, "a.npz", path.name)
    data.check()
    assert (whole(data, path.name).y == UNKNOWN).all()
    assert whole(data, path.name).classes == []
    with pytest.raises(DataError, match=rf"{path}: the source needs labels"):
        tables(tmp_path, path.name, "a.npz").check()


def test_source_without_its_label_column(tmp_path: Path, x: Array, y: Array) -> None:
    csv(tmp_path / "a.csv", x, y)
    with pytest.raises(DataError, match=r"a\.csv.*'labels'; did you mean 'label'\? there are: 'f0', 'f1'"):
        tables(tmp_path, "a.csv", "a.csv", label_column="labels").check()


def test_labels_that_are_not_whole_numbers(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y + 0.25)
    with pytest.raises(DataError, match=r"a\.npz: label 3\.25 in 'y'"):
        tables(tmp_path).check()


@pytest.mark.parametrize("labels", [np.zeros(39), np.eye(40)])
def test_labels_of_another_shape(tmp_path: Path, x: Array, labels: Array) -> None:
    npz(tmp_path / "a.npz", x, labels)
    with pytest.raises(DataError, match=r"a\.npz: 'y' has shape \(.*but there are 40 samples"):
        tables(tmp_path).check()


def test_classes_of_one_domain_only(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y)
    npz(tmp_path / "b.npz", x, y + 1)
    with pytest.raises(DataError, match=r"classes differ.*'a\.npz' has '3' alone.*'b\.npz' has '7' alone"):
        tables(tmp_path, "a.npz", "b.npz").check()


# ---------------------------------------------------------------- splits


def test_splits_are_stratified_and_depend_on_the_seed(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y)
    parts = {split: tables(tmp_path).dataset("a.npz", split) for split in SPLITS}
    assert [len(part) for part in parts.values()] == [28, 4, 8]
    assert parts["test"].y.bincount().tolist() == [2, 2, 2, 2]
    assert parts["val"].y.bincount().tolist() == [1, 1, 1, 1]
    assert tables(tmp_path).fingerprint() == tables(tmp_path).fingerprint()
    assert tables(tmp_path, seed=1).dataset("a.npz", "test").names != parts["test"].names


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_given_splits(tmp_path: Path, x: Array, y: Array, suffix: str, val: bool) -> None:
    parts = {"train": x[::2], "test": x[1::4]} | ({"val": x[3::4]} if val else {})
    labels = {"train": y[::2], "test": y[1::4]} | ({"val": y[3::4]} if val else {})
    entries = {f"x_{k}": v for k, v in parts.items()} | {f"y_{k}": v for k, v in labels.items()}
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, allow_pickle=False, **entries)
    else:
        scipy.io.savemat(path, entries)
    data = tables(tmp_path, path.name, path.name)
    data.check()
    read = {split: data.dataset(path.name, split) for split in SPLITS}
    assert torch.equal(read["test"].x, torch.from_numpy(parts["test"]))
    assert torch.equal(read["test"].y, torch.from_numpy(labels["test"] - 3))
    assert read["test"].names == [f"test {i}" for i in range(10)]
    if val:
        assert torch.equal(read["train"].x, torch.from_numpy(parts["train"]))
        assert torch.equal(read["val"].x, torch.from_numpy(parts["val"]))
    else:
        assert [len(read["train"]), len(read["val"])] == [18, 2]
        rows = [int(name.removeprefix("train ")) for name in read["train"].names + read["val"].names]
        assert sorted(rows) == list(range(20))
        assert torch.equal(torch.cat([read["train"].x, read["val"].x]), torch.from_numpy(parts["train"][rows]))


def test_training_split_without_labels(tmp_path: Path, x: Array, y: Array) -> None:
    """A target whose test samples alone have labels."""
    npz(tmp_path / "a.npz", x, y)
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x, y_test=y)
    data = tables(tmp_path, "a.npz", "b.npz")
    data.check()
    assert (data.dataset("b.npz", "train").y == UNKNOWN).all()
    assert torch.equal(data.dataset("b.npz", "test").y, torch.from_numpy(y - 3))


def test_splits_that_differ_in_shape(tmp_path: Path, x: Array, y: Array) -> None:
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:, :3], y_test=y)
    with pytest.raises(DataError, match=r"a\.npz: .*differ in shape: \(40, 5\), \(40, 3\)"):
        tables(tmp_path).check()


def test_fingerprint_changes_with_the_data(tmp_path: Path, x: Array, y: Array) -> None:
    digests = []
    for change in ("none", "x", "y"):
        if change == "x":
            x[7, 2] += 1e-3
        if change == "y":
            y[[5, 25]] = y[[25, 5]]
        npz(tmp_path / "a.npz", x, y)
        digests.append(tables(tmp_path).fingerprint())
    assert len(set(digests)) == 3


# ---------------------------------------------------------------- errors


def test_missing_file(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "amazon.npz", x, y)
    with pytest.raises(DataError, match=r"no file '.*amazn\.npz'; did you mean 'amazon\.npz'\?"):
        tables(tmp_path, "amazon.npz", "amazn.npz").check()


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(DataError, match=r"a\.xlsx: cannot read '\.xlsx' files, only \.npz"):
        tables(tmp_path, "a.xlsx").check()


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_unknown_key(tmp_path: Path, x: Array, y: Array, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"a{suffix}", x, y)
    with pytest.raises(DataError, match=rf"a\{suffix}: no 'xs'.*did you mean 'x'\? there are: 'x', 'y'.*x_key"):
        tables(tmp_path, f"a{suffix}", x_key="xs").check()


def test_training_split_alone(tmp_path: Path, x: Array, y: Array) -> None:
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    with pytest.raises(DataError, match=r"a\.npz: no 'x', and not both of 'x_train' and 'x_test'"):
        tables(tmp_path).check()


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("content", [b"", b"\x89nonsense\n\xff\x00"])
def test_unreadable_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        tables(tmp_path, path.name, path.name).check()


def test_pickled_labels_are_refused(tmp_path: Path, x: Array, y: Array) -> None:
    npz(tmp_path / "a.npz", x, y.astype(object))
    with pytest.raises(DataError, match=r"a\.npz.*Object arrays"):
        tables(tmp_path).check()


def test_column_that_is_not_numeric(tmp_path: Path, x: Array, y: Array) -> None:
    csv(tmp_path / "a.csv", x, y)
    frame = pd.read_csv(tmp_path / "a.csv").astype({"f3": object})
    frame.loc[4, "f3"] = "3,5"
    frame.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(DataError, match=r"b\.csv, line 6: column 'f3' holds '3,5'"):
        tables(tmp_path, "a.csv", "b.csv").check()


def test_column_of_row_numbers(tmp_path: Path, x: Array, y: Array) -> None:
    pd.DataFrame(x).assign(label=y).to_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: column 1 has no name"):
        tables(tmp_path, "a.csv", "a.csv").check()


def test_columns_that_differ(tmp_path: Path, x: Array, y: Array) -> None:
    csv(tmp_path / "a.csv", x, y)
    frame = pd.read_csv(tmp_path / "a.csv")
    frame.rename(columns={"f1": "g1"}).to_csv(tmp_path / "b.csv", index=False)
    frame[frame.columns[::-1]].to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(DataError, match=r"a\.csv and .*b\.csv need the same feature columns: 'f1'"):
        tables(tmp_path, "a.csv", "b.csv").check()
    with pytest.raises(DataError, match=r"a\.csv and .*c\.csv need the same feature columns: .*order"):
        tables(tmp_path, "a.csv", "c.csv").check()
    frame[["label", *frame.columns.drop("label")]].to_csv(tmp_path / "d.csv", index=False)
    tables(tmp_path, "a.csv", "d.csv").check()


def test_empty_cell_is_reported(tmp_path: Path, x: Array, y: Array) -> None:
    x[0, 0] = np.nan
    csv(tmp_path / "a.csv", x, y)
    with pytest.raises(DataError, match=r"a\.csv, line 2: column 'f0' holds nan"):
        tables(tmp_path, "a.csv", "a.csv").check()
