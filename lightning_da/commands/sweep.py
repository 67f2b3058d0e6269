"""`lightning-da sweep`: fits, tests and compares several methods and seeds."""

import argparse
import json
from collections.abc import Sequence
from functools import partial

import pandas as pd
import yaml

from lightning_da.commands.compare import comparison, describe, print_comparison, rows_of, verdict_of
from lightning_da.data import Roles
from lightning_da.errors import ConfigError
from lightning_da.grids.engine import (
    Cell,
    Grid,
    Result,
    add_fit,
    check_named_once,
    check_trainable,
    digest,
    parse_methods,
    run_grid,
)
from lightning_da.grids.pool import add_options, workers_of
from lightning_da.grids.tables import bars
from lightning_da.mlflow_view import GAP_CLOSED, VERDICT, view_url
from lightning_da.parser import CommandParser
from lightning_da.paths import methods, those_left
from lightning_da.store import client
from lightning_da.tracking import find_fit

METHODS = those_left("source_only", "dan", "deep_coral", "dann", "adda", "target_only")
OF_ONE = ("linear_probe", "fine_tune")
"""The methods for one domain."""


def run(args: Sequence[str]) -> pd.DataFrame:
    """Fits and tests each method with each seed, except finished trainings, then prints and returns the table.

    Args:
        args: The arguments after `sweep`.

    Raises:
        ConfigError: If no method accepts the options, another process runs the same sweep, no training succeeded, or a
            method of `--methods` cannot be trained on the data.
    """
    given, options = _parser().parse_known_args(args)
    workers = workers_of(given)
    check_named_once(given.methods, options)
    of_layer = _of_layer(given.features_of, given.layer)
    parsed, refused = parse_methods(given.methods or METHODS, options, of_layer, f"-{given.layer or 'features'}")
    first = next(iter(parsed.values())).build()
    data = first.datamodule
    if len(data.domains) < 2 and given.methods is None and len(parsed) > 1:
        parsed, refused = parse_methods(OF_ONE, options)
    data.check(Roles((), (), tasks_differ=Roles.of(first.model, 1).tasks_differ))
    if data.source == data.target and len(data.domains) > 1:  # one corpus of speech, whose labels differ with the task
        raise ConfigError(f"source and target are both {data.source!r}; a sweep compares two domains")
    pattern = check_trainable(first, given.seeds, {}, options=())
    cells: dict[str, Cell] = {}
    for seed in dict.fromkeys(given.seeds):
        for cli in parsed.values():
            add_fit(cells, cli, seed)
    same = digest({**pattern, "model": None}, "sweep", data.fingerprint())
    name = given.name or first.pair
    wanted = [cell.key for cell in cells.values()]
    config = {**pattern, "name": "sweep"}
    grid = Grid(
        f"sweep-{name}",
        config,
        same,
        list(cells.values()),
        partial(_report, wanted),
        needs_all=len(cells) == 1,
        chosen=given.methods is not None,
        refused=refused,
    )
    return run_grid(grid, first, workers)


def _parser() -> argparse.ArgumentParser:
    available = methods()
    parser = CommandParser(
        "lightning-da sweep",
        description="Fit and test several methods and seeds, then print a comparison. After an interruption, the same "
        "command runs only the unfinished trainings. All options of `fit` are accepted too.",
        usage="lightning-da sweep --config data/NAME.yaml [--methods ...] [--seeds ...] [--OPTION VALUE ...]",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME",
        help=f"{', '.join(available)}, or paths of YAML files (default: the method in a file of --config, or "
        f"{' '.join(METHODS)})",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of training (default: 0)")
    parser.add_argument(
        "--features_of", metavar="RUN", help="the run whose network gives the vectors of the classical methods"
    )
    parser.add_argument("--layer", metavar="NAME", help="the layer that gives them (default: see `Classical`)")
    add_options(parser)
    parser.add_argument("--name", help="name of the MLflow run that contains the sweep")
    return parser


def _of_layer(run: str | None, layer: str | None) -> list[str]:
    """The options of a method that reads the vectors of a layer: the network of a run, and the layer."""
    words = [] if layer is None else [f"--model.init_args.layer={layer}"]
    if run is None:
        return words
    fit = find_fit(run)
    if fit.config is None:
        raise ConfigError(f"features_of: {run!r} has no configuration; give a run of the store, by its name or id")
    network = yaml.safe_load(fit.config.read_text())["model"]["init_args"]
    parts = [f"--model.init_args.{key}={json.dumps(network[key])}" for key in ("backbone", "bottleneck", "standardize")]
    return [*words, *parts, f"--model.init_args.init_from={run}"]


def _report(wanted: Sequence[str], results: Sequence[Result], parent: str) -> pd.DataFrame:
    """Prints the comparison of the given cells, and records its table and picture in the run of the sweep."""
    run_of = {json.dumps(result.factors, sort_keys=True): result.run_id for result in results}
    runs = [client().get_run(run_of[key]) for key in reversed(wanted) if key in run_of]
    rows = rows_of(runs)
    compared = comparison(rows)
    table = print_comparison(compared, runs)
    _record_comparison(rows, compared, parent)
    client().log_text(parent, table.drop(columns="settings").to_csv(index=False), "sweep.csv")
    if rows["target acc"].notna().any():
        picture = bars(rows, "method", None, "target acc", str(rows["pair"].iloc[0]), "target accuracy, test split")
        client().log_figure(parent, picture, "sweep.png")
    experiment = client().get_experiment(client().get_run(parent).info.experiment_id)
    print(f"\nto compare the runs in the MLflow UI, run `lightning-da ui` and open\n{view_url(experiment)}")
    return table


def _record_comparison(rows: pd.DataFrame, table: pd.DataFrame, parent: str) -> None:
    """Puts the gap closed and the verdict on the runs, for the columns of the MLflow page."""
    for run, gap in rows.dropna(subset="gap closed")[["run", "gap closed"]].itertuples(index=False):
        client().log_metric(run, GAP_CLOSED, gap)
    for _, group in table.groupby("pair", sort=False):
        if (said := verdict_of(group)) is None:
            continue
        client().set_tag(parent, VERDICT, describe(said))
        for name, runs in group[group["answers"].map(bool)][["method", "runs"]].itertuples(index=False):
            for run in runs:
                client().set_tag(run, VERDICT, "chosen" if name == said.method else "not chosen")
