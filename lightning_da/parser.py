"""The argument parser: help of the options, and short error messages."""

import argparse
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_da.errors import ConfigError, list_choices, one_line
from lightning_da.signatures import arguments, unknown_key

HELP = {
    "seed_everything": "seed of weights, batches and dropout",
    "trainer": "YAML file with Trainer options; Trainer options that are not listed here are accepted too",
    "trainer.accelerator": "cpu, gpu, mps or auto",
    "trainer.devices": "number of devices, or list of GPUs",
    "trainer.strategy": "auto, or ddp for several devices",
    "trainer.precision": "32, bf16-mixed or 16-mixed",
    "trainer.max_steps": "number of training steps",
    "trainer.max_epochs": "number of training epochs",
    "trainer.accumulate_grad_batches": "batches per optimizer step",
    "trainer.gradient_clip_val": "largest norm of the gradient",
    "trainer.log_every_n_steps": "steps between two logged values",
    "trainer.enable_progress_bar": "whether to show a progress bar",
    "name": "name of the method in run names and tables",
    "after": "method of the first stage, which `fit` trains before this one: a name in conf/method or a YAML file",
    "published": "published target accuracy, shown beside that of the runs",
    "predictions": "YAML file with the option below",
    "predictions.path": "CSV file that `predict` writes",
    "model": "class of the method; its arguments are --model.NAME",
    "data": "class of the data module; its arguments are --data.NAME",
    "ckpt_path": "checkpoint file, run id or run name (default: the run with the name of this configuration); "
    "for fit, a checkpoint to resume from",
}
"""Help of the options that `--help` lists."""

MISSING = {
    "model": "no method is given; add --config method/NAME.yaml (files of the folder conf)",
    "data": "no data are given; add --config data/NAME.yaml (files of the folder conf)",
    "backbone": "no backbone is given; add --config backbone/NAME.yaml, or a data file with one, such as digits.yaml",
}


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "path": "an import path",
}
"""What a value is called that the parser wants."""


_AS_BASE = re.compile(r"- Problem with given class_path 'lightning\.Callback':\s*Option '\w+' is not accepted")
"""What the parser says when it tries a callback's option on the base class, after that of the callback itself."""

OF_FIT = {"config", "help", "print_config", *(key for key in HELP if "." not in key)}
"""The options of `fit` without a dot."""


class CommandParser(argparse.ArgumentParser):
    """The parser of a command's own options: a mistake is a `ConfigError`, without the usage.

    Options cannot be abbreviated. Options that it does not know are those of `fit`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, others = super().parse_known_args(args, namespace)
        known = [name.removeprefix("--") for name in self._option_string_actions if name.startswith("--")]
        for word in others:
            name = word.split("=")[0].removeprefix("--")
            if word.startswith("--") and "." not in name and name not in OF_FIT:
                self.error(unknown_key(name, known))
        return found, others

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class Parser(LightningArgumentParser):
    """A parser with short help and error messages; options cannot be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._hidden: list[argparse.Action] = []

    def describe(self) -> None:
        """Sets the help of the options in `HELP`, and hides the other trainer options in `--help`.

        Hidden options are still parsed and recorded.
        """
        for action in self._actions:
            if action.dest in HELP:
                action.help = HELP[action.dest]
            elif action.dest.startswith("trainer."):
                self._hidden.append(action)
        for group in self._action_groups:
            if "TransferModule" in str(group.title):
                group.title = "Method"

    def format_help(self, formatter: Any = None) -> str:
        help_of = {action: action.help for action in self._hidden}
        try:
            for action in self._hidden:
                action.help = argparse.SUPPRESS
            return super().format_help(formatter)
        finally:
            for action, text in help_of.items():
                action.help = text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigError(_plain(message, self)) from ex


def _plain(message: str, parser: Parser) -> str:
    """The cause of a parser error in one short message, with the nearest known name."""
    message = _AS_BASE.sub("", message)
    unknown = re.search(
        r"Option '([\w.]+)' is not accepted|Key '([\w.]+)' is not expected|unrecognized arguments: --([\w.]+)|"
        r"does not accept option '([\w.]+)'",
        message,
    )
    required = re.search(r"arguments are required: (?:\w+\.)?(model|data|backbone)\b", message)
    if required:
        return MISSING[required.group(1)]
    if absent := re.search(r"class_path '([\w.]+)':\s*the following arguments are required: ([\w.]+)", message):
        return f"{absent.group(1)} needs a value of {absent.group(2)!r}; set it"
    if absent := re.search(r"are required: ([\w.]+)\. Got value: Namespace\(class_path='([\w.]+)'", message):
        return f"{absent.group(2)} needs a value of {absent.group(1)!r}; set it"
    if unknown:
        owner = _owner(unknown.group(0), message)
        key = next(group for group in unknown.groups() if group)
        group = re.search(r"Group '([\w.]+)' does not", message)
        key = f"{group.group(1)}.{key}" if group else key
        return unknown_key(key, arguments(owner) if owner else _keys(parser), owner)
    return _plain_value(message)


def _plain_value(message: str) -> str:
    """The innermost key of an error, its value, and what is wanted."""
    message = re.sub(r"NestedArg\(key='[^']*', val='?(.*?)'?\)", r"\1", message)
    before, *parts = re.split(r'Parser key "([\w.]+)":', message)
    key, cause = ".".join(dict.fromkeys(parts[::2])), parts[-1] if parts else before
    prefix = f"{key}: " if key else ""
    if missing := _missing(message):
        return f"{prefix}{missing}"
    if file := re.search(r'Unable to load config "(.*)"', cause):
        return f"{prefix}{file.group(1)!r} is no YAML file with options; one option alone is --{key}.NAME"
    given = re.search(r"(?:Got value|Given value): (.*?)(?:\. Got value: .*)?$", cause, re.MULTILINE)
    value = given.group(1).strip("'") if given else ""
    base = re.search(r"subclass of (?:<class ')?(\w+)", cause)
    if base:
        named = re.search(r"class_path='([\w.]+)'", value)
        return f"{prefix}{named.group(1) if named else value} is no {base.group(1)}; name a class that is one"
    return f"{prefix}{_unlike_kind(cause, value)}"


def _missing(message: str) -> str | None:
    """The module or the name in a module that is not there, with the nearest name."""
    found = re.search(r"(?:module '([\w.]+)' has no attribute|No module named) '([\w.]+)'", message)
    if found is None:
        return None
    there = [name for name in vars(sys.modules[found.group(1)]) if name[0].isupper()] if found.group(1) else []
    return found.group(0) + (f"; {list_choices(found.group(2), there)}" if there else "")


def _unlike_kind(cause: str, value: str) -> str:
    """A value, and the kind of value that is wanted instead."""
    choices = [name for known in re.findall(r"Expected a typing.Literal\[(.*?)\]", cause) for name in _names(known)]
    found = re.findall(r"Expected a (?:<class '(\w+)'>|(tuple) with|dot import (path))", cause)
    kinds = [KINDS[name] for name in dict.fromkeys("".join(names) for names in found) if name in KINDS]
    if choices:
        other = f"neither {' nor '.join(kinds)} nor ".replace("true or", "true nor") if kinds else "not "
        return f"{value!r} is {other}a valid choice; {list_choices(value, choices)}"
    if kinds == ["text"]:
        return f"YAML reads {value}, which is not text; put text into quotes, as in '[\"007\"]'"
    if kinds == ["a list"]:
        many = re.search(r"tuple with (\d+)", cause)
        return f"a list {f'of {many.group(1)} ' if many else ''}is needed, as in '[A, B]', not {value}"
    return f"{value!r} is not {' or '.join(kinds)}" if kinds else one_line(cause)


def _names(choices: str) -> list[str]:
    return [name.strip(" '") for name in choices.split(",")]


def _owner(unknown: str, message: str) -> str | None:
    """The class with the unknown key, extracted from the error message."""
    given = re.search(re.escape(unknown) + r"\. Got value: Namespace\(class_path='([\w.]+)'", message)
    before = re.findall(r"class_path '?([\w.]+)'?", message.split(unknown, maxsplit=1)[0] + unknown)
    return given.group(1) if given else before[-1] if before else None


def _keys(parser: Parser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest != "help"]
