"""Jobs of a SLURM cluster that run trainings: submitit's jobs behind the interface of `concurrent.futures`."""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import submitit
import torch
import yaml
from submitit.core.utils import FailedJobError, UncompletedJobError

from lightning_da.errors import ConfigError, RunError, one_line
from lightning_da.process import prepare, threads
from lightning_da.store import store_folder

CLUSTER = "slurm"
"""submitit's name of the cluster; its `local` runs the same jobs without SLURM."""
JOB = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
PREEMPT = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
"""The signal that a job gets before its end: at its time limit, or for another job."""
REQUEUES = 100
"""How often a training may reach the time limit of its job; each time it goes on from its checkpoint."""
ONE_TASK = ("nodes", "tasks_per_node")
PAUSE = 1.0  # seconds between two looks at the jobs

T = TypeVar("T")


class Training(submitit.helpers.Checkpointable):
    """A function in a job. At the signal `PREEMPT` the job ends, is queued again, and calls the function once more."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result, or its exception."""
        prepare()
        torch.set_num_threads(threads())
        os.environ.pop("SLURM_NTASKS", None)  # with it, Lightning takes the signals, and starts no processes
        requeue: Any = signal.getsignal(PREEMPT)
        asked = False

        def end(*_args: Any) -> NoReturn:
            nonlocal asked
            asked = True
            raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # who cancels a job has no use for its checkpoint
        signal.signal(PREEMPT, end)
        try:
            return function(*args)
        except BaseException as error:
            if asked or isinstance(error, KeyboardInterrupt):
                requeue(PREEMPT, None)
            traceback.print_exc()
            return error
        finally:
            signal.signal(PREEMPT, requeue)


class SlurmPool(ThreadPoolExecutor):
    """Jobs of the cluster; each thread waits for one.

    It waits for the job of an earlier call with the same function and arguments, if that has not ended.

    Args:
        name: Folder of the jobs and their logs, in the folder `slurm` of the store; all machines share it.
        parameters: YAML file with submitit's parameters, for example `timeout_min: 240` and `slurm_partition: gpu`.
        jobs: Number of jobs at once.

    Raises:
        ConfigError: If there is no SLURM on this machine, or a parameter is wrong.
    """

    def __init__(self, name: str, parameters: Path, jobs: int) -> None:
        super().__init__(jobs)
        folder = store_folder().absolute() / "slurm" / name
        self._cluster = _executor(folder, parameters)
        found = [JOB[CLUSTER](folder, path.name.split("_")[0]) for path in folder.glob("*_submitted.pkl")]
        self._left: list[Any] = [job for job in found if not job.done()]
        self._running: list[Any] = []
        self._lock, self._ended = threading.Lock(), threading.Event()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return super().submit(self._run, fn, *args, **kwargs)

    def _run(self, *call: Any) -> Any:
        job = self._job(*call)
        while not self._done(job):
            if self._ended.wait(PAUSE):
                raise KeyboardInterrupt
        try:
            outcome = job.result()
        except (FailedJobError, UncompletedJobError) as error:
            raise RunError(f"its job {job.job_id} ended without a result; see {job.paths.stderr}") from error
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _job(self, *call: Any) -> Any:
        with self._lock:
            if self._ended.is_set():
                raise KeyboardInterrupt
            same = [job for job in self._left if job.submission().args == call]
            job = same[0] if same else self._cluster.submit(Training(), *call)  # type: ignore[no-untyped-call]
            self._running.append(job)
            return job

    def _done(self, job: Any) -> bool:
        with self._lock:  # submitit asks SLURM for all jobs at once, and seldom
            return bool(job.done())

    def kill(self) -> None:
        """Cancels the jobs that have not ended."""
        self._ended.set()
        with self._lock:
            for job in self._running:
                if not job.done():
                    job.cancel(check=False)


def _executor(folder: Path, parameters: Path) -> Any:
    given = yaml.safe_load(parameters.read_text())
    for key in ONE_TASK:
        if given.get(key, 1) != 1:
            raise ConfigError(f"slurm: {key} in {parameters}: a training is one task on one node; leave it out")
    try:
        limits = {f"{cluster}_max_num_timeout": REQUEUES for cluster in JOB}
        executor = submitit.AutoExecutor(folder, cluster=CLUSTER, **limits)
        executor.update_parameters(**given)
    except RuntimeError as error:
        raise ConfigError(
            "executor: there is no SLURM here, no command srun; run it on a machine with SLURM"
        ) from error
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"slurm: {parameters}: {one_line(error)}") from error
    return executor
