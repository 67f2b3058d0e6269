"""Tables of text, and labels in them."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightning_da.data.base import SPLITS, UNKNOWN, DataError
from lightning_da.data.splits import Indices
from lightning_da.errors import list_choices, one_line


def read_table(path: Path, needed: str, optional: Sequence[str], separator: str = ",") -> pd.DataFrame:
    """The rows of a CSV file in UTF-8 as text without spaces around it; unknown and missing values are empty.

    Args:
        path: The file; its first line names the columns.
        needed: A column that must be there.
        optional: Columns that may be there, `split` for example; the table has them in any case, and no other.
        separator: What separates the columns.

    Raises:
        DataError: If the file is larger than the memory or no such table, has no column `needed`, a column twice or
            with a misspelled name, or a value in `split` that is none of `train`, `val` and `test`.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if path.stat().st_size > memory / 4:
        raise DataError(
            f"{path}: a table of {path.stat().st_size / 1e9:.1f} GB needs four times as much memory, and there are "
            f"{memory / 1e9:.1f} GB; give fewer rows"
        )
    try:
        table: pd.DataFrame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, header=None).fillna("")
    except (UnicodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(
            f"{path}: not a table of {'tab' if separator != ',' else 'comma'}-separated values in UTF-8 "
            f"({one_line(error)}); save it as UTF-8, with quotes around a value that contains the separator"
        ) from error
    columns = [*dict.fromkeys((needed, *optional))]
    table = table.apply(lambda column: column.str.strip())
    table = table.set_axis(table.iloc[0], axis="columns").iloc[1:].reset_index(drop=True)
    table = table.drop(columns="", errors="ignore")
    if table.columns.duplicated().any():
        raise DataError(f"{path}: two columns are named {table.columns[table.columns.duplicated()][0]!r}")
    if needed not in table:
        raise DataError(f"{path}: no column {needed!r}; {list_choices(needed, table.columns)}")
    for column in sorted(set(table.columns) - set(columns)):
        near = difflib.get_close_matches(column.lower(), columns, n=1, cutoff=0.8)
        if near and near[0] not in table:
            raise DataError(
                f"{path}: column {column!r} is not read; rename it to {near[0]!r}, or to another name if it holds "
                "something else"
            )
    table = table.reindex(columns=columns, fill_value="")
    if "split" in columns and table["split"].any() and not table["split"].isin(SPLITS).all():
        wrong = table["split"][~table["split"].isin(SPLITS)].iloc[0]
        raise DataError(f"{path}: unknown split {wrong!r} in the column 'split'; {list_choices(wrong, SPLITS)}")
    return table


def encode_labels(path: Path, key: str, labels: NDArray[Any]) -> tuple[Indices, list[str]]:
    """Labels 0, 1, ... in the order of the class names, and the class names.

    If all labels are numbers, they are whole ones and sorted by their value.

    Args:
        path: The file of the labels, for the error message.
        key: Their name in the file, for the error message.
        labels: Names or numbers, shape (n,); an empty label or NaN is an unknown one.

    Returns:
        Shape (n,), `UNKNOWN` (-1) for an unknown label; and the names.

    Raises:
        DataError: If a number is no whole one, or is written in two ways, such as 1 and 01.
    """
    values: NDArray[Any] = np.array(["" if pd.isna(label) else str(label).strip() for label in labels], dtype=object)
    known = values != ""
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    if all(value.lower() in ("", "nan") for value in values[np.isnan(numbers)]):
        known = ~np.isnan(numbers)
        broken = numbers[known & (numbers != np.floor(numbers))]
        if len(broken):
            raise DataError(f"{path}: label {broken[0]} in {key!r} is neither an integer nor a name")
        written: dict[float, str] = {}
        for number, text in zip(numbers[known], values[known], strict=True):
            if text.isdigit() and written.setdefault(number, text) != text:
                raise DataError(
                    f"{path}: the labels {written[number]!r} and {text!r} in {key!r} are the same number; write it in "
                    "one way, or as names such as 'c01' if they are two classes"
                )
        values = np.where(known, numbers, UNKNOWN).astype(np.int64)
    codes = np.full(len(labels), UNKNOWN, dtype=np.int64)
    classes, inverse = np.unique(values[known], return_inverse=True)
    codes[known] = inverse
    return codes, [str(name) for name in classes]


def encode_numbers(path: Path, key: str, labels: NDArray[Any]) -> tuple[Indices, list[float]]:
    """Labels 0, 1, ... in the order of the numbers that they stand for, and these numbers.

    Args:
        path: The file of the labels, for the error message.
        key: Their name in the file, for the error message.
        labels: Numbers, or text, shape (n,); an empty label or NaN is an unknown one.

    Returns:
        Shape (n,), `UNKNOWN` (-1) for an unknown label; and the numbers.

    Raises:
        DataError: If a label is no number, or too large for 32 bits.
    """
    values = pd.Series(["" if pd.isna(label) else str(label).strip() for label in labels], dtype=object)
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    too_large = np.abs(numbers) > np.finfo(np.float32).max
    wrong = (np.isnan(numbers) & ~values.str.lower().isin(("", "nan"))) | too_large
    if wrong.any():
        raise DataError(
            f"{path}: label {values[wrong].iloc[0]!r} in {key!r} is no finite 32-bit number; replace it, or set "
            "--data.labels classes"
        )
    known = ~np.isnan(numbers)
    codes = np.full(len(numbers), UNKNOWN, dtype=np.int64)
    found, codes[known] = np.unique(numbers[known], return_inverse=True)
    return codes, found.tolist()
