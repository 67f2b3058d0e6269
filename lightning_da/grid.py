"""Grids of trainings: children of one MLflow run, in processes of their own; a second call runs what is missing."""

import copy
import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.accelerators import CUDAAccelerator
from mlflow.entities import Run

from lightning_da.errors import ConfigError
from lightning_da.tracking import Tracker, TrackingError, client, find_fit, parameters, search_runs, tracking_uri

SPAWN = get_context("spawn")

Main = Callable[[list[str]], Any]
"""Runs a command line."""

OF_NO_EFFECT = (
    *("logger", "callbacks", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"),
    *("limit_val_batches", "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps"),
)
"""Options of the trainer that change no result of a training."""


class Cell(Hashable, Protocol):
    """One training of a grid: a NamedTuple of what JSON can hold."""

    @property
    def name(self) -> str:
        """The name of its run."""
        ...

    @property
    def bases(self) -> tuple[Any, ...]:
        """The cells whose runs it starts from."""
        ...

    @property
    def metric(self) -> str:
        """The test metric that says how well it did."""
        ...


C = TypeVar("C", bound=Cell)
C_contra = TypeVar("C_contra", bound=Cell, contravariant=True)


class Grid(Protocol[C_contra]):
    """What all cells have in common."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of a fit from which those of the cells are made."""
        ...

    def digest(self) -> str:
        """Equal for grids whose cells can stand in one table."""
        ...

    def cell_config(self, cell: C_contra, bases: list[str]) -> dict[str, Any]:
        """The configuration of a fit that is one cell.

        Args:
            cell: The cell.
            bases: Ids of the runs that it starts from.
        """
        ...


class Result(NamedTuple):
    """What a finished cell leaves: its test metrics, seconds, and its run."""

    metrics: dict[str, float]
    seconds: float
    run_id: str


def digest(config: dict[str, Any], *more: Any) -> str:
    """A digest of what of a configuration has an effect, and of more that JSON can hold."""
    trainer = {k: v for k, v in config["trainer"].items() if k not in OF_NO_EFFECT}
    same = [config["model"], config["data"], trainer, *more]
    return hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_trainable(cli: Any, seeds: Sequence[int], reserved: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that a fit can be the model of a grid's trainings, and returns its configuration.

    Args:
        cli: The `TransferCLI` of the fit.
        seeds: Of the repetitions.
        reserved: Arguments of the method that the grid sets, and what they are where nobody has set them.

    Raises:
        ConfigError: If something is set that the grid sets for each training, or there is no MLflow store to keep it.
    """
    config: dict[str, Any] = cli.plain(cli.config.fit)
    arguments = config["model"]["init_args"]
    set_here = [f"model.init_args.{key}" for key, default in reserved.items() if arguments[key] != default]
    set_here += [key for key in ("seed_everything", "after", "ckpt_path") if config[key]]
    if set_here:
        raise ConfigError(f"{set_here[0]}: this command sets it for each training; leave it out")
    if not isinstance(cli.trainer.logger, Tracker):
        raise ConfigError("trainer.logger: the grid is kept in MLflow; leave it out")
    if cli.trainer.world_size > 1:
        raise ConfigError(f"trainer.devices: a training runs on one, not {cli.trainer.world_size}; leave it out")
    if min(seeds) < 0:
        raise ConfigError(f"seeds: {min(seeds)} is less than 0")
    return config


def run_grid(
    grid: Grid[C],
    cells: Sequence[C],
    cli: Any,
    main: Main,
    name: str,
    jobs: int | None,
    report: Callable[[dict[C, Result], str], pd.DataFrame],
) -> pd.DataFrame:
    """Runs what is not there yet of a grid.

    Args:
        grid: What all cells have in common.
        cells: The trainings that are wanted, each after those that it starts from.
        cli: The `TransferCLI` of the fit that the configuration is of.
        main: Runs the command line `fit ...` in another process, and returns it.
        name: Of the run of the whole grid.
        jobs: Trainings at a time; None has one a GPU, else one a core.
        report: Makes the table of all finished cells, those of earlier calls too, and writes it into the grid's run,
            whose id it is given.

    Returns:
        The table.

    Raises:
        ConfigError: If another process runs the same grid, or a cell failed.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: {jobs} is less than 1")
    experiment = grid.config["trainer"]["logger"]["init_args"]["experiment_name"]
    place = hashlib.sha256(tracking_uri().encode()).hexdigest()[:8]
    lock = FileLock(Path(tempfile.gettempdir()) / f"lightning_da-{grid.digest()}-{place}.lock")
    gpus = _visible_gpus() if isinstance(cli.trainer.accelerator, CUDAAccelerator) else []
    try:
        with lock.acquire(timeout=0), _workers(jobs or len(gpus) or torch.get_num_threads(), gpus) as pool:
            done, parent = _run_missing(grid, cells, main, experiment, name, pool)
            rows = report(done, parent)
            client().set_terminated(parent)
            return rows
    except Timeout as error:
        raise ConfigError("another process runs this grid; wait for it, or stop it") from error
    except KeyboardInterrupt:
        _close(grid, cells, experiment)
        raise ConfigError("interrupted; the same command goes on where it stopped") from None


def _run_missing(
    grid: Grid[C], cells: Sequence[C], main: Main, experiment: str, name: str, pool: ProcessPoolExecutor
) -> tuple[dict[C, Result], str]:
    experiment_id, parents = _runs_of(grid, experiment)
    done, failed = _finished(experiment_id, parents, cells), []
    place = sum(cell in done for cell in cells)
    if place:
        print(f"{place} of {len(cells)} trainings are there already")
    parent = _open(grid, experiment_id, parents, name, grows=place < len(cells))
    for cell, result in _run_all(grid, list(cells), done, main, parent, pool):
        place += 1
        if isinstance(result, Result):
            said = f"{result.metrics[cell.metric]:.3f} ({result.seconds:.0f} s)"
        else:
            failed.append(f"{cell.name}: {result}")
            said = f"failed: {result}"
        print(f"[{place}/{len(cells)}] {cell.name} {said}", flush=True)
    if failed:
        client().set_terminated(parent, "FAILED")
        missing = sum(cell not in done for cell in cells)
        raise ConfigError(f"{missing} of {len(cells)} trainings are missing; the first: {failed[0]}")
    return done, parent


# ---------------------------------------------------------------- the processes


def _start(counter: Any, gpus: list[str]) -> None:
    """Makes a process of the pool ready: one thread, so that results do not depend on `jobs`, and a GPU of its own."""
    with counter.get_lock():
        place = counter.value
        counter.value += 1
    torch.set_num_threads(1)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_cell(main: Main, config: dict[str, Any]) -> Result:
    """Fits and tests one cell; the tag `whole` is set when all is there."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        try:
            cli = main(["fit", "--config", str(path)])
        except SystemExit as stop:
            raise ConfigError(str(stop).removeprefix("lightning-da: error: ")) from stop
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    run_id = cli.trainer.logger.run_id
    seconds = time.monotonic() - start
    client().log_metric(run_id, "cell/seconds", seconds)
    client().set_tag(run_id, "whole", "true")
    metrics = {key: float(value) for key, value in cli.trainer.callback_metrics.items() if key.startswith("test/")}
    return Result(metrics, seconds, run_id)


def _placed(config: dict[str, Any], cell: Cell, parent: str, base: bool) -> dict[str, Any]:
    """The configuration of a cell as a child of the grid's run; one to start from keeps its last weights."""
    config = copy.deepcopy(config)
    trainer = config["trainer"]
    last = ("every_n_train_steps", "max_steps") if trainer["max_steps"] > 0 else ("every_n_epochs", "max_epochs")
    save = {"save_last": True, "save_top_k": 0, "save_weights_only": True, last[0]: trainer[last[1]]}
    checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": save}
    others = [callback for callback in trainer["callbacks"] or [] if callback["class_path"] != checkpoint["class_path"]]
    trainer["callbacks"] = [*others, checkpoint] if base else others
    trainer |= {"enable_checkpointing": base, "enable_progress_bar": False, "limit_val_batches": 0}
    tags = {"mlflow.parentRunId": parent, "cell": json.dumps(cell)}
    trainer["logger"]["init_args"] |= {"run_name": cell.name, "run_id": None, "tags": tags}
    return config


def _run_all(
    grid: Grid[C],
    cells: list[C],
    done: dict[C, Result],
    main: Main,
    parent: str,
    pool: ProcessPoolExecutor,
) -> Iterator[tuple[C, Result | BaseException]]:
    """Runs what is not done in the processes of the pool, each cell after those that it starts from."""
    waiting = [cell for cell in cells if cell not in done]
    bases = {base for cell in waiting for base in cell.bases}
    running: dict[Future[Result], C] = {}
    try:
        while waiting or running:
            ready = [cell for cell in waiting if all(base in done for base in cell.bases)]
            for cell in ready:
                config = grid.cell_config(cell, [done[base].run_id for base in cell.bases])
                running[pool.submit(_run_cell, main, _placed(config, cell, parent, cell in bases))] = cell
            waiting = [cell for cell in waiting if cell not in ready]
            if not running:
                return  # what is left starts from a cell that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenExecutor):
                    raise error
                cell = running.pop(future)
                if error is None:
                    done[cell] = future.result()
                yield cell, error or done[cell]
    except BrokenExecutor:
        for cell in running.values():
            yield cell, ConfigError("its process was killed; if memory ran out, call again with fewer --jobs")


@contextmanager
def _workers(jobs: int, gpus: list[str]) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, at once if an exception leaves it."""
    with ProcessPoolExecutor(jobs, SPAWN, _start, (SPAWN.Value("i", 0), gpus)) as pool:
        try:
            yield pool
        except BaseException:
            for worker in active_children():
                worker.kill()
            raise


def _visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(gpu) for gpu in range(torch.cuda.device_count())]


# ---------------------------------------------------------------- the store


def _children(experiment_id: str, parent: str) -> list[Run]:
    return search_runs(experiment_id, f"tags.`mlflow.parentRunId` = '{parent}'")


def _runs_of(grid: Grid[C], experiment: str) -> tuple[str, list[Run]]:
    """Id of the experiment, and the runs of the whole grid in it."""
    found = client().get_experiment_by_name(experiment)
    assert found is not None  # the logger of the configuration has made it
    return found.experiment_id, search_runs(found.experiment_id, f"tags.grid = '{grid.digest()}'")


def _finished(experiment_id: str, parents: Sequence[Run], cells: Iterable[C]) -> dict[C, Result]:
    """The cells that are whole; what an interruption has left of others is marked as killed.

    Args:
        experiment_id: Id of the experiment.
        parents: The runs of the whole grid.
        cells: Those that are wanted; one whose checkpoint is gone counts as missing if another has to start from it.
    """
    done: dict[C, Result] = {}
    cells = list(cells)
    for run in (run for parent in parents for run in _children(experiment_id, parent.info.run_id)):
        if run.data.tags.get("whole"):
            metrics = {key: value for key, value in run.data.metrics.items() if key.startswith("test/")}
            result = Result(metrics, run.data.metrics["cell/seconds"], run.info.run_id)
            done[type(cells[0])(*json.loads(run.data.tags["cell"]))] = result
        elif run.info.status not in ("FAILED", "KILLED"):
            client().set_terminated(run.info.run_id, "KILLED")
    gone: set[C] = set(cells)
    while gone:  # one that is trained again may itself start from another
        needed = {base for cell in cells if cell not in done for base in cell.bases} & done.keys()
        gone = {base for base in needed if not _has_checkpoint(done[base].run_id)}
        done = {cell: result for cell, result in done.items() if cell not in gone}
    return done


def _close(grid: Grid[C], cells: Sequence[C], experiment: str) -> None:
    """Marks what an interruption has left of a grid as killed."""
    experiment_id, parents = _runs_of(grid, experiment)
    _finished(experiment_id, parents, cells)
    for run in parents:
        if run.info.status == "RUNNING":
            client().set_terminated(run.info.run_id, "KILLED")


def _has_checkpoint(run_id: str) -> bool:
    try:
        find_fit(run_id)
    except TrackingError:
        return False
    return True


def _open(grid: Grid[C], experiment_id: str, parents: Sequence[Run], name: str, grows: bool) -> str:
    """The id of the run of the whole grid, which is made where there is none.

    One whose curves are drawn keeps them: a grid that grows beyond them gets a new run, and its trainings move there.
    """
    if parents and not (grows and parents[-1].data.metrics):
        parent: str = parents[-1].info.run_id
        client().update_run(parent, "RUNNING", name)
    else:
        parent = client().create_run(experiment_id, tags={"grid": grid.digest()}, run_name=name).info.run_id
        for key, value in parameters(grid.config).items():
            client().log_param(parent, key, value)
        client().log_text(parent, yaml.safe_dump(grid.config), "config.yaml")
    for earlier in (run.info.run_id for run in parents if run.info.run_id != parent):
        for run in _children(experiment_id, earlier):
            client().set_tag(run.info.run_id, "mlflow.parentRunId", parent)
    return parent
