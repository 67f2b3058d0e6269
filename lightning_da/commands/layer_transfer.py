"""`lightning-da layer-transfer`: measures how well the first n layers transfer from task A to task B, for each n.

The first n layers of a network trained on A, or on B itself, are copied, frozen or not; the other layers are new and
trained on B. Where BnB drops, the cut separates co-adapted layers. Where AnB drops below BnB, features are specific
to A.

Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, sections 2 and 4.
https://arxiv.org/abs/1411.1792
"""

import argparse
from collections.abc import Sequence
from functools import partial

import pandas as pd

from lightning_da.cli import TransferCLI
from lightning_da.data import Roles, Task
from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError, list_choices
from lightning_da.grids.engine import Cell, Grid, check_trainable, digest, run_grid
from lightning_da.grids.layers import HEAD, TREATMENTS, Layers, report
from lightning_da.grids.pool import add_options, workers_of
from lightning_da.methods import FineTune
from lightning_da.names import short_name
from lightning_da.parser import CommandParser

EXPERIMENT = "layer_transfer"
RESERVED = {
    "train_on": "source",
    "init_from": None,
    "init_layers": "all",
    "keep_head": False,
    "freeze": 0,
    "unfreeze_by": None,
}
"""Arguments of `FineTune` that the grid sets, with their default values."""


def run(args: Sequence[str]) -> pd.DataFrame:
    """Runs the unfinished cells of the grid, then reports the grid and returns its table.

    Args:
        args: The arguments after `layer-transfer`.

    Raises:
        ConfigError: If the options do not match the data or the network, another process runs the same grid, or a cell
            failed.
    """
    given, options = _parser().parse_known_args(args)
    workers = workers_of(given)
    experiment = ["--trainer.logger.init_args.experiment_name", EXPERIMENT]
    cli = TransferCLI("fit", ["--config", "method/source_only.yaml", *experiment, *options]).build()
    cli.datamodule.check_has_classes("layer-transfer")
    setting = _setting(cli, given)
    depths = _depths(given.depths, setting.layers)
    cells = setting.plan(given.seeds, [_number(value) for value in given.labels], depths, given.treatments)
    _check_data(cli, cells, given.across_domains)
    domains = DOMAINS if given.across_domains else DOMAINS[:1]
    name = given.name or "-".join(["layer-transfer", *(short_name(getattr(cli.datamodule, role)) for role in domains)])
    same = digest(setting.config, setting.task_a, given.across_domains, cli.datamodule.fingerprint())
    return run_grid(Grid(name, setting.config, same, cells, partial(report, setting, name)), cli, workers)


def _check_data(cli: TransferCLI, cells: Sequence[Cell], across: bool) -> None:
    """Checks the data of all cells before training; across domains, each may have classes of its own."""
    data, alone = cli.datamodule, Roles.of(cli.model, 1)._replace(supervised=("source",), unlabelled=())
    if across:
        data.check_inputs(alone._replace(supervised=DOMAINS))
    else:
        data.check(alone)
    tasks = [{**cell.config["data"]["init_args"], "data": data} for cell in cells]
    for arguments in {str(task): task for task in tasks}.values():
        Task(**arguments).check(alone)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "lightning-da layer-transfer",
        description="Train networks on two tasks, A and B. Copy the first n layers of each network and train the other "
        "layers on B. The copied layers are frozen (AnB, BnB) or fine-tuned (AnB+, BnB+); for comparison, random "
        "layers are frozen (random). After an interruption, the same command runs only the unfinished trainings. All "
        "options of `fit` are accepted too.",
        usage="lightning-da layer-transfer --config data/NAME.yaml [--seeds ...] [--OPTION VALUE ...]",
    )
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument(
        "--task_a", nargs="+", metavar="CLASS", help="classes of A; B has the other classes (default: a random half)"
    )
    tasks.add_argument(
        "--across_domains",
        action="store_true",
        help="A is the source, B the target, with all classes, which may differ; equal ones copy the head, too",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds (default: 0)")
    parser.add_argument(
        "--labels", nargs="+", default=["all"], metavar="N", help="numbers of training labels for B (default: all)"
    )
    parser.add_argument(
        "--depths", nargs="+", type=int, metavar="N", help="numbers of copied layers (default: 1 to all layers)"
    )
    parser.add_argument(
        "--treatments", nargs="+", default=TREATMENTS, choices=TREATMENTS, metavar="NAME",
        help=f"{' '.join(TREATMENTS)} (default: all)",
    )  # fmt: skip
    add_options(parser)
    parser.add_argument("--name", help="name of the MLflow run that contains the grid")
    return parser


def _setting(cli: TransferCLI, given: argparse.Namespace) -> Layers:
    backbone = cli.model.backbone
    # word vectors of a file are no weights of a network: every training starts with them
    if not isinstance(cli.model, FineTune) or (backbone.pretrained and not backbone.reads_words):
        raise ConfigError("layer-transfer trains FineTune from random weights: leave out the method and the weights")
    config = check_trainable(cli, given.seeds, RESERVED)
    classes = cli.datamodule.classes
    for name in given.task_a or []:
        if name not in classes:
            raise ConfigError(f"task_a: no class {name!r}; {list_choices(name, classes)}")
    size = len(set(given.task_a)) if given.task_a else len(classes) // 2
    if not given.across_domains and not 2 <= size <= len(classes) - 2:
        raise ConfigError(f"task_a: each of the two tasks needs at least two of the {len(classes)} classes")
    task_a = sorted(set(given.task_a), key=classes.index) if given.task_a else None
    of_target = cli.datamodule.classes_in("target") if given.across_domains else None
    layers = [*backbone.layers, HEAD] if of_target == classes else backbone.layers
    return Layers(config, classes, layers, task_a, of_target)


def _depths(given: Sequence[int] | None, layers: Sequence[str]) -> list[int]:
    for n in given or []:
        if not 1 <= n <= len(layers):
            raise ConfigError(f"depths: {n} of {len(layers)} layers ({', '.join(layers)}); give 1 to {len(layers)}")
    return sorted(set(given or range(1, len(layers) + 1)))


def _number(value: str) -> int | None:
    if value != "all" and not value.isdecimal():
        raise ConfigError(f"labels: {value!r} is neither a number nor `all`")
    return None if value == "all" else int(value)
