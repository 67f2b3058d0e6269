"""Builds trainer, model and data from command-line arguments or a configuration."""

import errno
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
import yaml
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch.distributed import is_torchelastic_launched

from lightning_da.callbacks import (
    CheckLeaks,
    KeepRandomState,
    RecordRun,
    StopAtDivergence,
    StopAtSignal,
    WritePredictions,
)
from lightning_da.checkpoint_io import WholeCheckpointIO
from lightning_da.data import DomainPairDataModule, Roles
from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError, InterruptionError, RunError, check_range, loading_errors, one_line
from lightning_da.methods import AdaptationModule, MarginEnsemble, TransferModule
from lightning_da.names import joined_name, short_name
from lightning_da.networks.weights import read_checkpoint
from lightning_da.parser import MISSING, CommandParser, Parser
from lightning_da.paths import CONF, find_method, with_found_configs
from lightning_da.signatures import arguments, class_path, full_spelling
from lightning_da.tracking import LENGTHS, Fit, Tracker, deciding_checkpoint, find_fit, find_resumable, parameters

DESCRIPTIONS = {
    "fit": "Train a method on a pair of domains.",
    "validate": "Evaluate a fit on the validation splits.",
    "test": "Evaluate a fit on the test splits; the results are added to its run.",
    "predict": "Classify the target and write a CSV file.",
}
OPTIONS_USAGE = "--config method/NAME.yaml --config data/NAME.yaml [--OPTION VALUE ...]"
IMAGES = "data/image_folders.yaml"
"""The data file of a command that names a folder (`--data.root`) and no data file."""
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
ABOVE = {"limit_train_batches": 0, "val_check_interval": 0}
"""Bounds of the trainer options that Lightning does not check."""
COUNT_OR_SHARE = tuple(f"limit_{part}_batches" for part in ("train", "val", "test", "predict"))
"""Trainer options where 1 is a number of batches, and 1.0 a share of them."""
LONGEST_NAME = 100
"""Length of `--name`: it is a part of the names of runs and files."""
LAST = "last"
"""`--ckpt_path` of a fit that goes on with the latest run of the same settings."""
LABELS = ("method", "published")
"""Settings that only name a run."""
OF_NO_EFFECT = (
    *("logger", "callbacks", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"),
    *("limit_val_batches", "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps"),
)
"""Trainer options that do not change the result of a training."""
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Error numbers of a disk or folder that refuses a file."""
_ABSTRACT = (TransferModule.__name__, AdaptationModule.__name__)


class TransferCLI(LightningCLI):
    """Lightning's command line for a method and a pair of domains.

    The constructor parses the arguments and finds earlier runs. `build` creates trainer, model and data, so that a
    first stage can be trained in between. `run` runs the command.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        args: The arguments after the command, or a whole configuration.

    Raises:
        ConfigError: If a file or a run is missing, or an argument is wrong.
    """

    config: Any

    def __init__(self, command: str, args: Sequence[str] | Mapping[str, Any]) -> None:
        self.command = command
        self._named: tuple[str, Fit] | None = None
        if not isinstance(args, Mapping):
            args = with_found_configs(args)
            self._named = _named_fit(command, args)
            if self._named is not None and (file := self._named[1].config) is not None:
                args = ["--config", str(file), *args]
            if class_path(full_spelling(args), "data") is None and any(
                word.startswith("--data.init_args.root") for word in full_spelling(args)
            ):
                args = [*with_found_configs(["--config", IMAGES]), *args]
            _check_given(command, args)
        self._ensemble = _names_ensemble(args)
        defaults = CONF / "default.yaml"
        if not defaults.is_file():
            raise ConfigError(f"{defaults} is missing; install the project from its folder with `pip install -e .`")
        super().__init__(
            TransferModule,
            DomainPairDataModule,
            save_config_callback=RecordRun,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"callbacks": [CheckLeaks(), StopAtDivergence(), KeepRandomState(), StopAtSignal()]},
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"lightning-da {command}",
                "usage": f"lightning-da {command} {OPTIONS_USAGE}",
                "description": DESCRIPTIONS[command],
                "default_config_files": [str(defaults)],
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=dict(args) if isinstance(args, Mapping) else list(args),
            parser_class=Parser,
            run=False,
        )

    # ---------------------------------------------------------------- parsing

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for action in parser._actions:  # read as a float, 1 would mean all batches
            if action.dest.removeprefix("trainer.") in COUNT_OR_SHARE:
                action._typehint = int | float | None  # type: ignore[attr-defined]
        # Data and backbone files set `model.init_args` without a class; their keys are checked against this class.
        kind = MarginEnsemble if self._ensemble else TransferModule
        parser.add_lightning_class_args(kind, "model", subclass_mode=True)
        parser.add_lightning_class_args(DomainPairDataModule, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None)
        parser.add_argument("--after", type=str | None)
        parser.add_argument("--published", type=float | None)
        parser.add_lightning_class_args(WritePredictions, "predictions")
        parser.add_argument("--ckpt_path", type=str | None)
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.input_shape", "model.init_args.input_shape", apply_on="instantiate")
        parser.link_arguments("data.source_shape", "model.init_args.source_shape", apply_on="instantiate")
        parser.link_arguments("data.num_attributes", "model.init_args.num_attributes", apply_on="instantiate")
        parser.describe()  # type: ignore[attr-defined]  # a `Parser`

    def _set_seed(self) -> None:
        if isinstance(self.config.seed_everything, bool):
            raise ConfigError(f"seed_everything: {self.config.seed_everything} is no number")
        check_range("seed_everything", self.config.seed_everything, 0, 2**32 - 1)
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Completes the configuration: name, checkpoint to start from, run to test."""
        config = self.config
        for key, value in config.items():
            _check_finite(key.replace(".init_args", ""), value)
            if value is None and key.startswith(("model.", "data.")):
                _check_null(key, config)
        _check_trainer(config.trainer, self.command)
        if config.published is not None:
            check_range("published", config.published, 0, 1)
        if config.model is None or config.model.class_path.rsplit(".", 1)[-1] in _ABSTRACT:
            raise ConfigError(MISSING["model"])
        config.name = config.name or config.model.class_path.rsplit(".", 1)[-1].lower()
        _check_name(config.name)
        self._start: str | None = None
        tracker = config.trainer.logger.init_args if self._tracked() else None
        experiment = tracker.experiment_name if tracker else None
        if config.ckpt_path is not None:
            reference, fit = self._named or (None, None)
            if fit is None or reference != config.ckpt_path:
                find = find_resumable if self.command == "fit" else find_fit
                named = self.run_name if config.ckpt_path == LAST else config.ckpt_path
                fit = find(named, experiment, parameters(self.plain()) if config.ckpt_path == LAST else None)
        elif self.command != "fit":
            name = (tracker.run_name if tracker else None) or self.run_name
            fit = find_fit(name, experiment, parameters(self.plain(), ("model",)))
        else:
            self._start = _start_of(config.model.init_args.get("init_from"))
            return
        config.ckpt_path = fit.checkpoint
        read_checkpoint(fit.checkpoint, ("state_dict", "pytorch-lightning_version"))
        if self.command == "fit" and fit.config is not None:
            _check_same(yaml.safe_load(fit.config.read_text()), self.plain())
        if tracker:
            tracker.run_id = fit.run_id

    def _tracked(self) -> bool:
        logger = self.config.trainer.logger
        return hasattr(logger, "init_args") and "run_name" in logger.init_args

    def plain(self) -> dict[str, Any]:
        """The configuration as plain values, as in its YAML file."""
        plain: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_check=True))
        return plain

    @property
    def pair(self) -> str:
        """The domains in the name of a run; a folder that is the only domain is named once."""
        given = self.config.data.init_args
        named = [given.get(role, role) for role in DOMAINS]
        names = [joined_name(name) for name in named if name is not None] or [Path(given.root).absolute().name]
        return "-".join(map(short_name, names))

    @property
    def run_name(self) -> str:
        """Name of the run: method, domains and seed."""
        return f"{self.config.name}-{self.pair}-s{self.config.seed_everything}"

    def first_stage(self) -> dict[str, Any] | None:
        """The configuration of the first stage, with the same data, network and seed.

        Returns:
            None if `after` is not set, `init_from` is set, or the fit is resumed.

        Raises:
            ConfigError: If the method `after` does not exist.
        """
        config = self.config
        if config.after is None or self._start is not None or config.ckpt_path is not None:
            return None
        try:
            before: dict[str, Any] = yaml.safe_load(find_method(config.after).read_text())
        except ConfigError as error:
            raise ConfigError(f"after: {error}") from error
        plain = self.plain()
        given = before.get("data", {}).get("init_args", {})
        before |= {key: plain[key] for key in ("seed_everything", "data", "trainer")}
        before["data"]["init_args"] |= given
        of_two = all(before["data"]["init_args"].get(role) is not None for role in ("source", "target"))
        if of_two and before["model"]["init_args"].get("train_on") == "source":
            before["data"]["init_args"].pop("target_labels", None)  # one first stage for each number of labels
        network = ("backbone", "bottleneck", "standardize")
        before["model"]["init_args"] |= {k: v for k, v in plain["model"]["init_args"].items() if k in network}
        if self._tracked():
            before["trainer"]["logger"]["init_args"]["run_name"] = None
        return before

    # ---------------------------------------------------------------- building

    def instantiate_classes(self) -> None:
        """Does nothing; `build` creates the objects."""

    def build(self, start: str | None = None) -> "TransferCLI":
        """Creates trainer, model and data.

        Args:
            start: Checkpoint file of the first stage; None uses the run `init_from`, if set.

        Raises:
            ConfigError: If an argument or the data are wrong.
        """
        if start is not None:
            self._set_seed()  # the first stage has changed the random state
        self._recorded = self.config
        start = start or self._start
        if start is not None:
            self.config = self.config.clone()
            self.config.model.init_args.init_from = start
        try:
            super().instantiate_classes()
            known = arguments(f"{type(self.model).__module__}.{type(self.model).__qualname__}")
            for key in {"source_shape", "num_attributes"}.difference(known):
                self.model.hparams.pop(key, None)  # the link gives it to every method
            if isinstance(self.trainer.logger, Tracker):
                self.trainer.logger.name_run(self.run_name)
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            # The argument parser wraps the exceptions of constructors.
            cause: BaseException = error
            while (inner := cause.__cause__ or cause.__context__) is not None and not isinstance(cause, ConfigError):
                cause = inner
            raise ConfigError(str(cause) if isinstance(cause, ConfigError) else one_line(cause)) from error
        return self

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        # The model starts from a file, but the recorded configuration keeps the reference from the command line.
        self.config = self._recorded
        given = self.config.trainer
        if given.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"trainer.accelerator: there is no GPU, only a CPU with {os.cpu_count()} cores; set it to cpu"
            )
        callbacks = self.config_init.trainer.callbacks or []
        named = {type(callback) for callback in (callbacks if isinstance(callbacks, list) else [callbacks])}
        self.trainer_defaults["callbacks"] = [
            own for own in self.trainer_defaults["callbacks"] if type(own) not in named
        ]
        plugins = self.config_init.trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, WholeCheckpointIO()]
        trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        cores = os.cpu_count() or 1
        if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
            raise ConfigError(f"trainer.devices: {given.devices} are more than the {cores} cores of the CPU")
        _check_processes(trainer)
        return trainer

    def run(self) -> "TransferCLI":
        """Runs the command.

        Raises:
            ConfigError: If the data, a checkpoint or an option of the trainer is wrong; a fit that has not begun leaves
                no run.
            RunError: If the fit diverged or was interrupted, or a process that loads samples was killed.
        """
        if self.command == "fit":  # before the logger opens a run
            self.datamodule.check(Roles.of(self.model, self.trainer.world_size))
            logger = self.trainer.logger
            if isinstance(logger, Tracker) and self.config.trainer.logger.init_args.run_id is not None:
                logger.resume(self.config.ckpt_path)
        function = getattr(self.trainer, self.command)
        if self.command in ("validate", "test"):  # Lightning's table repeats each value for each domain
            function = partial(function, verbose=False)
        try:
            with loading_errors():
                function(self.model, datamodule=self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True)
        except (Exception, SystemExit) as stop:
            if self.trainer.progress_bar_callback is not None:
                print(flush=True)  # ends its line
            error: BaseException = stop
            if isinstance(stop, SystemExit):  # Lightning's answer to Ctrl-C: before training, or the second one
                error = InterruptionError(f"interrupted at step {self.trainer.global_step}, without a new checkpoint")
            elif isinstance(stop, MisconfigurationException):
                error = ConfigError(one_line(stop))
            elif isinstance(stop, OSError) and stop.errno in DISK:
                place = f"{stop.filename}: " if stop.filename else ""
                error = RunError(f"{place}{stop.strerror}, at step {self.trainer.global_step}; {self._remedy()}")
            if isinstance(self.trainer.logger, Tracker) and self.trainer.is_global_zero:
                refused = isinstance(error, ConfigError) and self.trainer.global_step == 0
                self.trainer.logger.discard() if refused else self.trainer.logger.fail(error)
            raise error from stop.__cause__
        return self

    def _remedy(self) -> str:
        """What to do after a disk has refused a file."""
        logger, checkpoint = self.trainer.logger, deciding_checkpoint(self.trainer)
        kept = checkpoint is not None and any(Path(checkpoint.dirpath or "").glob("*.ckpt"))
        command = "the same command"
        if self.command == "fit" and isinstance(logger, Tracker) and kept:
            command = f"lightning-da fit --ckpt_path {logger.run_id}"
        return f"make room or allow writing, then run {command}"


def _check_processes(trainer: Trainer) -> None:
    """Refuses a trainer that would wait for processes that nobody starts, or leave out some of those that run."""
    if is_torchelastic_launched():
        here, whole = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if (trainer.world_size, trainer.num_devices) != (whole, here):
            raise ConfigError(
                f"torchrun has started {whole} processes, but trainer.num_nodes x trainer.devices are "
                f"{trainer.num_nodes} x {trainer.num_devices}; set --trainer.num_nodes {whole // here} "
                f"--trainer.devices {here} --trainer.strategy ddp"
            )
    elif trainer.num_nodes > 1 and not {"NODE_RANK", "GROUP_RANK", "SLURM_NTASKS"} & os.environ.keys():
        raise ConfigError(
            f"trainer.num_nodes: {trainer.num_nodes}, but nothing starts the other machines; start the command with "
            "torchrun or in SLURM (docs/training.md)"
        )


def _check_trainer(trainer: Any, command: str) -> None:
    """Refuses trainer options that Lightning takes and that cannot be meant."""
    above = ABOVE | {f"limit_{command.removesuffix('idate')}_batches": 0}
    for key in (*LEAST, *above):
        if isinstance(value := trainer.get(key), int | float):
            check_range(f"trainer.{key}", value, LEAST.get(key, -math.inf), above=above.get(key, -math.inf))
    for unit in ("steps", "epochs"):
        least, most = (trainer.get(f"{end}_{unit}") for end in ("min", "max"))
        if least is not None and most is not None and 0 <= most < least:
            raise ConfigError(f"trainer.min_{unit}: {least} is more than max_{unit}, {most}")
    if trainer.get("default_root_dir") is not None and Path(trainer.default_root_dir).is_file():
        raise ConfigError(f"trainer.default_root_dir: {str(trainer.default_root_dir)!r} is a file; name a folder")
    if trainer.get("barebones"):
        raise ConfigError("trainer.barebones: it switches off what a fit records; leave it out")


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"name: {name[:50]!r} is no name; give up to {LONGEST_NAME} characters in one line")


def _check_finite(key: str, value: Any) -> None:
    """Refuses NaN and infinity in a value of the configuration."""
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, float) and not math.isfinite(part):
            raise ConfigError(f"{key}: {part} is not a finite number")


def _check_null(key: str, config: Any) -> None:
    """Refuses null for an argument that has a default and whose type has no None: the parser takes it for each."""
    owner, _, name = key.rpartition(".init_args.")
    given = config.get(f"{owner}.class_path")
    if not given or "." in name:
        return
    module, _, kind = given.rpartition(".")
    for part in getattr(getattr(import_module(module), kind), "__mro__", ()):  # a function has none
        argument = inspect.signature(part.__init__).parameters.get(name) if "__init__" in vars(part) else None
        if argument is not None:
            if argument.default in (None, inspect.Parameter.empty):
                return
            takes = get_type_hints(part.__init__).get(name, Any)
            if takes is not Any and NoneType not in get_args(takes):
                raise ConfigError(f"{key.replace('.init_args', '')}: null is no value of it; leave it out")
            return


def _names_ensemble(args: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether the model is a `MarginEnsemble`, which is no `TransferModule`."""
    if isinstance(args, Mapping):
        return str(args["model"]["class_path"]).endswith(MarginEnsemble.__name__)
    return (class_path(full_spelling(args), "model") or "").endswith(MarginEnsemble.__name__)


def _check_given(command: str, words: Sequence[str]) -> None:
    """Asks for the data and the method first, and for the backbone after them; refuses what the data give."""
    spelled = full_spelling(words)
    if any(word.startswith(("--help", "-h", "--print_config")) or ".help" in word for word in spelled):
        return
    for key in ("num_classes", "input_shape", "source_shape", "num_attributes"):
        if any(word.startswith(f"--model.init_args.{key}") for word in spelled):
            raise ConfigError(f"model.{key}: the data give it; leave it out")
    named = "" if command == "fit" else ", or name a run with --ckpt_path"
    for part in ("data", "model"):
        if class_path(spelled, part) is None and not any(word.startswith(f"--{part}=") for word in spelled):
            raise ConfigError(MISSING[part] + named)


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with other settings.

    Args:
        before: Configuration of the run.
        now: Configuration of the fit that goes on.
    """
    now_set, before_set = (
        {f"trainer.{k}": str(v) for k, v in config["trainer"].items() if k not in (*OF_NO_EFFECT, *LENGTHS)}
        | parameters(config)
        for config in (now, before)
    )
    for key in sorted((now_set.keys() | before_set.keys()) - set(LABELS)):
        if key not in before_set and "." not in key and key not in LENGTHS:
            continue  # an option that is newer than the run
        old, new = before_set.get(key, "not set"), now_set.get(key, "not set")
        longer = key in LENGTHS and (new == "-1" or (old.isdecimal() and new.isdecimal() and int(new) > int(old)))
        if old == new or longer:
            continue
        shorter = ", and a run cannot get shorter" if key in LENGTHS else ""
        raise ConfigError(
            f"{key}: it is {new}, but the run was fitted with {old}{shorter}; leave it out to go on, or leave out "
            "--ckpt_path to start a new fit"
        )


def _start_of(named: str | None) -> str | None:
    """The checkpoint file of the run that `init_from` names."""
    try:
        return None if named is None else find_fit(named).checkpoint
    except ConfigError as error:
        raise ConfigError(f"init_from: {error}") from error


def _named_fit(command: str, args: Sequence[str]) -> tuple[str, Fit] | None:
    """`--ckpt_path` and its fit, before the other arguments are parsed: its configuration comes first."""
    parser = CommandParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--trainer.logger.init_args.experiment_name", dest="experiment")
    given = parser.parse_known_args(full_spelling(args))[0]
    if given.ckpt_path is None or (command == "fit" and given.ckpt_path == LAST):
        return None
    find = find_resumable if command == "fit" else find_fit
    return given.ckpt_path, find(given.ckpt_path, given.experiment)
