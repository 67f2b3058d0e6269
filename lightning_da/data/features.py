"""Feature files, one for each domain, or one with labels."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.io
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_svmlight_files

from lightning_da.data.base import DOMAINS, SPLITS, UNKNOWN, DataError, DomainPairDataModule, Roles, TensorDomain
from lightning_da.data.csv_files import read_csv
from lightning_da.data.splits import Indices, split_indices
from lightning_da.data.tables import encode_labels, encode_numbers
from lightning_da.errors import list_choices, one_line
from lightning_da.names import Names

SUFFIXES = (".npz", ".mat", ".npy", ".csv", ".svmlight", ".libsvm")
SVMLIGHT = (".svmlight", ".libsvm")

Array = NDArray[Any]


class FeatureTables(DomainPairDataModule):
    """Domains of feature vectors or small images, one file each, held in memory: a pair, or one with labels.

    The suffix of a file determines how it is read:

    - `.npz` and `.mat` (not 7.3): entries `x_key` and `y_key`. For predefined splits, entries `<x_key>_train`,
      `<y_key>_train`, `<x_key>_test` and so on; if `_val` is missing, it is split off `_train`. If a file holds several
      domains, the domain `FILE:NAME` has the entries `<x_key>_NAME` and `<y_key>_NAME`.
    - `.npy`: samples; the labels are in `<stem>_labels.npy` in the same folder.
    - `.csv`: one column with labels; all other columns are features. Both domains need the same columns.
    - `.svmlight` or `.libsvm`: sparse vectors with labels. For predefined splits, the files are named
      `<stem>_train.svmlight`, `<stem>_test.svmlight` and, optionally, `<stem>_val.svmlight`; the domain is still
      `<stem>.svmlight`.

    Arrays of shape (n, d) are vectors. Arrays of shape (n, h, w), (n, h, w, c) or (n, c, h, w) with at most four
    channels are images; images of uint8 are scaled to floats in [0, 1].

    Labels are integers or names; the smallest integer need not be 0. They are also the class names, sorted by value if
    all are numbers. An empty label or NaN is an unknown class. The target may have no labels. A file without splits is
    split with `seed`, stratified by class. With `labels: numbers` they are the numbers to predict.

    Args:
        source: File of the domain with labels, which self-taught learning does not read, or several files; None if
            there is one domain.
        target: File of the domain to transfer to, or several files; None if there is one domain.
        batch_size: Samples per batch and domain, on each process.
        root: Folder that `source` and `target` are relative to.
        x_key: Name of the samples in `.npz` and `.mat` files.
        y_key: Name of the labels in `.npz` and `.mat` files.
        label_column: Name of the label column in `.csv` files.
        labels: `classes`, or `numbers` for a regression.
        samples_last: Whether the last dimension of arrays in `.npz`, `.npy` and `.mat` files counts the samples, as in
            MATLAB's (d, n) and (h, w, c, n).
        protocol: `split` uses different samples for training and test. `all` uses all samples of a domain in each
            split: the transductive protocol of the Office benchmarks, in which training reads the unlabelled target
            samples that are tested later. Results of the two protocols are not comparable. With `all`, source
            accuracies, and target accuracies of methods that read target labels, are those of training samples.
        seed: Seed of the splits.
        val_share: Fraction of samples for validation; if a file has only a training and a test split, a fraction of
            its training samples.
        test_share: Fraction of samples for test.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.
    """

    def __init__(
        self,
        source: Names | None = None,
        target: Names | None = None,
        batch_size: int = 64,
        root: str = ".",
        x_key: str = "x",
        y_key: str = "y",
        label_column: str = "label",
        labels: Literal["classes", "numbers"] = "classes",
        samples_last: bool = False,
        protocol: Literal["split", "all"] = "split",
        seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        self.root, self.x_key, self.y_key, self.label_column = Path(root), x_key, y_key, label_column
        self.samples_last, self.protocol, self.regression = samples_last, protocol, labels == "numbers"
        self.predicted = ("test",) if protocol == "all" else SPLITS
        self.seed, self.val_share, self.test_share = seed, val_share, test_share
        self._domains: dict[str, dict[str, TensorDomain]] = {}
        self._no_labels: DataError | None = None

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the source: the files of two modalities differ."""
        return self.shape_of(self.source)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        return self._read(domain)[split]

    def check(self, roles: Roles = Roles()) -> None:  # noqa: B008
        """Checks that `.csv` files have the same feature columns, then runs the checks of the base class.

        Raises:
            DataError: If the names or the order of the columns differ, or a check of the base class fails.
        """
        domains = self._every(DOMAINS)
        for domain in domains:
            self._read(domain)
        if self._no_labels is not None and "source" in roles.supervised:
            raise self._no_labels
        for group in [self.named[role] for role in self.domains] if roles.modalities_differ else [domains]:
            self._check_columns([path for path, _ in map(self._path, group) if path.suffix.lower() == ".csv"])
        super().check(roles)
        if self.regression and roles.supervised:
            numbers = torch.cat([self.training_numbers(role) for role in roles.supervised])
            if len(numbers[~numbers.isnan()].unique()) == 1:
                raise DataError(f"all training labels are {numbers.nanmedian():g}; there is nothing to predict")

    def _check_columns(self, paths: Sequence[Path]) -> None:
        """Refuses tables with other feature columns than the first, or in another order."""
        columns = [[name for name in pd.read_csv(path, nrows=0).columns if name != self.label_column] for path in paths]
        for path, own in zip(paths, columns, strict=True):
            if own != columns[0]:
                alone = set(columns[0]) ^ set(own)
                what = f"{min(alone)!r} is in one of them only" if alone else "put them in the same order"
                raise DataError(f"{paths[0]} and {path} need the same feature columns: {what}")

    def _read(self, domain: str) -> dict[str, TensorDomain]:
        """Reads the three splits of a domain from its file."""
        if domain not in self._domains:
            path, name = self._path(domain)
            table = self._open(path, name)
            parts = self._parts(path, table)
            last = self.samples_last and path.suffix.lower() in (".npz", ".npy", ".mat")
            xs = [_samples(path, key, table.entries[key], last) for key in (table.x_key + part for part in parts)]
            sizes = [len(x) for x in xs]
            if not sum(sizes):
                raise DataError(f"{path}: {table.x_key or 'the table'!r} holds no samples; write the file anew")
            if len({x.shape[1:] for x in xs}) > 1:
                raise DataError(f"{path}: the splits differ in shape: {', '.join(str(x.shape) for x in xs)}")
            ys = [
                _labels(path, key, table.entries.get(key), size)
                for key, size in zip((table.y_key + part for part in parts), sizes, strict=True)
            ]
            x, labels = np.concatenate(xs), np.concatenate(ys)
            classes: list[str] = []
            numbers = None
            if self.regression:
                y, values = encode_numbers(path, table.y_key, labels)
                numbers = torch.tensor(values)
            else:
                y, classes = encode_labels(path, table.y_key, labels)
            if domain in self.named["source"] and (y == UNKNOWN).all():
                self._no_labels = DataError(
                    f"{path}: the source needs labels, but there are none in {table.y_key!r}; "
                    f"{list_choices(table.y_key, table.names)} (--data.y_key or --data.label_column)"
                )
                if len(self.domains) < 2:
                    raise self._no_labels
            given = None if parts == [""] else np.repeat([part[1:] for part in parts], sizes)
            splits = self.split(domain, y, given)
            if self.protocol == "all":
                splits = dict.fromkeys(SPLITS, np.arange(len(y)))
            names = [
                f"{part[1:]} {row}".strip() for part, size in zip(parts, sizes, strict=True) for row in range(size)
            ]
            self._domains[domain] = {
                split: TensorDomain(
                    torch.from_numpy(x[rows]),
                    torch.from_numpy(y[rows]),
                    classes,
                    [names[row] for row in rows],
                    numbers=numbers,
                )
                for split, rows in splits.items()
            }
        return self._domains[domain]

    @property
    def num_classes(self) -> int:
        number = super().num_classes
        if number == 0 and self._no_labels is not None:
            raise self._no_labels
        return number

    def split(self, domain: str, y: Indices, given: NDArray[np.str_] | None) -> dict[str, Indices]:  # noqa: ARG002
        """The rows of each split of a domain.

        Args:
            domain: Name of the domain.
            y: Labels, shape (n,), `UNKNOWN` where the class is unknown.
            given: Predefined split of each sample, shape (n,), None if there is none.
        """
        return split_indices(y, self.seed, self.val_share, self.test_share, given)

    def _path(self, domain: str) -> tuple[Path, str]:
        """The file of a domain, and the name of the domain in it, which is empty if the file holds one domain."""
        file, _, name = domain.rpartition(":")
        if file and Path(file).suffix.lower() in (".npz", ".mat") and not (self.root / domain).exists():
            return self.root / file, f"_{name}"
        return self.root / domain, ""

    def _parts(self, path: Path, table: "_Table") -> list[str]:
        """Suffixes of the keys, one for each split, for example `_train`; an empty suffix for a file without splits."""
        if table.x_key in table.entries:
            return [""]
        parts = [f"_{split}" for split in SPLITS if f"{table.x_key}_{split}" in table.entries]
        if not {"_train", "_test"} <= set(parts):
            raise DataError(
                f"{path}: no {table.x_key!r}, and not both of '{table.x_key}_train' and '{table.x_key}_test'; "
                f"{list_choices(table.x_key, table.names)} (--data.x_key)"
            )
        return parts

    def _open(self, path: Path, name: str) -> "_Table":
        """Reads a domain from a file in the format of its suffix."""
        if path.is_dir():
            raise DataError(f"{str(path)!r} is a folder; name a file in it (--data.root, --data.source, --data.target)")
        if path.is_symlink() and not path.exists():
            raise DataError(f"{str(path)!r} is a link to {os.readlink(path)!r}, which is not there")
        if not path.is_file() and not _svmlight_parts(path):
            there = [entry.name for entry in path.parent.glob("*.*")]
            raise DataError(
                f"no file {str(path)!r}; {list_choices(path.name, there)} (--data.root, --data.source, --data.target)"
            )
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise DataError(f"{path}: cannot read {suffix!r} files, only {' '.join(SUFFIXES)}")
        try:
            if suffix == ".csv":
                return _open_csv(path, self.label_column)
            if suffix == ".npy":
                return _open_npy(path)
            if suffix in SVMLIGHT:
                return _open_svmlight(path, [self.root / domain for domain in self._every(DOMAINS)])
            keys = (self.x_key + name, self.y_key + name)
            wanted = [key + part for key in keys for part in ("", "_train", "_val", "_test")]
            entries, names = (_open_npz if suffix == ".npz" else _open_mat)(path, wanted)
            return _Table(entries, *keys, names)
        except DataError:
            raise
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a text in UTF-8 ({one_line(error)}); save it as UTF-8") from error
        except Exception as error:  # the parsers raise exceptions of many kinds
            raise DataError(f"{path}: not a readable {suffix} file ({one_line(error)}); create it again") from error


class _Table(NamedTuple):
    """Content of a file: arrays by key, the keys of samples and labels, and all names in the file."""

    entries: dict[str, Any]
    x_key: str
    y_key: str
    names: list[str]


def _open_npz(path: Path, wanted: list[str]) -> tuple[dict[str, Any], list[str]]:
    with np.load(path) as file:
        return {key: file[key] for key in wanted if key in file}, list(file)


def _open_mat(path: Path, wanted: list[str]) -> tuple[dict[str, Any], list[str]]:
    entries = scipy.io.loadmat(path, variable_names=wanted, simplify_cells=True)
    return entries, [name for name, *_ in scipy.io.whosmat(path)]


def _open_npy(path: Path) -> _Table:
    labels = path.with_name(f"{path.stem}_labels.npy")
    entries = {file.name: np.load(file) for file in (path, labels) if file.exists()}
    return _Table(entries, path.name, labels.name, [file.name for file in path.parent.glob("*.npy")])


def _svmlight_parts(path: Path) -> dict[str, Path]:
    """The files of a domain by the suffix of their keys: one file, or one for each predefined split."""
    if path.suffix.lower() not in SVMLIGHT:
        return {}
    named = {"": path} | {f"_{split}": path.with_name(f"{path.stem}_{split}{path.suffix}") for split in SPLITS}
    there = {part: file for part, file in named.items() if file.is_file()}
    return {"": path} if "" in there else there


def _open_svmlight(path: Path, domains: list[Path]) -> _Table:
    # all domains at once: a sparse file alone does not contain the number of features
    parts = _svmlight_parts(path)
    every = [file for domain in domains for file in _svmlight_parts(domain).values()]
    loaded = load_svmlight_files([*parts.values(), *every])
    keys = [f"{kind}{part}" for part in parts for kind in "xy"]
    return _Table(dict(zip(keys, loaded, strict=False)), "x", "y", keys)


def _open_csv(path: Path, label_column: str) -> _Table:
    try:
        features = read_csv(path, low_memory=False)
    except DataError:  # numbers with commas, between semicolons, look like too many values
        _check_header(path, list(pd.read_csv(path, nrows=0).columns))
        raise
    names = list(features.columns)
    _check_header(path, names)
    if features.empty:
        raise DataError(f"{path}: it has a header and no rows; write the samples below it")
    entries: dict[str, Any] = {}
    if label_column in names:
        # as text: a class may have the name "None" or "NA"
        labels = read_csv(path, usecols=[label_column], dtype=str, keep_default_na=False)
        entries[label_column] = labels[label_column].to_numpy(dtype=object)
        features = features.drop(columns=label_column)
    for column in features.columns:
        if column.startswith("Unnamed: "):
            raise DataError(
                f"{path}: column {names.index(column) + 1} has no name; if it holds row numbers, remove it (pandas: "
                "to_csv(..., index=False)); if it is a feature, give it a name"
            )
        if features[column].dtype.kind not in "biuf":
            numbers = pd.to_numeric(features[column], errors="coerce")
            row = int((numbers.isna() & features[column].notna()).to_numpy().argmax())
            raise DataError(
                f"{path}, line {row + 2}: column {column!r} holds {features[column].iloc[row]!r}, which is not a "
                f"number; replace the value or remove the column, or, if it holds the labels, set --data.label_column "
                f"{column!r}"
            )
    values = features.to_numpy(dtype=np.float64)
    if (wrong := _first_not_finite(values)) is not None:
        raise DataError(
            f"{path}, line {wrong[0] + 2}: column {features.columns[wrong[1]]!r} holds {values[wrong]}, which is no "
            "finite 32-bit number; remove the line or replace the value"
        )
    entries[""] = values.astype(np.float32)
    return _Table(entries, "", label_column, names)


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Refuses a table with another separator, or without a line of names."""
    separator = next((mark for mark in ";\t|" if mark in names[0]), None)
    if len(names) == 1 and separator is not None:
        raise DataError(
            f"{path}: the columns are separated by {separator!r}; save the table with commas between columns and "
            "points in numbers"
        )
    value = next((name for name in names if re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", name, re.IGNORECASE)), None)
    if value is not None:
        raise DataError(f"{path}: the first line holds the value {value}; it must hold the names of the columns")


def _first_not_finite(values: Array) -> tuple[int, ...] | None:
    """The place of the first value that is NaN, infinite or too large for 32 bits."""
    wrong = ~(np.abs(values) <= np.finfo(np.float32).max)
    return tuple(int(place) for place in np.argwhere(wrong)[0]) if wrong.any() else None


def _samples(path: Path, key: str, entry: Any, samples_last: bool) -> Array:
    """Vectors (n, d) of float32, or images (n, c, h, w) of uint8 or float32."""
    x: Array = np.asarray(entry.toarray() if hasattr(entry, "toarray") else entry)
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3, 4):
        raise DataError(
            f"{path}: {key!r} is of type {x.dtype} and shape {x.shape}; it must hold numbers of shape (n, d), "
            "(n, h, w), (n, h, w, c) or (n, c, h, w)"
        )
    if samples_last:
        x = np.moveaxis(x, -1, 0)
    if 0 in x.shape[1:]:
        raise DataError(f"{path}: {key!r} has shape {x.shape}, so its samples hold no values; write the file anew")
    if x.dtype.kind == "f" and (wrong := _first_not_finite(x)) is not None:
        raise DataError(
            f"{path}: sample {wrong[0]} of {key!r}, counted from 0, holds {x[wrong]}, which is no finite 32-bit "
            "number; remove the sample or replace the value"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] <= 4:
        x = np.moveaxis(x, 3, 1)
    if x.ndim == 4 and x.shape[1] > 4:
        raise DataError(f"{path}: {key!r} of shape {x.shape} has no channel dimension of size 1 to 4")
    return x if x.ndim == 4 and x.dtype == np.uint8 else x.astype(np.float32)


def _labels(path: Path, key: str, entry: Any, size: int) -> Array:
    """Labels as integers, floats or text, shape (size,); all None if the file has no labels."""
    y: Array = np.full(size, None) if entry is None else np.asarray(entry)
    if y.size != size or size not in y.shape:
        raise DataError(
            f"{path}: {key!r} has shape {y.shape}, but there are {size} samples; each sample needs one label (if the "
            "last dimension counts the samples, set --data.samples_last true)"
        )
    return (y.astype(str) if y.dtype.kind == "S" else y).ravel().astype(object)
