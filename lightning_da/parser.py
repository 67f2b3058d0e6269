"""The argument parser: help of the options, and short error messages."""

import argparse
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_da.errors import list_choices
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
        sys.exit(f"lightning-da: error: {_plain(message, self)}")


def _plain(message: str, parser: Parser) -> str:
    """The cause of a parser error in one short message, with the nearest known name."""
    unknown = re.search(
        r"Option '([\w.]+)' is not accepted|Key '([\w.]+)' is not expected|unrecognized arguments: --([\w.]+)",
        message,
    )
    required = re.search(r"arguments are required: (?:\w+\.)?(model|data|backbone)\b", message)
    if required:
        return MISSING[required.group(1)]
    if unknown:
        owner = _owner(unknown.group(0), message)
        key = next(group for group in unknown.groups() if group)
        return unknown_key(key, arguments(owner) if owner else _keys(parser), owner)
    return _plain_value(message)


def _plain_value(message: str) -> str:
    choice = re.search(r'Parser key "(\w+)":\s+Expected a typing.Literal\[(.*?)\]. Got value: (\S+)', message)
    if choice:
        key, known, value = choice.group(1), re.findall(r"'([^']*)'", choice.group(2)), choice.group(3)
        return f"{key}: {value!r} is not a valid choice; {list_choices(value, known)}"
    nested = re.findall(r'Parser key "(\w+)":\s+Does not validate', message)
    either = re.search(r"Subtypes: \[typing\.Literal\[(.*?)\], (.*)\]\n", message)
    given = re.search(r"val='?(.*?)'?\)$", message)
    if nested and either and given:
        known, value = re.findall(r"'([^']*)'", either.group(1)), given.group(1)
        other = either.group(2).replace("<class 'bool'>", "true nor false")
        return f"{nested[-1]}: {value!r} is neither {other} nor a valid choice; {list_choices(value, known)}"
    wanted = re.search(r"Expected a <class '(?:str|(list))'>(?:\. Got value: (\S+))?", message)
    if nested and wanted:
        text = f"YAML reads {wanted.group(2)}, which is not text; put text into quotes, as in '[\"007\"]'"
        return f"{nested[-1]}: " + ("a list is needed, as in '[A, B]'" if wanted.group(1) else text)
    missing = re.search(r"(?:module '[\w.]+' has no attribute|No module named) '([\w.]+)'", message)
    if missing:
        module = re.search(r"module '([\w.]+)' has no", missing.group(0))
        there = [name for name in vars(sys.modules[module.group(1)]) if name[0].isupper()] if module else []
        return missing.group(0) + (f"; {list_choices(missing.group(1), there)}" if there else "")
    lines = [line for line in message.splitlines() if "NoneType" not in line and "Given value" not in line]
    return "\n".join(lines)


def _owner(unknown: str, message: str) -> str | None:
    """The class with the unknown key, extracted from the error message."""
    given = re.search(re.escape(unknown) + r"\. Got value: Namespace\(class_path='([\w.]+)'", message)
    before = re.findall(r"class_path '?([\w.]+)'?", message.split(unknown, maxsplit=1)[0] + unknown)
    return given.group(1) if given else before[-1] if before else None


def _keys(parser: Parser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest != "help"]
