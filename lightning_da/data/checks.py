"""Checks of the samples, labels and names of domains, with the errors that they raise."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_da.data.class_sets import listed, only, setting
from lightning_da.data.datasets import UNKNOWN, DataError, TensorDomain
from lightning_da.data.loading import in_chunks
from lightning_da.names import members

LOOKED_AT = 32
"""Samples of a split that are checked, if it is not held in memory."""
FAR = 50
"""So many times as large are the values of one domain that is refused."""


class Look(NamedTuple):
    """What was seen of the samples of a domain.

    Attributes:
        shape: Shape of a sample.
        reach: The largest absolute value.
    """

    shape: tuple[int, ...]
    reach: float


def look_at(
    domain: str, splits: Mapping[str, Any], num_classes: int, supervised: bool, regression: bool, masks: bool
) -> Look:
    """Checks the samples of a domain: all of them if they are in memory, otherwise some of each split.

    Args:
        domain: Its name.
        splits: Its data sets.
        num_classes: Number of classes.
        supervised: Whether training reads its labels.
        regression: Whether the labels are numbers.
        masks: Whether the labels are masks.

    Raises:
        DataError: If a value is not finite, a label is none of the classes, or a label that training reads is missing.
    """
    reach, shape = 0.0, tuple[int, ...]((0,))
    drawn: set[int] = set()
    for split, dataset in splits.items():
        step = 1 if isinstance(dataset, TensorDomain) else max(len(dataset) // LOOKED_AT, 1)
        start = 0
        for x, y in in_chunks(dataset, range(0, len(dataset), step)):
            finite = x.flatten(1).isfinite().all(dim=1)
            if not finite.all():
                raise DataError(
                    f"domain {domain!r}: sample {start + step * int((~finite).nonzero()[0])} of the {split} split "
                    "holds NaN or infinite values; remove or replace them"
                )
            wrong = y[(y < UNKNOWN) | (y >= num_classes)]
            if len(wrong) and not regression:
                raise DataError(
                    f"domain {domain!r}: label {int(wrong[0])} in the {split} split is out of range; the "
                    f"{num_classes} classes are labelled 0 to {num_classes - 1}"
                )
            if masks and split == "train":
                drawn |= set(y.unique().tolist()) - {UNKNOWN}
            shape, reach = tuple(x.shape[1:]), max(reach, float(x.abs().max()))
            start += step * len(x)
    if supervised and not (torch.as_tensor(splits["train"].y) != UNKNOWN).any():
        raise DataError(
            f"domain {domain!r}: its training labels are needed, but no sample has one; add labels, or choose another "
            "domain to train on with --model.train_on"
        )
    if supervised and len(drawn) == 1:
        raise DataError(
            f"domain {domain!r}: each pixel with a class in its training masks has the value {drawn.pop()}, so there "
            f"is nothing to learn; the values of masks are 0 to {num_classes - 1}"
        )
    return Look(shape, reach)


def check_shapes(looks: Mapping[str, Look]) -> None:
    """Refuses domains whose samples differ in shape."""
    (first, (shape, _)), *others = looks.items()
    for domain, look in others:
        if look.shape != shape:
            raise DataError(
                f"samples differ in shape (channels first): {shape} in domain {first!r}, {look.shape} in domain "
                f"{domain!r}; give both domains the same shape"
            )


def check_ranges(looks: Mapping[str, Look], remedy: str) -> None:
    """Refuses domains of which one has values that are many times as large.

    Args:
        looks: What was seen of each domain.
        remedy: What else can be done about it.
    """
    small, large = (best(looks, key=lambda domain: looks[domain].reach) for best in (min, max))
    if looks[large].reach > FAR * looks[small].reach:
        both = " and ".join(f"{looks[name].reach:.4g} in domain {name!r}" for name in looks if name in (small, large))
        raise DataError(
            f"value ranges differ: the largest value is {both}; scale both domains equally (is one 0..1 and the other "
            f"0..255?){remedy}"
        )


def check_names(role: str, given: str | Sequence[str] | None) -> None:
    """Refuses a list without a domain, an empty name, and a name that is there twice."""
    names = members(given)
    if given is not None and (not names or not all(names)):
        raise DataError(f"data.{role}: {'the list' if not names else 'the name'} is empty; name a domain")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise DataError(f"data.{role}: domain {repeated[0]!r} is named twice")


def same_samples(one: Any, other: Any) -> bool:
    """Whether two data sets have the same samples, whatever their labels; by files or digest if not in memory."""
    if isinstance(one, TensorDomain) and isinstance(other, TensorDomain):
        return one.x.shape == other.x.shape and torch.equal(one.x, other.x)
    if type(one) is type(other) and hasattr(one, "has_same_files"):
        return bool(one.has_same_files(other))
    return bool(one.fingerprint() == other.fingerprint())


def empty(domain: str, split: str) -> DataError:
    """The error for a split without samples."""
    return DataError(
        f"domain {domain!r}: the {split} split is empty; each domain needs training, validation and test samples, so "
        "give it more samples or other splits"
    )


def differing(
    one: tuple[str, Sequence[str]], other: tuple[str, Sequence[str]], source: Sequence[str], target: Sequence[str]
) -> DataError:
    """The error for two domains with other classes.

    Args:
        one: Name and classes of a domain.
        other: The same of another domain.
        source: The classes of all source domains.
        target: The classes of all target domains.
    """
    (first, classes), (domain, own) = one, other
    text = f"classes differ: domain {first!r} has {_only(classes, own)}, domain {domain!r} has {_only(own, classes)}; "
    alike = {name.strip().casefold() for name in classes} == {name.strip().casefold() for name in own}
    if alike and set(classes) != set(own):
        return DataError(f"{text}they differ in capitals or spaces alone: write each name alike in both domains")
    wanted, kind = "open" if only(target, source) else "partial", setting(source, target) or "other"
    text += (
        "both need the same class names in the same order. Two tasks with classes of their own are for --config "
        "method/multi_task.yaml, or for one fit after the other: --data.source null, with --model.init_from the second "
        "time"
    )
    if set(own) != set(classes) and set(own) & set(classes):
        text += f", one task on {kind} classes for --data.class_sets {wanted}"
    return DataError(text)


def _only(classes: Sequence[str], others: Sequence[str]) -> str:
    own = only(classes, others)
    return f"{listed(own)} alone" if own else f"{len(classes)} classes, {listed(classes)}"


def warn_of_missing_classes(
    domain: str, splits: Mapping[str, Any], classes: Sequence[str], expected: Sequence[str]
) -> None:
    """Warns of classes without a sample in a split that has labels.

    Args:
        domain: Name of the domain.
        splits: Its data sets.
        classes: The classes of the labels.
        expected: Those that the domain has.
    """
    lacking: dict[str, list[str]] = {}
    for split, dataset in splits.items():
        there = set(dataset.y.tolist()) - {UNKNOWN}
        for name in expected if there else ():
            if classes.index(name) not in there:
                lacking.setdefault(name, []).append(split)
    if lacking:
        named = [f"{name!r} in {' and '.join(places)}" for name, places in list(lacking.items())[:5]]
        more = f" and {len(lacking) - 5} more classes" if len(lacking) > 5 else ""
        rank_zero_warn(f"domain {domain!r}: there is no sample of class {', '.join(named)}{more}")
