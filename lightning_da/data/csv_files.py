"""CSV files, read without guesses."""

import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_da.data.datasets import DataError


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """A CSV file as pandas reads it, but its first value is never taken for the name of a row.

    Raises:
        DataError: If a row has more values than the header has names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table: pd.DataFrame = pd.read_csv(path, index_col=False, **options)
    except pd.errors.ParserWarning as error:
        raise DataError(
            f"{path}: a row has more values than the header has names; name each column, or remove the values"
        ) from error
    return table
