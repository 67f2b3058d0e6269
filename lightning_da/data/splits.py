"""What the readers of files share: the split into three, and the hint at what was meant."""

import numpy as np
from numpy.typing import NDArray

from lightning_da.data.base import SPLITS, DataError

Indices = NDArray[np.int64]


def split_indices(
    labels: Indices,
    seed: int,
    val_share: float = 0.1,
    test_share: float = 0.2,
    given: NDArray[np.str_] | None = None,
) -> dict[str, Indices]:
    """Splits samples into disjoint training, validation and test parts, stratified by label.

    Equal arguments give equal parts. In each part, a class has its share of the samples to within two.

    Args:
        labels: Shape (n,); samples without a label are a class of their own.
        seed: Equal seeds give equal parts.
        val_share: Share of the validation part, of all samples or, where `given` has none, of those to train on.
        test_share: Share of the test part, where `given` is None.
        given: The split of each sample where the data come with splits, shape (n,); `val` may be missing.

    Returns:
        Ascending indices of each of `train`, `val` and `test`; together they are all samples.

    Raises:
        DataError: If the shares leave nothing to train on, or the seed is negative.
    """
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise DataError(
            f"data.init_args.val_share ({val_share}) and test_share ({test_share}) must be at least 0 and add up to "
            "less than 1: the rest is trained on"
        )
    if seed < 0:
        raise DataError(f"data.init_args.seed: {seed} is less than 0")
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
    """What is left and what is drawn: shuffled, sorted by label, then `size` samples at equal distances."""
    indices = generator.permutation(indices)
    indices = indices[np.argsort(labels[indices], kind="stable")]
    drawn = ((np.arange(size) + 0.5) * (len(indices) / max(size, 1))).astype(np.int64)
    return np.delete(indices, drawn), indices[drawn]
