import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from numbers import Real

_WRAPPED = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback.*^[\w.]+: ", re.DOTALL | re.MULTILINE
)
"""What torch puts before the message of an exception in a process that loads samples."""
_KILLED = ("DataLoader worker (pid", "Pin memory thread exited unexpectedly")
"""What torch says when a process that loads samples was killed."""


class ConfigError(ValueError):
    """Invalid arguments, data or runs; the message names the cause and the remedy."""


class RunError(RuntimeError):
    """A command that failed while it ran, on valid input; the message names the cause and what to try."""


class InterruptionError(RunError):
    """A fit that was asked to end; the message says how to go on."""


def one_line(error: object) -> str:
    """The text of an error without line breaks and torch's traceback of a loading process, at most 400 characters."""
    text = " ".join(_WRAPPED.sub("", str(error)).split())
    return text if len(text) <= 400 else f"{text[:396]} ..."


def first_line(error: object) -> str:
    """The first line of the text of an error, for those of torch that have a whole graph below it."""
    return one_line(str(error).strip().partition("\n")[0])


@contextmanager
def loading_errors() -> Iterator[None]:
    """Makes an error of the processes that load samples one of this project; not with `LIGHTNING_DA_DEBUG=1`.

    Raises:
        ConfigError: As the loading process raised it, without the traceback in its text.
        RunError: If a loading process was killed.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("LIGHTNING_DA_DEBUG"):
            raise
        if isinstance(error, ConfigError) and _WRAPPED.match(str(error)):
            raise type(error)(_WRAPPED.sub("", str(error)).strip()) from error
        if killed := _killed(error):
            raise RunError(
                f"a process that loads samples was killed, perhaps for lack of memory ({killed}); set fewer with "
                "--data.num_workers, or a smaller --data.batch_size, or use smaller images"
            ) from error
        raise


def _killed(error: BaseException) -> str:
    """What torch says of a killed loading process; empty if an error has another cause."""
    # torch says it in a signal handler, at whatever the program does then, so that it can be the cause of another error
    found: BaseException | None = error
    while found is not None and not str(found).startswith(_KILLED):
        found = found.__cause__ or found.__context__
    if found is None and isinstance(error, ConnectionResetError):  # torch reads from it and does not know yet
        found = error
    return "" if found is None else one_line(found).rstrip(".")


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


def check_metric_learning(what: str) -> None:
    """Checks that pytorch-metric-learning is installed.

    Args:
        what: What needs it, in the error message.

    Raises:
        ConfigError: If it is not installed.
    """
    if find_spec("pytorch_metric_learning") is None:
        raise ConfigError(
            f"{what} needs the package pytorch-metric-learning: pip install 'pytorch-metric-learning>=2.8,<3', or "
            "install this project with the extra [metric]"
        )
