"""Classes that one domain has and the other lacks: closed, partial and open sets."""

from collections.abc import Sequence
from typing import Literal

ClassSets = Literal["closed", "partial", "open"]
"""`closed`: both domains have the same classes; `partial`: the source may have more; `open`: each may have more."""

UNKNOWN_CLASS = "unknown"
"""The class of all target samples whose class the source lacks, with `open`."""


def only(classes: Sequence[str], others: Sequence[str]) -> list[str]:
    """The classes of one domain that the other lacks, in order."""
    return [name for name in classes if name not in others]


def joined(source: Sequence[str], target: Sequence[str], class_sets: ClassSets) -> list[str]:
    """The classes of a pair in the order of the labels.

    Those of the source come first, then those that the target alone has, which are one class `unknown` with `open`.
    """
    return [*source, *([UNKNOWN_CLASS] if class_sets == "open" else only(target, source))]


def setting(source: Sequence[str], target: Sequence[str]) -> str:
    """The setting of two domains, in the words of the field; empty if their classes are the same.

    Source: Busto and Gall, "Open set domain adaptation", ICCV 2017; Cao et al., "Partial adversarial domain
    adaptation", ECCV 2018; You et al., "Universal domain adaptation", CVPR 2019, for sets that are both.

    Examples:
        >>> setting(["cat", "dog"], ["cat", "dog", "horse"])
        'open-set'
    """
    more_in_source, more_in_target = only(source, target), only(target, source)
    if more_in_source and more_in_target:
        return "open-set and partial"
    return "open-set" if more_in_target else "partial" if more_in_source else ""


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in quotes; after `most` of them three dots."""
    return f"{', '.join(map(repr, names[:most]))}{' ...' if len(names) > most else ''}"
