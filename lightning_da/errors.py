import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Arguments, data or runs that cannot be worked with; the message names the culprit and says what to do."""


def list_choices(name: str, choices: Iterable[str]) -> str:
    """Ends a message on a name that is not there: the nearest of those that are, and the first of all."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    more = " ..." if len(choices) > 20 else ""
    return f"{meant}there are: {', '.join(map(repr, choices[:20])) or 'none'}{more}"
