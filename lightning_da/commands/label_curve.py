"""`lightning-da label-curve`: target accuracy over the number of target labels, for several methods and seeds."""

import argparse
from collections.abc import Sequence
from functools import partial

import pandas as pd

from lightning_da.cli import TransferCLI
from lightning_da.commands.sweep import OF_ONE
from lightning_da.data import DomainPairDataModule, Roles
from lightning_da.data.base import UNKNOWN
from lightning_da.data.labels import draw_labelled
from lightning_da.errors import ConfigError
from lightning_da.grids.engine import (
    Cell,
    Grid,
    add_fit,
    check_named_once,
    check_trainable,
    digest,
    parse_methods,
    run_grid,
)
from lightning_da.grids.labels import report
from lightning_da.grids.pool import add_options, workers_of
from lightning_da.parser import CommandParser
from lightning_da.paths import find_method, methods, those_left

EXPERIMENT = "label_curve"
METHODS = those_left("source_only", "target_only", "fine_tune", "dann")


def run(args: Sequence[str]) -> pd.DataFrame:
    """Runs the unfinished trainings, then prints and returns the table of all.

    Args:
        args: The arguments after `label-curve`.

    Raises:
        ConfigError: If the options do not match the data or the method, another process runs the same command, or a
            training failed.
    """
    given, options = _parser().parse_known_args(args)
    workers = workers_of(given)
    options = ["--trainer.logger.init_args.experiment_name", EXPERIMENT, *options]
    check_named_once(given.methods, options)
    parsed, refused = parse_methods(given.methods or METHODS, options)
    first = next(iter(parsed.values())).build()
    pattern = check_trainable(first, given.seeds, {}, options=())
    data = first.datamodule
    data.check_has_classes("label-curve")
    pair = len(data.domains) > 1
    if data.target_labels is not None:
        raise ConfigError("data.target_labels: this command sets it for each training; give --labels")
    if not pair and given.methods is None and len(parsed) > 1:
        parsed, refused = parse_methods(OF_ONE, options)
    data.check(Roles(("target",), ()))
    numbers = list(dict.fromkeys(_number(data, wanted) for wanted in given.labels))
    cells: dict[str, Cell] = {}
    shown: dict[str, list[str]] = {}
    for seed in dict.fromkeys(given.seeds):
        for name, cli in parsed.items():
            named = name in (*METHODS, *OF_ONE, *(given.methods or ()))
            words = ["--config", str(find_method(name)), *options] if named else list(options)
            words += _reading_labels(cli, data, pair)
            for number in numbers if _reads_target(words) else [0]:
                labels = str(number) if 0 < number < _number(data, "all") else "null"
                fit = TransferCLI("fit", [*words, "--data.init_args.target_labels", labels])
                cell = add_fit(cells, fit, seed, {"labels": number})
                shown.setdefault(str(fit.config.name), []).append(cell.key)
    same = digest({**pattern, "model": None}, "label_curve", data.fingerprint())
    name = given.name or f"label-curve-{first.pair}"
    config = {**pattern, "name": "label_curve"}
    grid = Grid(name, config, same, list(cells.values()), partial(report, shown, name), refused=refused)
    return run_grid(grid, first, workers)


def _reading_labels(cli: TransferCLI, data: DomainPairDataModule, pair: bool) -> list[str]:
    """Options for a method: adaptation reads the labels of both domains; others start from the source if they can."""
    model = cli.build().model
    if model.reads_unlabelled and model.supervised == ("source",):
        data.check(Roles.of(model, 1))
        return ["--model.init_args.train_on", "both"]
    starts = model.keeps_start and model.starts_random() and cli.config.after is None
    return ["--after", "source_only"] if pair and starts else []


def _reads_target(words: Sequence[str]) -> bool:
    return bool(TransferCLI("fit", words).config.model.init_args.get("train_on") != "source")


def _number(data: DomainPairDataModule, wanted: str) -> int:
    """How many labels of the target `wanted` are."""
    y = data.training_labels("target")
    y = y[y != UNKNOWN]
    return len(y) if wanted == "all" else len(draw_labelled(y, wanted, 0, "--labels"))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "lightning-da label-curve",
        description="Train methods on a few labels of the target, for several numbers of labels, and draw the accuracy "
        "over that number. Methods of adaptation read the labels of the source and the few of the target (train_on "
        "both). After an interruption, the same command runs only the unfinished trainings. All options of `fit` are "
        "accepted too.",
        usage="lightning-da label-curve --config data/NAME.yaml [--labels ...] [--methods ...] [--OPTION VALUE ...]\n"
        "       lightning-da label-curve --config backbone/NAME.yaml --data.root FOLDER",
    )
    parser.add_argument(
        "--labels", nargs="+", default=["1/class", "3/class", "10/class", "all"], metavar="N",
        help="numbers of labels: 10, 3/class or all (default: 1/class 3/class 10/class all)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME",
        help=f"{', '.join(methods())}, or paths of YAML files (default: {' '.join(METHODS)}; for one domain "
        f"{' '.join(OF_ONE)})",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds (default: 0 1 2)")
    add_options(parser)
    parser.add_argument("--name", help="name of the MLflow run that contains the curve")
    return parser
