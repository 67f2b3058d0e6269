"""Checks YAML files of options before a command reads them."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from lightning_da.errors import ConfigError, one_line

MOST = 100_000
"""The largest number of values in a file, with each alias written out."""

_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[\d_]+(:\d+)+)")
"""Whole numbers that YAML 1.1 reads in base 8 or 60."""

INNER = {"class_path": ("the import path of a class", "str", "null"), "init_args": ("options", "map", "null")}
OUTER = {
    "trainer": ("options", "map"),
    "model": ("a class and its options", "map", "str", "null"),
    "data": ("a class and its options", "map", "str", "null"),
}
"""What the keys of a file need, and the kinds of value in YAML that can be this."""


def check_yaml(path: Path) -> None:
    """Checks that a file holds options: one mapping, in which no key is given twice.

    Args:
        path: An existing file.

    Raises:
        ConfigError: If the file is not readable as YAML in UTF-8, is empty, holds something else than a mapping, gives
            a key twice, or holds more than `MOST` values.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}: {_kind(root)}; write options, as in 'trainer: {{max_steps: 100}}'")
        if _size(root, path, {}) > MOST:
            raise ConfigError(f"{path}: its aliases stand for more than {MOST} values; write out what is needed")
        _check_kinds(root, path, OUTER)
        yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start + 1} is not UTF-8; save the file in this encoding") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no valid YAML: {_fault(error)}") from error
    except RecursionError:
        raise ConfigError(f"{path}: its values are nested too deeply, or an alias contains itself") from None


def _kind(node: yaml.Node | None) -> str:
    """What a file holds that is no mapping."""
    if node is None:
        return "the file is empty"
    return "holds a list, not options" if isinstance(node, yaml.SequenceNode) else f"holds {node.value!r}, not options"


def _fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return one_line(error) if mark is None else f"{error.problem} in line {mark.line + 1}"  # type: ignore[attr-defined]


def _check_kinds(node: yaml.Node, path: Path, wanted: Mapping[str, tuple[str, ...]]) -> None:
    """Refuses a value of another kind than a key needs.

    Args:
        node: A part of the file.
        path: The file.
        wanted: For a key of this part what it needs, and the kinds of value in YAML that can be this.
    """
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        kind = value.tag.rpartition(":")[2]
        what, *kinds = wanted.get(str(key.value), ("", kind))
        if kind not in kinds:
            raise ConfigError(
                f"{path}, line {value.start_mark.line + 1}: {key.value} needs {what}, not a value of {kind}"
            )
        _check_kinds(value, path, INNER)


def _size(node: yaml.Node, path: Path, known: dict[yaml.Node, int]) -> int:
    """The number of values in a node, with each alias written out; refuses a key that is given twice."""
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and _OTHER_BASE.fullmatch(node.value):
        line = node.start_mark.line + 1
        raise ConfigError(
            f"{path}, line {line}: YAML reads {node.value} as {yaml.safe_load(node.value)}; write the number in base "
            "10 without zeros before it, or text in quotes"
        )
    if node not in known:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"{path}, line {line}: {key.value!r} is given twice; keep one of them")
                seen.add(str(key.value))
            parts = [part for pair in node.value for part in pair]
        known[node] = 1 + sum(_size(part, path, known) for part in parts)
    return known[node]
