"""`lightning-da label-curve`: target accuracy over the number of target labels, for several methods and seeds."""

import argparse
from collections.abc import Sequence
from functools import partial
from pydoc import locate
from typing import Any

import pandas as pd

from lightning_da.cli import TransferCLI
from lightning_da.data import DomainPairDataModule, Roles
from lightning_da.data.base import UNKNOWN
from lightning_da.data.labels import draw_labelled
from lightning_da.errors import ConfigError
from lightning_da.grids.engine import Cell, Grid, add_fit, check_trainable, digest, run_grid
from lightning_da.grids.labels import report
from lightning_da.methods import AdaptationModule
from lightning_da.paths import find_method, methods

EXPERIMENT = "label_curve"
OF_TWO = ("source_only", "target_only", "fine_tune", "dann")
"""The methods for two domains."""
OF_ONE = ("linear_probe", "fine_tune")
"""The methods for one domain."""


def run(args: Sequence[str]) -> pd.DataFrame:
    """Runs the unfinished trainings, then prints and returns the table of all.

    Args:
        args: The arguments after `label-curve`.

    Raises:
        ConfigError: If the options do not match the data or the method, another process runs the same command, or a
            training failed.
    """
    given, options = _parser().parse_known_args(args)
    options = ["--trainer.logger.init_args.experiment_name", EXPERIMENT, *options]
    first = TransferCLI("fit", ["--config", "method/target_only.yaml", *options]).build()
    pattern = check_trainable(first, given.seeds, {}, options=())
    data = first.datamodule
    if data.target_labels is not None:
        raise ConfigError("data.target_labels: this command sets it for each training; give --labels")
    names = given.methods or (OF_TWO if len(data.domains) > 1 else OF_ONE)
    data.check(Roles(("target",), ()))
    numbers = {_number(data, wanted): wanted for wanted in given.labels}
    cells: dict[str, Cell] = {}
    shown: dict[str, None] = {}
    for seed in dict.fromkeys(given.seeds):
        for name in names:
            words = _words(name, options, len(data.domains) > 1)
            reads = _reads_target(TransferCLI("fit", words))
            for number, wanted in numbers.items() if reads else [(0, "all")]:
                labels = "null" if wanted == "all" else wanted
                cli = TransferCLI("fit", [*words, "--data.init_args.target_labels", labels])
                add_fit(cells, cli, seed, {"labels": number})
                shown[str(cli.config.name)] = None
    same = digest({**pattern, "model": None}, "label_curve", data.fingerprint())
    name = given.name or f"label-curve-{first.pair}"
    config = {**pattern, "name": "label_curve"}
    return run_grid(
        Grid(name, config, same, list(cells.values()), partial(report, list(shown), name)), first, given.jobs
    )


def _words(name: str, options: Sequence[str], pair: bool) -> list[str]:
    """The options of a method: adaptation reads the labels of both domains; frozen layers come from the source."""
    words = ["--config", str(find_method(name)), *options]
    config = TransferCLI("fit", words).config
    kind: Any = locate(config.model.class_path)
    if isinstance(kind, type) and issubclass(kind, AdaptationModule):
        return [*words, "--model.init_args.train_on", "both"]
    arguments = config.model.init_args
    starts = arguments.get("init_from") or config.after
    if pair and arguments.get("freeze") and not starts and TransferCLI("fit", words).build().model.starts_random():
        return [*words, "--after", "source_only"]
    return words


def _reads_target(cli: TransferCLI) -> bool:
    return bool(cli.config.model.init_args.train_on != "source")


def _number(data: DomainPairDataModule, wanted: str) -> int:
    """How many labels of the target `wanted` are."""
    y = data.dataset(data.target, "train").y  # type: ignore[attr-defined]
    y = y[y != UNKNOWN]
    return len(y) if wanted == "all" else len(draw_labelled(y, wanted, 0, "labels"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-da label-curve",
        description="Train methods on a few labels of the target, for several numbers of labels, and draw the accuracy "
        "over that number. Methods of adaptation read the labels of the source and the few of the target (train_on "
        "both). After an interruption, the same command runs only the unfinished trainings. All options of `fit` are "
        "accepted too.",
        usage="lightning-da label-curve --config data/NAME.yaml [--labels ...] [--methods ...] [--OPTION VALUE ...]\n"
        "       lightning-da label-curve --config backbone/NAME.yaml --data.root FOLDER",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--labels", nargs="+", default=["1/class", "3/class", "10/class", "all"], metavar="N",
        help="numbers of labels: 10, 3/class or all (default: 1/class 3/class 10/class all)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME",
        help=f"{', '.join(methods())}, or paths of YAML files (default: {' '.join(OF_TWO)}; for one domain "
        f"{' '.join(OF_ONE)})",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds (default: 0 1 2)")
    parser.add_argument(
        "--jobs", type=int, help="parallel trainings (default: one per GPU, otherwise one per CPU core)"
    )
    parser.add_argument("--name", help="name of the MLflow run that contains the curve")
    return parser
