"""Grids of trainings: separate processes, child runs of one MLflow run; a second call runs the missing trainings."""

import copy
import hashlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import yaml
from filelock import FileLock, Timeout
from mlflow.entities import Run

from lightning_da.cli import OF_NO_EFFECT, TransferCLI
from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError, RunError, check_range, one_line
from lightning_da.grids.cell import Done, Order, run_cell
from lightning_da.grids.pool import Workers
from lightning_da.mlflow_view import PAIR
from lightning_da.paths import find_method, with_found_configs
from lightning_da.signatures import arguments, class_path, full_spelling, imported_modules, source_file
from lightning_da.store import TrackingError, client, search_runs, tracking_uri
from lightning_da.tracking import Tracker, find_fit, pair_of, parameters, send_waiting

OF_EFFECT = (
    *("classical", "data", "losses", "methods", "networks", "speech", "text"),
    *("gather.py", "inputs.py", "schedules.py"),
)
"""Parts of the package that change the result of a training."""


@dataclass(frozen=True)
class Cell:
    """One training of a grid, or one ensemble of trainings.

    Attributes:
        name: Name of the cell's run.
        factors: Values that identify the cell in the grid, plain values for JSON. `seed` is the repetition.
        config: Configuration of the fit. If the cell starts from another cell and `after` is not set, `init_from` is
            set when the cell starts.
        bases: Cells that this cell starts from, or that it combines.
        joins: Whether the cell is an ensemble of its bases.
    """

    name: str
    factors: Mapping[str, Any]
    config: dict[str, Any] = field(repr=False)
    bases: tuple["Cell", ...] = ()
    joins: bool = False

    @property
    def key(self) -> str:
        """Identifier of the cell: equal factors have equal keys."""
        return json.dumps(self.factors, sort_keys=True)


class Result(NamedTuple):
    """A finished cell: factors, test metrics, duration in seconds and run id."""

    factors: dict[str, Any]
    metrics: dict[str, float]
    seconds: float
    run_id: str


@dataclass(frozen=True)
class Grid:
    """Cells that form one table.

    Attributes:
        name: Name of the grid's run.
        config: Configuration shared by the cells; it is recorded in the grid's run.
        digest: Identifier of the grid: cells of grids with equal digests form one table. See the function `digest`.
        cells: The trainings; each comes after the cells that it starts from.
        report: Function from all finished cells (also from earlier calls) and the id of the grid's run to the table; it
            records tables and pictures in that run.
        needs_all: Whether there is no report if a cell failed; otherwise the report leaves it out.
        chosen: Whether the user named the cells, so that one that cannot run is an error.
        refused: Error messages of trainings that have no cell because their options are invalid.
    """

    name: str
    config: dict[str, Any]
    digest: str
    cells: Sequence[Cell]
    report: Callable[[Sequence[Result], str], pd.DataFrame]
    needs_all: bool = True
    chosen: bool = True
    refused: Sequence[str] = ()

    @property
    def experiment(self) -> str:
        """Name of the grid's MLflow experiment."""
        return str(self.config["trainer"]["logger"]["init_args"]["experiment_name"])


def parse_methods(
    names: Sequence[str], options: Sequence[str], of_layer: Sequence[str] = (), suffix: str = ""
) -> tuple[dict[str, TransferCLI], list[str]]:
    """Parses a fit of each method.

    Args:
        names: Methods, as for `find_method`. They are left out if the options name a method themselves, for example
            with a file of `conf/experiment`: this is the only one then.
        options: The options of all of them.
        of_layer: Further options of the methods that read the vectors of a layer: they have an argument `layer`.
        suffix: What is added to the names of these methods then.

    Returns:
        The fits, by the name of the method, and an error message for each method that does not accept the options.

    Raises:
        ConfigError: If no method accepts the options.
    """
    if any(word.partition("=")[0] == "--ckpt_path" for word in options):
        raise ConfigError("ckpt_path: this command starts its own trainings; leave it out, or use fit")
    own = class_path(full_spelling(with_found_configs(options)), "model")
    files = {name: ["--config", str(find_method(name))] for name in names} if own is None else {own: []}
    parsed: dict[str, TransferCLI] = {}
    refused: list[str] = []
    for name, file in files.items():
        try:
            method = class_path(full_spelling([*file, *with_found_configs(options)]), "model")
            reads_layer = bool(of_layer) and method is not None and "layer" in arguments(method)
            more = [*of_layer, f"--name={Path(name).stem}{suffix}"] if reads_layer else []
            parsed[name] = TransferCLI("fit", [*file, *options, *more])
        except (ConfigError, SystemExit) as error:
            message = str(error).removeprefix("lightning-da: error: ")
            if len(files) == len(refused) + 1:
                raise ConfigError(message) from error
            refused.append(f"{name}: {message}")
    return parsed, refused


def check_named_once(named: Sequence[str] | None, options: Sequence[str]) -> None:
    """Refuses methods that are named by `--methods` and by the options."""
    own = class_path(full_spelling(with_found_configs(options)), "model")
    if own is not None and named:
        raise ConfigError(f"the options name the method {own}; leave out --methods, or name its file there")


def add_fit(
    cells: dict[str, Cell], cli: TransferCLI, seed: int, factors: Mapping[str, Any] = MappingProxyType({})
) -> Cell:
    """Adds a training, and before it the training that it starts from, to the cells of a grid.

    Args:
        cells: The cells, by their key.
        cli: The fit.
        seed: Its seed.
        factors: Further factors of the cell, besides method, seed and settings.
    """
    before, bases = cli.first_stage(), ()  # type: tuple[Any, tuple[Cell, ...]]
    if before is not None:
        bases = (add_fit(cells, TransferCLI("fit", before), seed, dict.fromkeys(factors, 0)),)
    config: dict[str, Any] = {**cli.plain(), "seed_everything": seed}
    more = {"method": config["name"], "seed": seed, "settings": digest(config)}
    suffix = "".join(f"-{value}" for value in factors.values() if value)
    cell = Cell(f"{config['name']}{suffix}-{cli.pair}-s{seed}", {**factors, **more}, config, bases)
    return cells.setdefault(cell.key, cell)


def digest(config: dict[str, Any], *more: Any) -> str:
    """A digest of all settings and code that change the result of a training.

    Args:
        config: The configuration of a fit.
        more: Further values, plain values for JSON.
    """
    trainer = {k: v for k, v in config["trainer"].items() if k not in OF_NO_EFFECT}
    same = [config["model"], config["data"], trainer, _code(config), *more]
    return hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _code(config: dict[str, Any]) -> str:
    """A digest of the package's source code and of the user's modules in a configuration."""
    package = Path(__file__).parent.parent
    files = {file for part in OF_EFFECT for file in [*package.glob(part), *package.glob(f"{part}/*.py")]}
    names = [name.rpartition(".")[0] for name in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", json.dumps(config, default=str))]
    while names:
        file = source_file(names.pop())
        own = file is not None and package not in file.parents and not file.is_relative_to(sys.base_prefix)
        if file is not None and own and not file.is_relative_to(sys.prefix) and file not in files:
            files.add(file)
            names += imported_modules(file)
    content = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix == ".py"):
        content.update(file.read_bytes())
    return content.hexdigest()


def check_trainable(
    cli: TransferCLI, seeds: Sequence[int], reserved: Mapping[str, Any], options: Sequence[str] = ("after", "devices")
) -> dict[str, Any]:
    """Checks that a fit can be the pattern for all trainings of a grid, and returns its configuration.

    Args:
        cli: The fit.
        seeds: Seeds of the repetitions.
        reserved: Arguments of the method that the grid sets, with their default values.
        options: Options that the grid sets, besides the seed: `after`, and `devices` if each training needs one device.

    Raises:
        ConfigError: If an option is set that the grid sets itself, a seed is negative, or there is no `Tracker`.
    """
    config = cli.plain()
    arguments = config["model"]["init_args"]
    set_here = [f"model.{key}" for key, default in reserved.items() if arguments[key] != default]
    set_here += [key for key in ("seed_everything", "ckpt_path", *options) if config.get(key)]
    if set_here:
        raise ConfigError(f"{set_here[0]}: this command sets it for each training; leave it out")
    if not isinstance(cli.trainer.logger, Tracker):
        raise ConfigError("trainer.logger: the grid is recorded in MLflow; leave it out")
    if "devices" in options and cli.trainer.world_size > 1:
        raise ConfigError(f"trainer.devices: each training runs on one, not {cli.trainer.world_size}; leave it out")
    check_range("seeds", list(seeds), 0, 2**32 - 1)
    return config


def run_grid(grid: Grid, cli: TransferCLI, workers: Workers) -> pd.DataFrame:
    """Runs the unfinished cells of a grid.

    Args:
        grid: The grid.
        cli: A fit with the same trainer options as the cells.
        workers: Who runs the trainings.

    Returns:
        The table of the report.

    Raises:
        ConfigError: If another process runs the same grid, no cell can run, or one that the user named cannot.
        RunError: If the grid is interrupted, or a cell failed.
    """
    place = hashlib.sha256(tracking_uri().encode()).hexdigest()[:8]
    lock = FileLock(Path(tempfile.gettempdir()) / f"lightning_da-{grid.digest}-{place}.lock")
    try:
        with lock.acquire(timeout=0), workers.pool(cli.trainer, grid.digest) as pool:
            return _run(grid, cli.trainer.world_size, pool)
    except Timeout as error:
        raise ConfigError("another process runs this grid; wait for it, or stop it") from error
    except KeyboardInterrupt:
        _close(grid)
        raise RunError("interrupted; run the same command again to continue") from None


def _run(grid: Grid, devices: int, pool: Executor) -> pd.DataFrame:
    send_waiting()
    experiment_id, parents = _runs_of(grid)
    done, failed = finished_cells(experiment_id, parents, grid.cells), list(grid.refused)
    place = sum(cell.key in done for cell in grid.cells)
    if place:
        print(f"{place} of {len(grid.cells)} trainings are already finished")
    parent = _open(grid, experiment_id, parents, grows=place < len(grid.cells))
    try:
        broken: list[str] = []
        for cell, found in _run_missing(grid, done, parent, devices, pool):
            place += 1
            print(f"[{place}/{len(grid.cells)}] {cell.name} {_said(found, done.get(cell.key))}", flush=True)
            if isinstance(found, BaseException):
                failed.append(f"{cell.name}: {reason(found)}")
                broken += [] if isinstance(found, ConfigError) else failed[-1:]
        missing = [cell for cell in grid.cells if cell.key not in done]
        if missing and (grid.needs_all or len(missing) == len(grid.cells)):
            kind = RunError if broken else ConfigError
            raise kind(f"{len(missing)} of {len(grid.cells)} trainings are missing; the first: {failed[0]}")
        rows = grid.report(list(done.values()), parent)
        if failed:
            print("\nnot run:\n  " + "\n  ".join(failed), file=sys.stderr)
        if broken:
            raise RunError(f"{len(broken)} of {len(grid.cells)} trainings failed; the first: {broken[0]}")
        if grid.chosen and (impossible := failed[len(grid.refused) :]):
            raise ConfigError(f"{len(impossible)} of {len(grid.cells)} cannot run; the first: {impossible[0]}")
    except Exception as error:
        _end_unfinished(experiment_id, [parent])
        client().set_tag(parent, "failure", one_line(error))
        client().set_terminated(parent, "FAILED")
        if isinstance(error, ConfigError) and not _children(experiment_id, parent):
            client().delete_run(parent)
        raise
    client().set_terminated(parent)
    return rows


def _said(found: Done | BaseException, result: Result | None) -> str:
    """Text about a finished or failed cell."""
    if isinstance(found, Done):
        assert result is not None
        named = [(d, f"test/{d}/{score}") for d in DOMAINS for score in ("acc", "rmse", "dice")]
        scores = [f"{d} {result.metrics[name]:.3f}" for d, name in named if name in result.metrics]
        return "\n  ".join([f"{', '.join(scores)} ({result.seconds:.0f} s)", *found.warnings])
    if os.environ.get("LIGHTNING_DA_DEBUG") and not isinstance(found, ConfigError | RunError):
        traceback.print_exception(found)
    return f"failed: {reason(found)}"


def reason(error: BaseException) -> str:
    """The error of a training in one line."""
    return str(error) if isinstance(error, ConfigError | RunError) else f"{type(error).__name__}: {one_line(error)}"


def order_of(
    cell: Cell, bases: Sequence[Result], parent: str, is_base: bool, devices: int, validates: bool = False
) -> Order:
    """The `Order` for a cell, whose run is a child of the grid's run.

    Args:
        cell: The cell.
        bases: Results of the cells that it starts from.
        parent: Id of the grid's run.
        is_base: Whether another cell starts from it, so that it keeps its weights.
        devices: Number of devices for the training.
        validates: Whether it is validated while it trains, even if no checkpoint depends on that.
    """
    config = copy.deepcopy(cell.config)
    trainer = config["trainer"]
    trainer |= {"enable_progress_bar": False}
    if not cell.joins and not validates and not _keeps_checkpoint(trainer):
        trainer |= {"limit_val_batches": 0, "enable_checkpointing": is_base}
        trainer["callbacks"] = [*_callbacks(trainer), *([_last_weights(trainer)] if is_base else [])]
    tracker = trainer["logger"]["init_args"]
    tags = {**(tracker["tags"] or {}), "mlflow.parentRunId": parent, "cell": json.dumps(cell.factors)}
    tracker |= {"run_name": cell.name, "run_id": None, "tags": tags}
    if cell.joins:
        return Order(config, None, tuple(base.run_id for base in bases), devices)
    if not bases:
        return Order(config, None, (), devices)
    if config["after"] is not None:
        return Order(config, find_fit(bases[0].run_id).checkpoint, (), devices)
    config["model"]["init_args"]["init_from"] = bases[0].run_id
    return Order(config, None, (), devices)


CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"


def _keeps_checkpoint(trainer: dict[str, Any]) -> bool:
    return any(callback["class_path"] == CHECKPOINT for callback in _callbacks(trainer))


def _callbacks(trainer: dict[str, Any]) -> list[dict[str, Any]]:
    """The callbacks in a configuration, where one callback needs no list."""
    given = trainer["callbacks"] or []
    return [given] if isinstance(given, dict) else list(given)


def _last_weights(trainer: dict[str, Any]) -> dict[str, Any]:
    """A callback that keeps the weights of the last step."""
    last = ("every_n_train_steps", "max_steps") if trainer["max_steps"] > 0 else ("every_n_epochs", "max_epochs")
    save = {"save_last": True, "save_top_k": 0, "save_weights_only": True, last[0]: trainer[last[1]]}
    return {"class_path": CHECKPOINT, "init_args": save}


def _run_missing(
    grid: Grid, done: dict[str, Result], parent: str, devices: int, pool: Executor
) -> Iterator[tuple[Cell, Done | BaseException]]:
    """Runs the unfinished cells in the pool, each after its bases."""
    waiting = [cell for cell in grid.cells if cell.key not in done]
    bases = {base.key for cell in waiting for base in cell.bases}
    running: dict[Future[Done], Cell] = {}
    try:
        while waiting or running:
            ready = [cell for cell in waiting if all(base.key in done for base in cell.bases)]
            for cell in ready:
                results = [done[base.key] for base in cell.bases]
                running[pool.submit(run_cell, order_of(cell, results, parent, cell.key in bases, devices))] = cell
            waiting = [cell for cell in waiting if cell not in ready]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenExecutor | KeyboardInterrupt):
                    raise error
                cell = running.pop(future)
                if error is None:
                    done[cell.key] = result_of(client().get_run(future.result().run_id))
                yield cell, error or future.result()
        for cell in waiting:
            missing = next(base.name for base in cell.bases if base.key not in done)
            yield cell, ConfigError(f"it starts from {missing}, which failed")
    except BrokenExecutor:
        killed = RuntimeError("its process was killed; if memory ran out, run again with fewer --jobs")
        for cell in running.values():
            yield cell, killed
        for cell in waiting:
            yield cell, RuntimeError("not started, since the process of another training was killed")


# ---------------------------------------------------------------- the store


def _children(experiment_id: str, parent: str) -> list[Run]:
    return search_runs(experiment_id, f"tags.`mlflow.parentRunId` = '{parent}'")


def _runs_of(grid: Grid) -> tuple[str, list[Run]]:
    """Id of the experiment, and its runs that contain this grid."""
    found = client().get_experiment_by_name(grid.experiment)
    assert found is not None  # created by the logger
    return found.experiment_id, search_runs(found.experiment_id, f"tags.grid = '{grid.digest}'")


def result_of(run: Run) -> Result:
    """The result in the run of a finished cell."""
    metrics = {key: value for key, value in run.data.metrics.items() if key.startswith("test/")}
    return Result(json.loads(run.data.tags["cell"]), metrics, float(run.data.tags["seconds"]), run.info.run_id)


def finished_cells(experiment_id: str, parents: Sequence[Run], cells: Iterable[Cell]) -> dict[str, Result]:
    """The finished cells by their key; marks unfinished runs of an interrupted call as killed.

    Args:
        experiment_id: Id of the experiment.
        parents: The runs that contain the grid.
        cells: The cells of the grid; a finished cell without a checkpoint file counts as unfinished if an unfinished
            cell starts from it.
    """
    done: dict[str, Result] = {}
    cells = list(cells)
    for run in (run for parent in parents for run in _children(experiment_id, parent.info.run_id)):
        if run.data.tags.get("whole"):
            result = result_of(run)
            done[json.dumps(result.factors, sort_keys=True)] = result
    _end_unfinished(experiment_id, [parent.info.run_id for parent in parents])
    gone = {cell.key for cell in cells}
    while gone:  # a cell to repeat may itself start from a cell without a checkpoint
        needed = {base.key for cell in cells if cell.key not in done for base in cell.bases} & done.keys()
        gone = {base for base in needed if not _has_checkpoint(done[base].run_id)}
        done = {key: result for key, result in done.items() if key not in gone}
    return done


def _end_unfinished(experiment_id: str, parents: Sequence[str]) -> None:
    """Marks the child runs that have not ended as killed."""
    for run in (run for parent in parents for run in _children(experiment_id, parent)):
        if not run.data.tags.get("whole") and run.info.status not in ("FAILED", "KILLED"):
            client().set_terminated(run.info.run_id, "KILLED")


def _close(grid: Grid) -> None:
    """Marks the unfinished runs of an interrupted grid as killed."""
    experiment_id, parents = _runs_of(grid)
    finished_cells(experiment_id, parents, grid.cells)
    for run in parents:
        if run.info.status == "RUNNING":
            client().set_terminated(run.info.run_id, "KILLED")


def _has_checkpoint(run_id: str) -> bool:
    try:
        find_fit(run_id)
    except TrackingError:
        return False
    return True


def _open(grid: Grid, experiment_id: str, parents: Sequence[Run], grows: bool) -> str:
    """Id of the grid's run, which is created if it does not exist.

    A run with logged curves is not changed: if cells are added to the grid, it gets a new run, and all child runs move
    to the new run.
    """
    if parents and not (grows and parents[-1].data.metrics):
        parent: str = parents[-1].info.run_id
        client().update_run(parent, "RUNNING", grid.name)
    else:
        params = parameters(grid.config)
        given = grid.config["trainer"]["logger"]["init_args"]["tags"] or {}
        tags = {**given, "grid": grid.digest, PAIR: pair_of(params)}
        parent = client().create_run(experiment_id, tags=tags, run_name=grid.name).info.run_id
        for key, value in params.items():
            client().log_param(parent, key, value)
        client().log_text(parent, yaml.safe_dump(grid.config), "config.yaml")
    for earlier in (run.info.run_id for run in parents if run.info.run_id != parent):
        for run in _children(experiment_id, earlier):
            client().set_tag(run.info.run_id, "mlflow.parentRunId", parent)
    return parent
