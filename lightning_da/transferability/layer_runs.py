"""Layer transfer, the trainings: processes that run them, and the store that keeps what is finished."""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from mlflow.entities import Run

from lightning_da.errors import ConfigError
from lightning_da.tracking import TrackingError, client, find_fit, parameters, search_runs
from lightning_da.transferability.layer_plan import Cell, Grid

SPAWN = get_context("spawn")

Main = Callable[[list[str]], Any]
"""Runs a command line."""

# ---------------------------------------------------------------- the processes


class Result(NamedTuple):
    """What a finished cell leaves: accuracy on the test split of its task, seconds, and its run."""

    accuracy: float
    seconds: float
    run_id: str


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
    return Result(float(cli.trainer.callback_metrics["test/target/acc"]), seconds, run_id)


def run_all(
    grid: Grid,
    cells: list[Cell],
    done: dict[Cell, Result],
    main: Main,
    experiment: str,
    parent: str,
    pool: ProcessPoolExecutor,
) -> Iterator[tuple[Cell, Result | BaseException]]:
    """Runs what is not done in the processes of the pool, each cell after the one that it copies from."""
    waiting = [cell for cell in cells if cell not in done]
    running: dict[Future[Result], Cell] = {}
    try:
        while waiting or running:
            ready = [cell for cell in waiting if cell.base is None or cell.base in done]
            for cell in ready:
                base = done[cell.base].run_id if cell.base else None
                config = grid.cell_config(cell, experiment, parent, base)
                running[pool.submit(_run_cell, main, config)] = cell
            waiting = [cell for cell in waiting if cell not in ready]
            if not running:
                return  # what is left copies from a cell that failed
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
def workers(jobs: int, gpus: list[str]) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, at once if an exception leaves it."""
    with ProcessPoolExecutor(jobs, SPAWN, _start, (SPAWN.Value("i", 0), gpus)) as pool:
        try:
            yield pool
        except BaseException:
            for worker in active_children():
                worker.kill()
            raise


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(gpu) for gpu in range(torch.cuda.device_count())]


# ---------------------------------------------------------------- the store


def _children(experiment_id: str, parent: str) -> list[Run]:
    return search_runs(experiment_id, f"tags.`mlflow.parentRunId` = '{parent}'")


def finished_cells(experiment_id: str, parents: Sequence[str], cells: Sequence[Cell]) -> dict[Cell, Result]:
    """The cells that are whole; what an interruption has left of others is marked as killed.

    Args:
        experiment_id: Id of the experiment.
        parents: Ids of the runs of the whole grid.
        cells: Those that are wanted; one whose checkpoint is gone counts as missing if another has to copy from it.
    """
    done = {}
    for run in (run for parent in parents for run in _children(experiment_id, parent)):
        if run.data.tags.get("whole"):
            cell = Cell(*json.loads(run.data.tags["cell"]))
            metrics = run.data.metrics
            done[cell] = Result(metrics["test/target/acc"], metrics["cell/seconds"], run.info.run_id)
        elif run.info.status not in ("FAILED", "KILLED"):
            client().set_terminated(run.info.run_id, "KILLED")
    for base in {cell.base for cell in cells if cell.base is not None and cell not in done} & done.keys():
        try:
            find_fit(done[base].run_id)
        except TrackingError:
            del done[base]
    return done


def grid_runs(grid: Grid, experiment: str) -> tuple[str, list[Run]]:
    """The id of the experiment, and the runs of the whole grid, the earliest first."""
    found = client().get_experiment_by_name(experiment)
    assert found is not None  # the logger of the configuration has made it
    return found.experiment_id, search_runs(found.experiment_id, f"tags.grid = '{grid.digest()}'")


def open_grid(grid: Grid, experiment_id: str, parents: Sequence[Run], name: str, grows: bool) -> str:
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
