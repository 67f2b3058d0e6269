"""`lightning-da search`: finds settings of a method by a score that reads no target labels."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lightning_da.callbacks import LabelFreeScores
from lightning_da.cli import TransferCLI
from lightning_da.data import Roles
from lightning_da.errors import ConfigError, list_choices
from lightning_da.grids.engine import check_trainable, digest
from lightning_da.grids.pool import add_options, workers_of
from lightning_da.grids.search import Search, run_search
from lightning_da.grids.space import as_words, corners, read_space
from lightning_da.parser import CommandParser
from lightning_da.paths import CONF, find_config
from lightning_da.store import store_folder
from lightning_da.transferability.scores import SCORES

EXPERIMENT = "search"
SPACE = "space/adaptation.yaml"
"""The space of a method that has none of its own, `space/<method>.yaml`."""
CHOOSES = "neighbours"
"""The score that chooses a trial unless another is named."""
ORACLE = "val/target/acc"


def run(args: Sequence[str]) -> pd.DataFrame:
    """Runs the missing trials, then prints the best settings and returns the table of the trials.

    Args:
        args: The arguments after `search`.

    Raises:
        ConfigError: If the space or the options do not match the method, or no trial has a score.
    """
    given, options = _parser().parse_known_args(args)
    workers = workers_of(given)
    words = ["--trainer.logger.init_args.experiment_name", EXPERIMENT, *options]
    metric = _metric(given.score, given.oracle)
    if given.trials < 1:
        raise ConfigError(f"trials: {given.trials} is less than 1")
    cli = TransferCLI("fit", words)
    file = _space_file(given.space, cli.config.name)
    space = read_space(file)
    for values in corners(space):
        try:
            TransferCLI("fit", [*words, *as_words(values)])
        except ConfigError as error:
            raise ConfigError(
                f"space: {file} does not match the method or the data: {error}; --space FILE gives another one"
            ) from error
    seed = cli.config.seed_everything
    cli.build()
    cli.config.seed_everything = None
    config = {**check_trainable(cli, (seed,), {}, options=("devices",)), "seed_everything": seed}
    data = cli.datamodule
    data.check_has_classes("search")
    _check_scored(cli, given.score, given.oracle)
    data.check(Roles.of(cli.model, 1))
    ranges = {key: str(entry) for key, entry in space.items()}
    same = digest(config, "search", ranges, metric, data.fingerprint(), config["name"], config["after"], seed)
    name = given.name or f"search-{config['name']}-{cli.pair}"
    journal = given.journal or store_folder() / "search" / f"{name}-{same}.journal"
    return run_search(Search(name, config, words, space, metric, given.oracle, journal, given.trials), cli, workers)


def _space_file(given: str | None, method: str) -> Path:
    """The file that is given, or else that of the method."""
    if given is None:
        own = f"space/{method}.yaml"
        return find_config(own if (CONF / own).is_file() else SPACE)
    try:
        return find_config(given)
    except ConfigError as error:
        raise ConfigError(str(error).replace("config:", "space:", 1)) from error


def _metric(score: str | None, oracle: bool) -> str:
    """The metric to maximise."""
    if oracle and score is not None:
        raise ConfigError("oracle: it chooses by target labels, and --score by a score without them; give one of them")
    if score is not None and score.startswith(("val/target", "test/")):
        raise ConfigError(f"score: {score} reads target labels; to choose by the validation labels, give --oracle")
    if score is not None and score not in SCORES:
        raise ConfigError(f"score: no score {score!r}; {list_choices(score, SCORES)}")
    return ORACLE if oracle else f"score/{score or CHOOSES}"


def _check_scored(cli: TransferCLI, score: str | None, oracle: bool) -> None:
    """Checks that the callbacks compute the score."""
    if cli.config.trainer.limit_val_batches == 0:
        raise ConfigError("trainer.limit_val_batches: without validation there is no score; leave it out")
    if oracle:
        return
    if len(cli.datamodule.domains) < 2:
        raise ConfigError("data: scores compare two domains; for one domain, give --oracle: it uses validation labels")
    computed = [c.scores for c in cli.trainer.callbacks if isinstance(c, LabelFreeScores)]  # type: ignore[attr-defined]
    if (score or CHOOSES) not in {name for names in computed for name in names}:
        raise ConfigError(
            f"trainer.callbacks: no lightning_da.callbacks.LabelFreeScores computes {score or CHOOSES!r}; add it"
        )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "lightning-da search",
        description="Search settings of a method: train with different values of some options, and print the values "
        "with the highest score. The scores read no target labels. Trainings that are worse than the others are ended "
        "early. After an interruption, the same command goes on; several at once share the trials. All options of "
        "`fit` are accepted too.",
        usage="lightning-da search --config method/NAME.yaml --config data/NAME.yaml [--space FILE] [--trials N] "
        "[--OPTION VALUE ...]",
    )
    parser.add_argument(
        "--space", metavar="FILE",
        help=f"YAML file with a range or choices for each option to search (default: space/METHOD.yaml, or {SPACE})",
    )  # fmt: skip
    parser.add_argument(
        "--trials",
        type=int,
        default=20,
        metavar="N",
        help="number of trials in all; a larger number goes on (default: 20)",
    )
    parser.add_argument(
        "--score", metavar="NAME", help=f"the score that chooses: {', '.join(SCORES)} (default: {CHOOSES})"
    )
    parser.add_argument(
        "--oracle", action="store_true", help="choose by the accuracy on the labels of the target's validation split"
    )
    add_options(parser)
    parser.add_argument(
        "--journal", type=Path, metavar="FILE",
        help="file of the trials, for commands on several machines with a shared disk (default: in the store's folder)",
    )  # fmt: skip
    parser.add_argument("--name", help="name of the MLflow run that contains the search")
    return parser
