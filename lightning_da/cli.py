"""The command line: `lightning-da fit|validate|test|predict`, and the commands that run several of them."""

import argparse
import difflib
import importlib
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, cast

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from lightning_da.compare import compare
from lightning_da.data import DomainPairDataModule
from lightning_da.errors import ConfigError, list_choices
from lightning_da.methods import AdaptationModule, MarginEnsemble, TransferModule
from lightning_da.predictions import WritePredictions
from lightning_da.speech_transfer import speech_transfer
from lightning_da.sweep import sweep
from lightning_da.tracking import PROJECT, RecordRun, Tracker, chosen_checkpoint, find_fit, parameters
from lightning_da.transferability.command import curve
from lightning_da.transferability.layer_transfer import layer_transfer

COMMANDS = {
    "fit": "train a method on a pair of domains",
    "validate": "measure a fit on the validation splits",
    "test": "measure a fit on the test splits; joins the run of the fit",
    "predict": "classify the target; writes a CSV file",
    "sweep": "fit and test several methods and seeds, and print the comparison",
    "curve": "draw what each layer of a network says of the two domains; nothing is trained",
    "layer-transfer": "train on task B with the first layers of a network for task A, at every depth",
    "speech-transfer": "learn speakers or genders, then emotions, in two sizes; print the tables",
    "compare": "print the runs of an experiment as a table",
}

HELP = {
    "seed_everything": "seed of weights, batches and dropout",
    "trainer": "YAML file of the Trainer's options; those not listed here are accepted as well",
    "trainer.accelerator": "cpu, gpu, mps or auto",
    "trainer.devices": "number of processes, or list of GPUs",
    "trainer.strategy": "auto, or ddp for several devices",
    "trainer.precision": "32, bf16-mixed or 16-mixed",
    "trainer.max_steps": "end of training, in steps",
    "trainer.max_epochs": "end of training, in epochs",
    "trainer.accumulate_grad_batches": "batches to a step of the optimizer",
    "trainer.gradient_clip_val": "largest norm of the gradient",
    "trainer.log_every_n_steps": "steps between two points of a training curve",
    "trainer.enable_progress_bar": "whether to show progress",
    "name": "name of the method in run names and tables",
    "after": "method (a file of conf/method) that `fit` runs first, to start from",
    "predictions": "YAML file of the option below",
    "predictions.path": "where `predict` writes its CSV",
    "model": "method: a class path, with --model.init_args.NAME for its arguments",
    "data": "pair of domains: a class path, with --data.init_args.NAME for its arguments",
    "ckpt_path": "checkpoint file, or id or name of a run (default: the run that this configuration names); "
    "for fit, the checkpoint file to resume from",
}
"""Help of the options that `--help` lists."""

MISSING = {
    "model": "no method is given; add --config conf/method/NAME.yaml",
    "data": "no data are given; add --config conf/data/NAME.yaml",
    "backbone": "no backbone is given; add --config conf/backbone/NAME.yaml, or data that bring one, like digits.yaml",
}

USAGE = f"""\
usage: lightning-da COMMAND --config conf/method/NAME.yaml --config conf/data/NAME.yaml [--OPTION VALUE ...]

commands:
{"".join(f"  {name:16} {text}{chr(10)}" for name, text in COMMANDS.items())}
Any value of a YAML file can be given on the command line: --trainer.max_steps 1000
`lightning-da COMMAND --help` lists the options, `lightning-da fit --model.help DANN` those of a method,
`lightning-da fit --data.help Digits` those of a data module.
"""


class _Parser(LightningArgumentParser):
    """Says of an unknown key which known one is near, in place of a page of types; takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.hidden: list[argparse.Action] = []
        """Options that `--help` leaves out; what is recorded of a run has them."""

    def add_lightning_class_args(self, lightning_class: Any, nested_key: str, *args: Any, **kwargs: Any) -> list[str]:
        if nested_key != "model":
            return super().add_lightning_class_args(lightning_class, nested_key, *args, **kwargs)
        # The first says what files without a method, those of data and backbones, may set of it.
        added: list[str] = self.add_subclass_arguments((lightning_class, MarginEnsemble), "model", fail_untyped=False)
        return added

    def format_help(self, formatter: Any = None) -> str:
        help_of = {action: action.help for action in self.hidden}
        try:
            for action in self.hidden:
                action.help = argparse.SUPPRESS
            return super().format_help(formatter)
        finally:
            for action, text in help_of.items():
                action.help = text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        sys.exit(f"lightning-da: error: {_plain(message, self)}")


def _plain(message: str, parser: _Parser) -> str:
    """The cause in an error message of the argument parser, with the nearest known name."""
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
        known = _arguments(owner) if owner else _keys(parser)
        near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(
            key.rsplit(".", 1)[-1], known, n=1
        )
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"unknown key {key!r}{f' of {owner}' if owner else ''}; {hint}"
    return _plain_value(message)


def _plain_value(message: str) -> str:
    choice = re.search(r'Parser key "(\w+)":\s+Expected a typing.Literal\[(.*?)\]. Got value: (\S+)', message)
    if choice:
        key, known, value = choice.group(1), re.findall(r"'([^']*)'", choice.group(2)), choice.group(3)
        return f"{key}: {value!r} is no choice; {list_choices(value, known)}"
    nested = re.findall(r'Parser key "(\w+)":\s+Does not validate', message)
    either = re.search(r"Subtypes: \[typing\.Literal\[(.*?)\], (.*)\]\n", message)
    given = re.search(r"val='?(.*?)'?\)$", message)
    if nested and either and given:
        known, value = re.findall(r"'([^']*)'", either.group(1)), given.group(1)
        return f"{nested[-1]}: {value!r} is neither {either.group(2)} nor a choice; {list_choices(value, known)}"
    wanted = re.search(r"Expected a <class '(?:str|(list))'>(?:\. Got value: (\S+))?", message)
    if nested and wanted:
        text = f"YAML reads {wanted.group(2)}, which is no text; put text into quotes, as in '[\"007\"]'"
        return f"{nested[-1]}: " + ("a list is needed, as in '[A, B]'" if wanted.group(1) else text)
    missing = re.search(r"(?:module '[\w.]+' has no attribute|No module named) '([\w.]+)'", message)
    if missing:
        module = re.search(r"module '([\w.]+)' has no", missing.group(0))
        there = [name for name in vars(sys.modules[module.group(1)]) if name[0].isupper()] if module else []
        return missing.group(0) + (f"; {list_choices(missing.group(1), there)}" if there else "")
    lines = [line for line in message.splitlines() if "NoneType" not in line and "Given value" not in line]
    return "\n".join(lines)


def _owner(unknown: str, message: str) -> str | None:
    """The class whose argument a key, with the words around it in a message, would be."""
    given = re.search(re.escape(unknown) + r"\. Got value: Namespace\(class_path='([\w.]+)'", message)
    before = re.findall(r"class_path '?([\w.]+)'?", message.split(unknown, maxsplit=1)[0] + unknown)
    return given.group(1) if given else before[-1] if before else None


def _arguments(class_path: str) -> list[str]:
    parser = _Parser(exit_on_error=False)
    parser.add_class_arguments(_class(class_path), fail_untyped=False)
    return [action.dest for action in parser._actions if action.dest not in ("help", "config")]


def _class(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _keys(parser: _Parser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest != "help"]


class TransferCLI(LightningCLI):
    """Lightning's command line for a method and a pair of domains."""

    config: Any

    def __init__(self, args: Sequence[str], earlier: Mapping[str, str], run: bool = True) -> None:
        self._earlier, self._runs = earlier, run
        defaults = PROJECT / "conf" / "default.yaml"
        if not defaults.is_file():
            sys.exit(
                f"lightning-da: error: {defaults} is missing; install the project from its folder "
                "with `pip install -e .`"
            )
        super().__init__(
            TransferModule,
            DomainPairDataModule,
            save_config_callback=RecordRun,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs={name: {"default_config_files": [str(defaults)]} for name in self.subcommands()},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=list(args),
            parser_class=_Parser,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None)
        parser.add_argument("--after", type=str | None)
        parser.add_lightning_class_args(WritePredictions, "predictions")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.input_shape", "model.init_args.input_shape", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = cast(_Parser, super()._prepare_subcommand_parser(klass, subcommand, **kwargs))
        parser.description = COMMANDS[subcommand]
        for action in parser._actions:
            if action.dest in HELP:
                action.help = HELP[action.dest]
            elif action.dest.startswith("trainer.") or action.dest in (
                "weights_only",
                "verbose",
                "return_predictions",
            ):
                parser.hidden.append(action)
        return parser

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.model is None or _class(config.model.class_path) in (TransferModule, AdaptationModule):
            sys.exit(f"lightning-da: error: {MISSING['model']}")
        config.name = config.name or config.model.class_path.rsplit(".", 1)[-1].lower()
        logger = config.trainer.logger
        tracked = self._tracked(config)
        name = (logger.init_args.run_name if tracked else None) or self.run_name(config)
        experiment = logger.init_args.experiment_name if tracked else None
        if config.ckpt_path is not None:
            fit = find_fit(config.ckpt_path, experiment)
        elif self.subcommand != "fit":
            fit = find_fit(name, experiment, parameters(self.plain(config), ("model",)))
        else:
            return
        config.ckpt_path = fit.checkpoint
        if tracked and self.subcommand != "fit":
            logger.init_args.run_id = fit.run_id

    def plain(self, config: Namespace) -> dict[str, Any]:
        """The configuration as it is written to YAML."""
        dumped = self._parser(self.subcommand).dump(config, skip_none=False, skip_check=True)
        plain: dict[str, Any] = yaml.safe_load(dumped)
        return plain

    def _fit_before(self, config: Namespace) -> str:
        """The checkpoint of the method that this one starts from, on the same data and network, with the same seed."""
        if self._earlier.get(config.after):
            return self._earlier[config.after]
        method = PROJECT / "conf" / "method" / f"{config.after}.yaml"
        if not method.is_file():
            known = [path.stem for path in method.parent.glob("*.yaml")]
            raise ConfigError(f"after: no method {config.after!r}; {list_choices(config.after, known)}")
        rank_zero_only(print)(f"first {config.after}, from which {config.name} starts", flush=True)
        plain = self.plain(config)
        before = yaml.safe_load(method.read_text())
        given = before.get("data", {}).get("init_args", {})
        before |= {key: plain[key] for key in ("seed_everything", "data", "trainer")}
        before["data"]["init_args"] |= given
        network = ("backbone", "bottleneck", "standardize")
        before["model"]["init_args"] |= {k: v for k, v in plain["model"]["init_args"].items() if k in network}
        if self._tracked(config):
            before["trainer"]["logger"]["init_args"]["run_name"] = None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(yaml.safe_dump(before))
            trainer = TransferCLI(["fit", "--config", str(path)], self._earlier).trainer
        self._set_seed()
        checkpoint = chosen_checkpoint(trainer)
        if not checkpoint:
            raise ConfigError(
                f"after: {config.after} leaves no checkpoint to start from; set enable_checkpointing to true"
            )
        return checkpoint

    def instantiate_classes(self) -> None:
        config, start = self.config[self.subcommand], None
        if self._runs and self.subcommand == "fit" and config.ckpt_path is None:
            given = config.model.init_args
            starts_from = [run for run in (given.get("init_from"), *given.get("members", ())) if run is not None]
            for run in starts_from:
                find_fit(run)
            if config.after and not starts_from:
                start = self._fit_before(config)
        try:
            super().instantiate_classes()
            if start is not None:
                self.model.init_from = start
            if isinstance(self.trainer.logger, Tracker):
                self.trainer.logger.name_run(self.run_name(config))
        except (ValueError, TypeError, MisconfigurationException) as error:
            # The argument parser wraps what a constructor raises.
            cause: BaseException = error
            while (inner := cause.__cause__ or cause.__context__) is not None and not isinstance(cause, ConfigError):
                cause = inner
            raise ConfigError(str(cause)) from error

    def _run_subcommand(self, subcommand: str) -> None:
        if self._runs:
            super()._run_subcommand(subcommand)

    def _parse_ckpt_path(self) -> None:
        # Lightning would overwrite the configuration with the checkpoint's; `main` reads that of the run.
        return

    @staticmethod
    def _tracked(config: Namespace) -> bool:
        logger = config.trainer.logger
        return isinstance(logger, Namespace) and "init_args" in logger and "run_name" in logger.init_args

    @staticmethod
    def run_name(config: Namespace) -> str:
        """The name of the run of a configuration: method, domains and seed."""
        given = config.data.init_args
        pair = [Path(str(given.get(role, role))).stem for role in ("source", "target")]
        return f"{config.name}-{'-'.join(pair)}-s{config.seed_everything}"


def _with_run_config(args: list[str], folder: str) -> list[str]:
    """Puts the configuration of an earlier run, as a file in `folder`, in front of what is given.

    To validate, test and predict it is that of the run that `--ckpt_path` names; to fit an ensemble, the data of its
    first member.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--model.init_args.members", dest="members")
    parser.add_argument("--trainer.logger.init_args.experiment_name", dest="experiment")
    given = parser.parse_known_args(args)[0]
    fitting = args[0] == "fit"
    run, experiment = (_first_member(given.members), None) if fitting else (given.ckpt_path, given.experiment)
    fit = find_fit(run, experiment) if run is not None else None
    if fit is None or fit.config is None:
        return args
    path = Path(folder) / "config.yaml"
    path.write_text(yaml.safe_dump({"data": yaml.safe_load(fit.config)["data"]}) if fitting else fit.config)
    return [args[0], "--config", str(path), *args[1:]]


def _first_member(members: str | None) -> str | None:
    try:
        given = yaml.safe_load(members or "")
    except yaml.YAMLError:
        sys.exit(f"lightning-da: error: members: {members!r} is no list, as '[RUN, RUN]' is")
    return str(given[0]) if isinstance(given, list) and given else None


def _quiet() -> None:
    """Hides what neither users nor developers of a project can act on."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen layers
    warnings.filterwarnings("ignore", message=".*this fit will run with no optimizer.*")  # an ensemble
    for name in ("mlflow.store.db.utils", "alembic.runtime.migration", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage() and "TPU" not in record.getMessage())


def _cli(args: list[str], earlier: Mapping[str, str], run: bool) -> TransferCLI:
    with tempfile.TemporaryDirectory() as folder:
        return TransferCLI(_with_run_config(args, folder), earlier, run)


def load(args: Sequence[str]) -> TransferCLI:
    """The trainer, the model, the data and the configuration of a command that is not run.

    Args:
        args: The words behind `lightning-da`: `fit` makes the model as a fit begins, `test` that of a finished run,
            whose checkpoint `config.test.ckpt_path` then is.
    """
    return _cli(list(args), {}, run=False)


def main(args: Sequence[str] | None = None, earlier: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Runs a command.

    Args:
        args: The words behind `lightning-da`; None takes those of the process.
        earlier: Checkpoints of methods fitted in the same setting, by name, that a method in two stages starts from.

    Returns:
        The `TransferCLI` of fit, validate, test and predict, with its trainer, model and data; the table of the
        others.

    Raises:
        SystemExit: With a message, where the arguments or the data are wrong.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return None
    if args[0] not in COMMANDS:
        sys.exit(f"lightning-da: error: no command {args[0]!r}; {list_choices(args[0], COMMANDS)}")
    _quiet()
    try:
        command = {
            "compare": lambda: compare(args[1:]),
            "curve": lambda: curve(args[1:], load),
            "layer-transfer": lambda: layer_transfer(args[1:], load, main),
            "speech-transfer": lambda: speech_transfer(args[1:], load, main),
            "sweep": lambda: sweep(args[1:], main),
        }.get(args[0], lambda: _cli(args, earlier, run=True))
        return command()
    except ConfigError as error:
        sys.exit(f"lightning-da: error: {error}")
    except KeyboardInterrupt:
        sys.exit("lightning-da: interrupted")
