import difflib
import math
from collections.abc import Iterable
from numbers import Real


class ConfigError(ValueError):
    """Invalid arguments, data or runs; the message names the cause and the remedy."""


class RunError(RuntimeError):
    """A command that failed while it ran, on valid input; the message names the cause and what to try."""


class InterruptionError(RunError):
    """A fit that was asked to end; the message says how to go on."""


def one_line(error: object) -> str:
    """The text of an error without line breaks, at most 400 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:396]} ..."


def list_choices(name: str, choices: Iterable[str]) -> str:
    """Text for the end of a message about an unknown name: the most similar choice, and the first 20 choices."""
    choices = sorted(set(choices))
    near = difflib.get_close_matches(name, choices, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(map(repr, choices[:20]))
    if len(shown) > 250:
        shown = shown[:250].rpartition(", ")[0]
    more = " ..." if len(shown) < len(", ".join(map(repr, choices))) else ""
    return f"{meant}there are: {shown or 'none'}{more}"


def check_range(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, above: float = -math.inf
) -> None:
    """Checks a number, or each number of a list.

    Args:
        name: Name of the option in the error message.
        value: The number or the list.
        low: The smallest value.
        high: The largest value.
        above: What a value must be more than.

    Raises:
        ConfigError: If a value is no finite number, or outside the bounds.
    """
    for number in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ConfigError(f"{name}: {number} is not a finite number")
        size = float(number)
        if size < low:
            raise ConfigError(f"{name}: {number} is less than {low}")
        if size > high:
            raise ConfigError(f"{name}: {number} is more than {high}")
        if size <= above:
            raise ConfigError(f"{name}: {number} is not more than {above}")
