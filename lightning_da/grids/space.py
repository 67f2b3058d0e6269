"""The space of a search: a YAML file that gives each option a range or choices."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_da.errors import ConfigError, list_choices
from lightning_da.signatures import full_spelling

RANGE = ("low", "high", "log", "step")
EXAMPLE = "for example `model.init_args.lr: {low: 0.0001, high: 0.01, log: true}` or `{choices: [16, 32]}`"

EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
"""Numbers that YAML reads as text, for example 1e-4."""


def read_space(path: Path) -> dict[str, BaseDistribution]:
    """The distribution of each option in a space file.

    Each key is an option of `fit`. Its value is a range, `{low: 0.1, high: 10, log: true}` (two whole numbers are a
    range of whole numbers; `step` is optional), or `{choices: [...]}` with any values.

    Args:
        path: The YAML file.

    Raises:
        ConfigError: If the file is not such a mapping; the message names the key.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"space: {path} is no YAML file: {error}") from error
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"space: {path} has no options; {EXAMPLE}")
    space: dict[str, BaseDistribution] = {}
    for key, entry in given.items():
        name = full_spelling([f"--{key}"])[0].removeprefix("--")
        if name in space:
            raise ConfigError(f"space: {path} has {name} twice")
        try:
            space[name] = _distribution(entry)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"space: {key} in {path}: {error}") from error
    for outer in space:
        if inner := [name for name in space if name.startswith(f"{outer}.")]:
            raise ConfigError(
                f"space: {inner[0]} in {path} is a part of {outer}; for choices of a class give {outer}.class_path"
            )
    return space


def _distribution(entry: Any) -> BaseDistribution:
    if not isinstance(entry, dict):
        raise ConfigError(f"{entry!r} is no range and no choices; {EXAMPLE}")
    if "choices" in entry:
        if len(entry) > 1 or not isinstance(entry["choices"], list) or len(entry["choices"]) < 2:
            raise ConfigError(f"choices are a list of at least two values, without other keys; {EXAMPLE}")
        choices = [float(c) if isinstance(c, str) and EXPONENT.fullmatch(c) else c for c in entry["choices"]]
        texts = [json.dumps(choice, sort_keys=True) for choice in choices]
        if len(set(texts)) < len(texts):
            raise ConfigError("a choice is there twice")
        return CategoricalDistribution(texts)
    if unknown := [key for key in entry if key not in RANGE]:
        raise ConfigError(f"no key {unknown[0]!r}; {list_choices(str(unknown[0]), (*RANGE, 'choices'))}")
    if "low" not in entry or "high" not in entry:
        raise ConfigError(f"a range has low and high; {EXAMPLE}")
    low, high, step = (_number(entry.get(key)) for key in ("low", "high", "step"))
    log = entry.get("log", False)
    if not isinstance(log, bool) or low is None or high is None:
        raise ConfigError(f"low and high are numbers, and log is true or false; {EXAMPLE}")
    if not low < high or (log and (low <= 0 or step is not None)):
        raise ConfigError(f"low {low} is not less than high {high}, or log is set with low of 0 or less, or with step")
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"step {step} is not between 0 and high - low")
    if all(isinstance(value, int) for value in (low, high, 1 if step is None else step)):
        return IntDistribution(int(low), int(high), log, 1 if step is None else int(step))
    return FloatDistribution(low, high, log, step)


def _number(value: Any) -> int | float | None:
    """A number, also if YAML has read it as text."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    number = float(value)
    if isinstance(value, bool) or number - number != 0:
        raise ConfigError(f"{value} is no finite number")
    return number


def value_of(distribution: BaseDistribution, value: Any) -> Any:
    """The value of an option, from the value of a trial."""
    return json.loads(value) if isinstance(distribution, CategoricalDistribution) else value


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Options of the command line, `--key=value`."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def as_yaml(values: Mapping[str, Any]) -> str:
    """The options as a file for `--config`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        place = tree
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return yaml.safe_dump(tree)


def corners(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Settings that hold, together, each end of each range and each choice."""
    ends = {
        key: [value_of(entry, text) for text in entry.choices]
        if isinstance(entry, CategoricalDistribution)
        else [entry.low, entry.high]  # type: ignore[attr-defined]
        for key, entry in space.items()
    }
    most = max(map(len, ends.values()))
    return [{key: values[min(place, len(values) - 1)] for key, values in ends.items()} for place in range(most)]
