"""Names of domains: of one, of several that are one source or target, in runs and in metrics."""

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
    """The names of domains in metrics: short ones, unless two are the same, and without slashes."""
    short = [short_name(domain) for domain in domains]
    return [name.replace("/", "_") for name in (short if len(set(short)) == len(short) else domains)]
