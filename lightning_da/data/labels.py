"""A few labels: which samples keep theirs."""

import re

import torch
from torch import Tensor

from lightning_da.errors import ConfigError


def draw_labelled(y: Tensor, wanted: int | str, seed: int, name: str) -> Tensor:
    """Draws samples: the classes take turns, each in a random order.

    Args:
        y: Labels of the samples that have one, shape (n,).
        wanted: The number of samples, for example 10, or of each class, for example `3/class`; a class with fewer gives
            all that it has.
        seed: Equal seeds give equal samples. More samples of the same seed contain the fewer.
        name: Name of the option in error messages.

    Returns:
        Ascending indices of the drawn samples.

    Raises:
        ConfigError: If `wanted` is neither of the two, less than 1, or more than there are labels.
    """
    number, each = _number(wanted, name)
    if not each and len(y) < number:
        raise ConfigError(f"{name}: there are {len(y)} training samples with a label, fewer than {number}")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    turn = torch.empty_like(y)
    for label in y.unique():
        own = order[y[order] == label]
        turn[own] = torch.arange(len(own))
    order = order[turn[order].argsort(stable=True)]
    return (order[turn[order] < number] if each else order[:number]).sort().values


def _number(wanted: int | str, name: str) -> tuple[int, bool]:
    """The number of samples, and whether it is that of each class."""
    found = re.fullmatch(r"(\d+)\s*(/\s*class)?", str(wanted))
    if found is None or int(found.group(1)) < 1:
        raise ConfigError(f"{name}: {wanted!r} is no number of labels; give for example 10, or 3/class")
    return int(found.group(1)), found.group(2) is not None
