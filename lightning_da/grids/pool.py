"""The processes or jobs that run trainings side by side."""

import argparse
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from lightning import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from lightning_da.errors import ConfigError, check_range
from lightning_da.grids.cell import run_cell
from lightning_da.paths import find_config
from lightning_da.process import cores, threads

PROCESSES = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
"""A server imports once and forks each process of a pool; it holds no GPU and no threads."""
PROCESSES.set_forkserver_preload([run_cell.__module__])
QUEUED = 16
"""Jobs of SLURM at once, unless `--jobs` gives a number."""
SLURM = "slurm/default.yaml"


class Workers(NamedTuple):
    """Who runs the trainings of a grid: processes of this machine, or jobs of a SLURM cluster.

    Attributes:
        jobs: Number of parallel trainings; None means one per GPU, otherwise one per CPU core, and for SLURM `QUEUED`.
        slurm: YAML file with submitit's parameters of a job; None means processes of this machine.
    """

    jobs: int | None = None
    slurm: Path | None = None

    def count(self, trainer: Trainer) -> int:
        """Number of parallel trainings.

        Args:
            trainer: The pattern of the trainers.
        """
        if self.jobs is not None:
            return self.jobs
        if self.slurm is not None:
            return QUEUED
        return len(_gpus_of(trainer)) or (1 if trainer.world_size > 1 else max(cores() // threads(), 1))

    @contextmanager
    def pool(self, trainer: Trainer, name: str) -> Iterator[Executor]:
        """Processes or jobs for trainings with the devices of a trainer; they end with the block.

        Args:
            trainer: The pattern of the trainers.
            name: Name of the grid, for the folder of the jobs.

        Raises:
            ConfigError: If the machine has no SLURM or no submitit.
            KeyboardInterrupt: In the block, if the process receives SIGTERM or Ctrl-C.
        """
        number = self.count(trainer)
        start = (PROCESSES.Value("i", 0), _gpus_of(trainer), dict(os.environ))
        jobs = _slurm_pool(name, self.slurm, number) if self.slurm else None
        with _ended_by_sigterm(), jobs or ProcessPoolExecutor(number, PROCESSES, _start, start) as pool:
            try:
                yield pool
            except BaseException:
                for worker in (jobs, *active_children()):
                    if worker is not None:
                        worker.kill()
                raise


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `workers_of` to the parser of a command."""
    parser.add_argument(
        "--jobs", type=int,
        help=f"parallel trainings (default: one per GPU, otherwise one per CPU core; {QUEUED} jobs with slurm)",
    )  # fmt: skip
    parser.add_argument(
        "--executor", choices=("local", "slurm"), default="local",
        help="who trains: processes of this machine, or jobs of SLURM (default: local)",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", metavar="FILE",
        help=f"YAML file with the parameters of a SLURM job, with the names of submitit (default: {SLURM})",
    )  # fmt: skip


def workers_of(given: argparse.Namespace) -> Workers:
    """The workers that the options of `add_options` name.

    Raises:
        ConfigError: If `jobs` is less than 1, or the file of `slurm` does not exist or is given without
            `--executor slurm`.
    """
    if given.jobs is not None:
        check_range("jobs", given.jobs, 1)
    if given.executor != "slurm":
        if given.slurm is not None:
            raise ConfigError("slurm: it needs --executor slurm; add it, or leave out --slurm")
        return Workers(given.jobs)
    try:
        return Workers(given.jobs, find_config(given.slurm or SLURM))
    except ConfigError as error:
        raise ConfigError(str(error).replace("config:", "slurm:", 1)) from error


def _slurm_pool(name: str, parameters: Path, jobs: int) -> Any:
    try:
        from lightning_da.grids.slurm import SlurmPool  # noqa: PLC0415  # submitit is an extra
    except ImportError as error:
        if error.name != "submitit":
            raise
        raise ConfigError(
            "executor: jobs of SLURM need the package submitit: pip install 'submitit>=1.5,<2', or install this "
            "project with the extra [slurm]"
        ) from error
    return SlurmPool(name, parameters, jobs)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM end the block like Ctrl-C."""

    def end(*_args: Any) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(counter: Any, gpus: list[str], environment: dict[str, str]) -> None:
    """Readies a process of the pool: its environment, its threads, and a GPU of its own."""
    os.environ.update(environment)
    with counter.get_lock():
        place = counter.value
        counter.value += 1
    torch.set_num_threads(threads())
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


def _gpus_of(trainer: Trainer) -> list[str]:
    """The GPUs for trainings on one GPU each, in the notation of `CUDA_VISIBLE_DEVICES`."""
    if trainer.world_size > 1 or not isinstance(trainer.accelerator, CUDAAccelerator):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(gpu) for gpu in range(torch.cuda.device_count())]
