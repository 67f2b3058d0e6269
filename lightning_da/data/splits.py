"""Stratified random splits into training, validation and test."""

import numpy as np
from numpy.typing import NDArray

from lightning_da.data.base import SPLITS, DataError
from lightning_da.errors import check_range

Indices = NDArray[np.int64]

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders that are splits, and their split."""


def split_indices(
    labels: Indices,
    seed: int,
    val_share: float = 0.1,
    test_share: float = 0.2,
    given: NDArray[np.str_] | None = None,
) -> dict[str, Indices]:
    """Splits samples into disjoint training, validation and test parts, stratified by label.

    Equal arguments give equal parts. The number of samples of a class in a part is proportional, to within two.

    Args:
        labels: Shape (n,); samples without a label count as one class.
        seed: Equal seeds give equal parts.
        val_share: Fraction of samples for validation; if `given` has no `val`, a fraction of its `train` samples.
        test_share: Fraction of samples for test, if `given` is None.
        given: Predefined split of each sample, shape (n,); `val` may be missing.

    Returns:
        Ascending indices for each of `train`, `val` and `test`; together they contain all samples.

    Raises:
        ConfigError: If the shares leave nothing to train on, or the seed is negative.
    """
    check_range("data.val_share", val_share)
    check_range("data.test_share", test_share)
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise DataError(
            f"data.val_share ({val_share}) and data.test_share ({test_share}) must be at least 0 and add up to less "
            "than 1: the remaining samples are the training split"
        )
    check_range("data.seed", seed, 0)
    generator = np.random.default_rng(seed)
    if given is None:
        rest, test = _draw(np.arange(len(labels)), labels, round(test_share * len(labels)), generator)
        train, val = _draw(rest, labels, round(val_share * len(labels)), generator)
    else:
        train, val, test = (np.flatnonzero(given == split) for split in SPLITS)
        if not len(val):
            train, val = _draw(train, labels, round(val_share * len(train)), generator)
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def _draw(indices: Indices, labels: Indices, size: int, generator: np.random.Generator) -> tuple[Indices, Indices]:
    """Draws `size` samples at equal distances from the shuffled samples sorted by label; returns (rest, drawn)."""
    indices = generator.permutation(indices)
    indices = indices[np.argsort(labels[indices], kind="stable")]
    drawn = ((np.arange(size) + 0.5) * (len(indices) / max(size, 1))).astype(np.int64)
    return np.delete(indices, drawn), indices[drawn]


def check_apart(trained: dict[str, str], tested: dict[str, str], how: str, where: str) -> None:
    """Checks that training and test share no sample.

    Args:
        trained: Result of `DomainPairDataModule.trained_on`.
        tested: Result of `DomainPairDataModule.tested`.
        how: Text of the message after the name of the training sample.
        where: End of the message.

    Raises:
        DataError: If a sample is in both.
    """
    for twin, name in trained.items():
        if twin in tested:
            raise DataError(f"{name} {how}, and is {tested[twin]} {where}")
