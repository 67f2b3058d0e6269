"""Names of options, read from source code without importing it: a typo is found before anything slow is loaded."""

import ast
import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from lightning_da.errors import ConfigError

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
OPTIONS = (
    *("config", "print_config", "seed_everything", "trainer", "name", "after", "published", "predictions", "model"),
    *("data", "ckpt_path", "help"),
)
"""Options of `fit`, `validate`, `test` and `predict`, up to the first dot."""
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs", "help")
NETWORK = tuple(f"model.init_args.{name}" for name in ("backbone", "bottleneck", "estimator", "optimizer"))
CLASSES = ("model", "data", "trainer.logger", *NETWORK)
"""Options that take a class, whose arguments may be spelled without `init_args`."""


def unknown_key(key: str, known: Iterable[str], owner: str | None = None) -> str:
    """The error message for an unknown key, with the most similar known key.

    Args:
        key: The key, with dots if it is nested.
        known: All known keys.
        owner: Path of the class whose arguments they are; None for command-line options.
    """
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {key!r}{f' of {owner}' if owner else ''}; {hint}"


def full_spelling(words: Sequence[str]) -> list[str]:
    """The words of a command line, with `init_args` added to options in the short spelling.

    `--model.layers` becomes `--model.init_args.layers`, and `--model.backbone.hidden` becomes
    `--model.init_args.backbone.init_args.hidden`.
    """
    spelled = []
    for word in words:
        for key in CLASSES:
            found = re.match(rf"--{re.escape(key)}\.(\w+)", word)
            if found and found.group(1) not in CLASS_KEYS:
                word = f"--{key}.init_args{word.removeprefix(f'--{key}')}"  # noqa: PLW2901
        spelled.append(word)
    return spelled


def check_options(words: Sequence[str], all_known: bool) -> None:
    """Checks the option names of a command line, as far as possible without imports.

    Args:
        words: The words of a command, with the paths of its files (`lightning_da.paths.with_found_configs`).
        all_known: Whether the command has no options but `OPTIONS`.

    Raises:
        ConfigError: If the trainer, the method or the data have no such option, or a file is given for a class.
    """
    words = full_spelling(words)
    for word, value in _pairs(words):
        if word[2:] in CLASSES and not value.endswith((".yaml", ".yml")) and Path(value).exists():
            raise ConfigError(_no_class(word[2:], value))
    options = [word[2:].split("=", 1)[0] for word in words if word.startswith("--") and len(word) > 2]
    for option in options:
        first, _, rest = option.partition(".")
        if all_known and first not in OPTIONS:
            raise ConfigError(unknown_key(option, OPTIONS))
        if first == "trainer" and rest and (known := arguments(TRAINER)):
            _check(rest.split(".")[0], known, prefix="trainer.")
        keys = option.split(".")
        for place in (place for place, key in enumerate(keys[:-1]) if key == "init_args"):
            owner = class_path(words, ".".join(keys[:place]))
            if owner and (known := arguments(owner)):
                _check(keys[place + 1], known, owner)


def _check(key: str, known: Sequence[str], owner: str | None = None, prefix: str = "") -> None:
    if key.rstrip("+") not in known:
        raise ConfigError(unknown_key(prefix + key, [prefix + name for name in known], owner))


def class_path(words: Sequence[str], part: str) -> str | None:
    """The class path of a part, the last one that a file or an option gives.

    Args:
        words: The words of a command, in the full spelling and with the paths of its files.
        part: `model`, `data` or `model.init_args.backbone`, for example.
    """
    found: str | None = None
    for word, value in _pairs(words):
        if word in ("--config", "-c"):
            found = _class_in(value, part) or found
        elif word in (f"--{part}", f"--{part}.class_path"):
            found = value
    return found


def _pairs(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Each word of a command line with its value: the text behind its equals sign, or else the next word."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        yield option, value if equals else following


def _no_class(key: str, path: str) -> str:
    """The error message for a file or a folder in place of a class."""
    kind, key = "file" if Path(path).is_file() else "folder", key.replace(".init_args", "")
    option = "--data.root" if kind == "folder" else "--data.source"
    hint = f"for data in it: --config data/NAME.yaml {option} {path}" if key == "data" else "name a class"
    return f"{key}: {path!r} is a {kind}, not the name of a class; {hint}"


def _class_in(path: str, part: str) -> str | None:
    try:
        content: Any = yaml.safe_load(Path(path).read_text())
        for key in part.split("."):
            content = content.get(key) or {}
        given = content if isinstance(content, str) else content.get("class_path")
        return given if isinstance(given, str) else None
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None  # the parser reports the error


@cache
def arguments(class_path: str) -> tuple[str, ...]:
    """Names of the arguments of a class, with those that it hands on to its base class, unless it sets them itself.

    Args:
        class_path: Import path of the class.

    Returns:
        The names; none where the source does not tell them.
    """
    module, _, name = class_path.rpartition(".")
    found = _find(module, name)
    return tuple(dict.fromkeys(_arguments(*found) or ())) if found else ()


def _arguments(module: str, node: ast.ClassDef) -> list[str] | None:
    inits = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    own: list[str] = []
    if node.decorator_list:  # of a data class, whose fields are the arguments
        fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
        own = [field.id for field in fields if isinstance(field, ast.Name)]
    if inits:
        given = inits[0].args
        own = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)][1:]
        if given.kwarg is None:
            return own
    fixed = {keyword.arg for init in inits for call in ast.walk(init) if _is_of_base(call) for keyword in call.keywords}
    for base in node.bases:
        found = _find(module, base.id) if isinstance(base, ast.Name) else None
        inherited = _arguments(*found) if found else None
        if inherited is None:
            return None
        own += [name for name in inherited if name in own or name not in fixed]
    return own


def _is_of_base(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether a node is a call of `super().__init__`."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"


@cache
def _find(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """The definition of a class, and the module that holds it."""
    path = source_file(module)
    if path is None:
        return None
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_imported_from(module, path, node), alias.name)
    return None


def _imported_from(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return str(node.module)
    parents = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def imported_modules(file: Path) -> list[str]:
    """Names of the modules that a file imports, and of the names in them, which may be modules too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def source_file(module: str) -> Path | None:
    """The source file of a module; a top-level package is found without being imported."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    if not rest:
        return Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*rest)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)
