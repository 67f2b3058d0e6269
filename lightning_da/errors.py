import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Invalid arguments, data or runs; the message names the cause and the remedy."""


def list_choices(name: str, choices: Iterable[str]) -> str:
    """Text for the end of a message about an unknown name: the most similar choice, and up to 20 choices."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    more = " ..." if len(choices) > 20 else ""
    return f"{meant}there are: {', '.join(map(repr, choices[:20])) or 'none'}{more}"
