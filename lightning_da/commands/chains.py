"""`lightning-da chains`: transitive transfer, from the source to the target through other domains, in every order.

At each stop the network is fine-tuned on the labels of that domain, from the weights of the stop before.

Source: Tan et al., "Transitive transfer learning", KDD 2015, and "Distant domain transfer learning", AAAI 2017.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import pandas as pd

from lightning_da.cli import TransferCLI
from lightning_da.data import Roles
from lightning_da.errors import ConfigError, check_range
from lightning_da.grids.chains import chains_of, plan, report
from lightning_da.grids.engine import Grid, check_trainable, digest, run_grid
from lightning_da.grids.pool import add_options, workers_of
from lightning_da.methods import FineTune
from lightning_da.parser import CommandParser

EXPERIMENT = "chains"
RESERVED = {"train_on": "source", "init_from": None, "init_layers": "all", "keep_head": False, "blocks": None}
"""Arguments of `FineTune` that the grid sets, with their default values."""


def run(args: Sequence[str]) -> pd.DataFrame:
    """Runs the unfinished trainings, then prints and returns the table of all chains.

    Args:
        args: The arguments after `chains`.

    Raises:
        ConfigError: If the options do not match the data or the network, the domains differ in their classes or the
            shape of a sample, another process runs the same command, or a training failed.
    """
    given, options = _parser().parse_known_args(args)
    workers = workers_of(given)
    experiment = ["--trainer.logger.init_args.experiment_name", EXPERIMENT]
    words = ["--config", "method/source_only.yaml", *experiment, *options]
    first = TransferCLI("fit", words).build()
    if type(first.model) is not FineTune:
        raise ConfigError("chains fine-tunes at each stop, with the method FineTune; leave out other methods")
    check_trainable(first, given.seeds, RESERVED)
    data = first.datamodule
    if len(data.domains) < 2:
        raise ConfigError("chains leads from a source to a target, but there is one domain; set --data.source")
    named = [data.source, *given.through]
    if len({*named, data.target}) < len(named) + 1:
        raise ConfigError(f"through: {' '.join(given.through)} names a domain twice, or the source or the target")
    longest = len(given.through) if given.longest is None else given.longest
    check_range("longest", longest, 0, len(given.through))
    stops = {data.source: first}
    for domain in given.through:
        try:
            stops[domain] = TransferCLI("fit", [*words, f"--data.init_args.source={domain}"]).build()
        except ConfigError as error:
            raise ConfigError(str(error).replace("data.source", "through", 1)) from error
    data.check(Roles(("target",), ()))
    for domain, cli in stops.items():
        stop = cli.datamodule
        stop.check(Roles(("source",), ()))
        if stop.input_shape != data.input_shape:
            raise ConfigError(
                f"through: a sample has shape {stop.input_shape} on the way from {domain!r} and {data.input_shape} "
                f"from {data.source!r}, so that one network cannot read both; leave out {domain!r}"
            )
    configs = {domain: cli.plain() for domain, cli in stops.items()}
    chains = chains_of(data.source, given.through, data.target, longest)
    same = digest(configs[data.source], "chains", [cli.datamodule.fingerprint() for cli in stops.values()])
    name = given.name or f"chains-{first.pair}"
    config = {**configs[data.source], "name": "chains"}
    return run_grid(
        Grid(name, config, same, plan(configs, chains, given.seeds), partial(report, chains, name)), first, workers
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "lightning-da chains",
        description="Transitive transfer: fine-tune a network from the source to the target through other domains, in "
        "every order, with the labels that each domain has (the target's few by --data.target_labels). The table has "
        "direct transfer, the target from scratch and the same ways without the source beside. After an interruption, "
        "the same command runs only the unfinished trainings. All options of `fit` are accepted too.",
        usage="lightning-da chains --config data/NAME.yaml --through DOMAIN ... [--OPTION VALUE ...]",
    )
    parser.add_argument(
        "--through", nargs="+", required=True, metavar="DOMAIN", help="the other domains, named as --data.source"
    )
    parser.add_argument(
        "--longest", type=int, metavar="N", help="the largest number of other domains in a chain (default: all)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds (default: 0 1 2)")
    add_options(parser)
    parser.add_argument("--name", help="name of the MLflow run that contains the chains")
    return parser
