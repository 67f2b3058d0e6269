"""Names of domains: of one, of several that are one source or target, in runs and in metrics."""

import re
from collections.abc import Sequence
from pathlib import Path

Names = str | list[str]
"""One domain, or several."""


def members(named: str | Sequence[str] | None) -> tuple[str, ...]:
    """The domains of a role: none, one or several."""
    return () if named is None else (named,) if isinstance(named, str) else tuple(named)


def joined_name(named: str | Sequence[str]) -> str:
    """The name of a role: that of its domain, or those of its domains with a plus between them.

    Examples:
        >>> joined_name(["art", "photo"])
        'art+photo'
    """
    return "+".join(members(named))


def short_name(domain: str) -> str:
    """A domain without folder and suffix, or its name in a file of several; each of joined domains by itself.

    Examples:
        >>> short_name("office/amazon.mat+office.mat:webcam")
        'amazon+webcam'
    """
    return "+".join(Path(part.rpartition(":")[2]).stem for part in domain.split("+"))


def metric_names(domains: Sequence[str]) -> list[str]:
    """The names of domains in metrics: short ones, unless two are the same, of the letters that MLflow allows.

    Examples:
        >>> metric_names(["office/amazon.csv", "büro.csv"])
        ['amazon', 'b_ro']
        >>> metric_names(["ä", "ö"])
        ['__0', '__1']
    """
    short = [short_name(domain) for domain in domains]
    names = short if len(set(short)) == len(short) else domains
    found = [re.sub(r"[^\w. -]", "_", name, flags=re.ASCII) for name in names]
    unique = len(set(found)) == len(found) and all(name.strip(". ") for name in found)
    return found if unique else [f"{name}_{place}" for place, name in enumerate(found)]
