"""The processes that run trainings side by side."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_all_start_methods, get_context, parent_process
from typing import Any, NoReturn

import torch
from lightning import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from lightning_da.errors import check_range
from lightning_da.grids.cell import run_cell
from lightning_da.process import cores

PROCESSES = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
"""A server imports once and forks each process of a pool; it holds no GPU and no threads."""
PROCESSES.set_forkserver_preload([run_cell.__module__])


def count_workers(trainer: Trainer, jobs: int | None) -> int:
    """Number of parallel trainings.

    Args:
        trainer: The pattern of the trainers.
        jobs: The number, if it is given; None means one per GPU, otherwise one per CPU core.

    Raises:
        ConfigError: If `jobs` is less than 1.
    """
    if jobs is not None:
        check_range("jobs", jobs, 1)
    return jobs or len(_gpus_of(trainer)) or (1 if trainer.world_size > 1 else max(cores() // _threads(), 1))


@contextmanager
def pool_for(trainer: Trainer, jobs: int | None) -> Iterator[ProcessPoolExecutor]:
    """Processes for trainings with the devices of a trainer; they end with the block.

    Args:
        trainer: The pattern of the trainers.
        jobs: As for `count_workers`.

    Raises:
        ConfigError: If `jobs` is less than 1.
        KeyboardInterrupt: In the block, if the process receives SIGTERM or Ctrl-C.
    """
    start = (PROCESSES.Value("i", 0), _gpus_of(trainer), dict(os.environ))
    with _ended_by_sigterm(), ProcessPoolExecutor(count_workers(trainer, jobs), PROCESSES, _start, start) as pool:
        try:
            yield pool
        except BaseException:
            for worker in active_children():
                worker.kill()
            raise


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


def _threads() -> int:
    """Threads per training: `OMP_NUM_THREADS`, otherwise 1, so that results do not depend on `jobs`."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else 1


def _start(counter: Any, gpus: list[str], environment: dict[str, str]) -> None:
    """Readies a process of the pool: its environment, its threads, and a GPU of its own."""
    os.environ.update(environment)
    with counter.get_lock():
        place = counter.value
        counter.value += 1
    torch.set_num_threads(_threads())
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
