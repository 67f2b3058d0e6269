"""`lightning-da speech-transfer`: measures how well speaker or gender networks transfer to emotions, for two sizes.

A network is trained on the source task, its output layer is replaced, and the whole network is fine-tuned on the
emotions of the target. The baseline is trained on emotions only. An ensemble combines the sizes.

Source: Huang et al., CCPR 2016, tables 2 and 3.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import pandas as pd

from lightning_da.cli import TransferCLI
from lightning_da.data import Roles, SpeechCorpora
from lightning_da.data.speech import LABELS
from lightning_da.errors import ConfigError
from lightning_da.grids.engine import Cell, Grid, check_trainable, digest, run_grid
from lightning_da.grids.pool import add_options, workers_of
from lightning_da.grids.speech import SOURCE_TASKS, plan, report
from lightning_da.methods import FineTune
from lightning_da.names import short_name
from lightning_da.networks import FeedForward
from lightning_da.parser import CommandParser
from lightning_da.paths import with_found_configs
from lightning_da.signatures import full_spelling

EXPERIMENT = "speech_transfer"
RESERVED = {"train_on": "target", "init_from": None, "init_layers": "all", "keep_head": False}
"""Arguments of `FineTune` that the experiment sets, with their values from conf/method/speech_ffn.yaml."""


def run(args: Sequence[str]) -> pd.DataFrame:
    """Runs the unfinished cells of the experiment, then reports it and returns its table.

    Args:
        args: The arguments after `speech-transfer`.

    Raises:
        ConfigError: If the options do not match the data or the method, another process runs the same experiment, or a
            training failed.
    """
    given, options = _parser().parse_known_args(args)
    workers = workers_of(given)
    for option, instead in (("--after", "source_tasks"), ("--model.init_args.backbone.init_args.hidden", "sizes")):
        if any(word.split("=")[0] == option for word in full_spelling(options)):
            raise ConfigError(f"{option}: speech-transfer sets it for each training; give --{instead}")
    experiment = ["--trainer.logger.init_args.experiment_name", EXPERIMENT]
    stage_2 = ["--config", "method/speech_ffn.yaml", *experiment, *options, "--after", "null"]
    cli = TransferCLI("fit", with_found_configs(stage_2)).build()
    if type(cli.model) is not FineTune or not isinstance(cli.model.backbone, FeedForward):
        raise ConfigError("speech-transfer trains FineTune on a FeedForward backbone; leave out other methods")
    if not isinstance(cli.datamodule, SpeechCorpora):
        raise ConfigError("speech-transfer reads SpeechCorpora; leave out other data")
    sizes = tuple(_size(text) for text in given.sizes)
    if len(set(sizes)) < len(sizes):
        raise ConfigError(f"sizes: {' '.join(sizes)} has a duplicate")
    config = check_trainable(cli, given.seeds, RESERVED)
    for key, default in (("task", "emotion"), ("seed", 0)):
        if getattr(cli.datamodule, key) != default:
            raise ConfigError(f"data.{key}: speech-transfer sets it for each training; leave it out")
    cells = plan(config, given.seeds, given.source_tasks, sizes)
    _check_data(cells)
    pair = (short_name(getattr(cli.datamodule, role)) for role in ("source", "target"))
    name = given.name or "-".join(["speech-transfer", *pair])
    same = digest(config, sizes, fingerprint(cli.datamodule))
    return run_grid(Grid(name, config, same, cells, partial(report, name)), cli, workers)


def fingerprint(data: SpeechCorpora) -> str:
    """A digest of the samples and all labels in both corpora."""
    return " ".join(data.with_labels(label).fingerprint() for label in LABELS)


def _check_data(cells: Sequence[Cell]) -> None:
    """Checks the data of all cells before training."""
    pairs = [(cell.factors["learns"], cell.config["data"]["init_args"]) for cell in cells if not cell.joins]
    for learns, arguments in {str(pair): pair for pair in pairs}.values():
        SpeechCorpora(**arguments).check(Roles((learns,), ()))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "lightning-da speech-transfer",
        description="Train networks on the speakers or genders of the source, replace the output layer, and fine-tune "
        "them on the emotions of the target. The baseline is trained on emotions only. An ensemble combines the "
        "sizes by margin. After an interruption, the same command runs only the unfinished trainings. All options of "
        "`fit` are accepted too.",
        usage="lightning-da speech-transfer --config data/speech.yaml [--seeds ...] [--OPTION VALUE ...]",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds (default: 0 1 2)")
    parser.add_argument(
        "--source_tasks", nargs="+", default=SOURCE_TASKS, choices=SOURCE_TASKS, metavar="NAME",
        help="tasks of the first stage: none, gender, speaker (default: all three)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="+", default=["1024:1024", "2048:2048"], metavar="N:N",
        help="network sizes, as widths of the hidden layers (default: 1024:1024 2048:2048)",
    )  # fmt: skip
    add_options(parser)
    parser.add_argument("--name", help="name of the MLflow run that contains the experiment")
    return parser


def _size(text: str) -> str:
    if not all(part.isdecimal() and int(part) for part in text.split(":")):
        raise ConfigError(f"sizes: {text!r} is no list of widths; write it like 1024:1024")
    return text
