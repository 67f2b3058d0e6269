"""Descriptions of classes by attributes, for zero-shot learning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_da.data.csv_files import read_csv
from lightning_da.errors import ConfigError, list_choices, one_line

SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Descriptions(NamedTuple):
    """Attributes of classes.

    Attributes:
        origin: Where they come from, for messages.
        classes: Names of the classes.
        attributes: Names of the attributes.
        values: Shape (classes, attributes), float32.
    """

    origin: str
    classes: list[str]
    attributes: list[str]
    values: NDArray[np.float32]

    def of(self, classes: Sequence[str]) -> Tensor:
        """The attributes of classes, shape (len(classes), attributes).

        Raises:
            ConfigError: If a class is not described.
        """
        for name in classes:
            if name not in self.classes:
                raise ConfigError(
                    f"{self.origin}: class {name!r} is not described; {list_choices(name, self.classes)} "
                    "(the first row of a table names its columns)"
                )
        return torch.from_numpy(self.values[[self.classes.index(name) for name in classes]])


def read_descriptions(path: Path) -> Descriptions:
    """Reads descriptions of classes from a file.

    `.csv` and `.tsv`: a row for each class, its name in the first column, an attribute in each other column. `.npz`:
    `classes` (n,), `values` (n, m) and, optionally, `attributes` (m,).

    Args:
        path: The file.

    Raises:
        ConfigError: If there is no such file, it is no such table, a class has two rows, or a value is missing: empty,
            no number, NaN, or -1 among values that are otherwise not negative.
    """
    if not path.is_file():
        raise ConfigError(f"data.descriptions: no file {str(path.absolute())!r}; it is not looked for below data.root")
    suffix = path.suffix.lower()
    if suffix in SEPARATORS:
        names, attributes, values = _table(path, SEPARATORS[suffix])
    elif suffix == ".npz":
        names, attributes, values = _arrays(path)
    else:
        raise ConfigError(f"data.descriptions: cannot read {path}; give a .csv, .tsv or .npz file")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: class {repeated[0]!r} has two descriptions; remove one")
    missing = ~np.isfinite(values)
    if (values[values != -1] >= 0).all():  # NaN is neither
        missing |= values == -1
    if missing.any():
        row, column = map(int, np.argwhere(missing)[0])
        raise ConfigError(
            f"{path}: attribute {attributes[column]!r} of class {names[row]!r} is missing ({values[row, column]:g}); "
            "give a number, or remove the attribute"
        )
    return Descriptions(str(path), names, attributes, values)


Parts = tuple[list[str], list[str], NDArray[np.float32]]


def _table(path: Path, separator: str) -> Parts:
    try:
        # as text: a class may have the name "None" or "1"
        table = read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (UnicodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ConfigError(f"{path}: not a table in UTF-8 ({one_line(error)})") from error
    if not len(table) or len(table.columns) < 2:
        sign = "comma" if separator == "," else "tab"
        raise ConfigError(
            f"{path}: a table of classes has a row for each class, and a column for each attribute; between columns "
            f"of a {path.suffix} file stands a {sign}"
        )
    values = table.iloc[:, 1:].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    return [name.strip() for name in table.iloc[:, 0]], list(table.columns[1:]), values


def _arrays(path: Path) -> Parts:
    try:
        with np.load(path) as file:
            found: dict[str, Any] = dict(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error
    for key in ("classes", "values"):
        if key not in found:
            raise ConfigError(f"{path}: no {key!r}; {list_choices(key, found)}")
    names, values = found["classes"], found["values"]
    attributes = found.get("attributes", np.arange(values.shape[-1]))
    if values.dtype.kind not in "biuf" or values.shape != (len(names), len(attributes)) or not values.size:
        raise ConfigError(
            f"{path}: 'values' is of type {values.dtype} and shape {values.shape}, for {len(names)} classes and "
            f"{len(attributes)} attributes"
        )
    return [str(name) for name in names], [str(name) for name in attributes], values.astype(np.float32)
