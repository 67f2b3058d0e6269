"""Grids whose trainings are jobs, run by submitit without SLURM, and by a model of SLURM's commands."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from lightning_da.callbacks.stop_at_signal import StopAtSignal
from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError
from lightning_da.grids.cell import run_cell
from lightning_da.grids.engine import add_fit, order_of
from lightning_da.main import main
from lightning_da.paths import PROJECT
from lightning_da.store import client, store_folder

pytest.importorskip("submitit")

import submitit

from lightning_da.grids import slurm

MODEL = '''#!{python}
"""sbatch, srun, scontrol, sacct and scancel of one machine; a job's state is a file."""
import os, signal, subprocess, sys, time
from pathlib import Path

name, args, jobs = Path(sys.argv[0]).name, sys.argv[1:], Path(__file__).parent / "jobs"
jobs.mkdir(exist_ok=True)
if name == "sbatch":
    number = str(time.time_ns())
    (jobs / f"{{number}}.state").write_text("PENDING")
    apart = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}}
    subprocess.Popen([str(jobs.parent / "slurmd"), number, args[0]], **apart)
    print("Submitted batch job", number)
elif name == "slurmd":
    number, file = args
    state, again, ours = (jobs / f"{{number}}.{{kind}}" for kind in ("state", "again", "pid"))
    while True:
        given = os.environ | {{"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}}
        job = subprocess.Popen(["bash", file], env=given, start_new_session=True)
        ours.write_text(str(job.pid))
        state.write_text("RUNNING")
        code = job.wait()
        if not again.exists():
            break
        again.unlink()
    state.write_text("FAILED" if code else "COMPLETED")
elif name == "srun":
    options = dict(zip(args[1:5:2], args[2:6:2]))
    for number, option in ((1, "--output"), (2, "--error")):
        path = options[option].replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execvp(args[5], args[5:])
elif name == "scontrol":
    (jobs / f"{{args[1]}}.again").touch()
elif name == "sacct":
    print("JobID|State|NodeList")
    for path in jobs.glob("*.state"):
        print(f"{{path.stem}}|{{path.read_text()}}|here")
elif name == "scancel":
    os.killpg(int((jobs / f"{{args[0]}}.pid").read_text()), signal.SIGKILL)
'''


class Slurm:
    """The model of SLURM: its jobs, by their number."""

    def __init__(self, folder: Path) -> None:
        self.jobs = folder / "jobs"
        folder.mkdir()
        for name in ("sbatch", "slurmd", "srun", "scontrol", "sacct", "scancel"):
            (folder / name).write_text(MODEL.format(python=sys.executable))
            (folder / name).chmod(0o755)

    def states(self) -> dict[str, str]:
        return {path.stem: path.read_text() for path in sorted(self.jobs.glob("*.state"))}

    def ended(self) -> list[str]:
        """How the jobs have ended."""
        until = time.monotonic() + 60
        while {"PENDING", "RUNNING"} & set(self.states().values()):
            assert time.monotonic() < until
            time.sleep(0.1)
        return sorted(self.states().values())

    def signal(self, job: str, number: int) -> None:
        """To all processes of a job, as SLURM does."""
        os.killpg(int((self.jobs / f"{job}.pid").read_text()), number)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("PATH", str(tmp_path / "slurm"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setattr(submitit.SlurmJob.watcher, "_delay_s", 2)
    return Slurm(tmp_path / "slurm")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(160, 5)), y=np.arange(160) % 2)
    (tmp_path / "jobs.yaml").write_text("timeout_min: 30\nslurm_partition: gpu\n")
    return [
        *("--config", "method/dann.yaml", "--config", "data/features.yaml"),
        *("--data.source", "one.npz", "--data.target", "two.npz", "--data.batch_size", "16"),
        *("--trainer.max_steps", "20", "--trainer.accelerator", "cpu", "--trainer.callbacks", "null"),
        "--model.backbone={class_path: FeedForward, init_args: {hidden: [8], dropout: 0.5}}",
    ]


class Once(L.Callback):
    """Sends a signal to the own process after some steps, if the file `once` is there to be removed.

    With several processes the first one sends it to the process that ordered them. It waits for the request to stop;
    after SIGSTOP there is none.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ARG002
        if trainer.global_step == 11 and trainer.is_global_zero and Path("once").exists():
            Path("once").unlink()
            os.kill(os.getpid() if trainer.world_size == 1 else os.getppid(), self.number)
            (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, StopAtSignal))  # type: ignore[attr-defined]
            while self.number != signal.SIGSTOP and not stop._asked:
                time.sleep(0.05)


def once(number: int) -> str:
    Path("once").touch()
    return f"--trainer.callbacks={{class_path: tests.test_slurm.Once, init_args: {{number: {int(number)}}}}}"


SLURM = ("--executor", "slurm", "--slurm", "jobs.yaml")


def experiment(name: str) -> str:
    return f"--trainer.logger.init_args.experiment_name={name}"


def runs(name: str) -> list[Run]:
    found = client().get_experiment_by_name(name)
    return client().search_runs([found.experiment_id], order_by=["start_time ASC"]) if found else []


def cells(name: str) -> list[Run]:
    return [run for run in runs(name) if "cell" in run.data.tags]


def same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    kept = [column for column in one if not str(column).startswith("seconds")]
    pd.testing.assert_frame_equal(one[kept], two[kept])


# ---------------------------------------------------------------- one cell


def scores(words: list[str], name: str, broken: bool) -> dict[str, float]:
    """The metrics of a cell, which is interrupted if it is `broken`."""
    more = [once(slurm.PREEMPT)] if broken else []
    cli = TransferCLI("fit", [*words, experiment(name), *more]).build()
    cell = add_fit({}, cli, 0)
    parent = client().create_run(client().get_experiment_by_name(name).experiment_id).info.run_id  # type: ignore[union-attr]
    order = order_of(cell, (), parent, False, cli.trainer.world_size)
    if broken:
        with pytest.raises(KeyboardInterrupt):
            run_cell(order)
    done = run_cell(order)
    (run,) = cells(name)
    assert (run.info.run_id, run.info.status) == (done.run_id, "FINISHED")
    assert not list(Path(run.info.artifact_uri.removeprefix("file://")).glob("checkpoints/*"))
    return {key: value for key, value in run.data.metrics.items() if key != "fit/seconds"}


def test_an_interrupted_cell_goes_on_in_its_run_and_equals_an_unbroken_one(words: list[str], tmp_path: Path) -> None:
    broken, unbroken = scores(words, f"{tmp_path.name}-a", True), scores(words, f"{tmp_path.name}-b", False)
    assert broken == unbroken
    assert "test/target/acc" in broken


@pytest.mark.slow
def test_an_interrupted_cell_of_two_processes_goes_on_as_well(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes to the process that started them."""

    def end(*_args: Any) -> NoReturn:  # as in a job
        raise KeyboardInterrupt

    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    two = [*words, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    before = signal.signal(slurm.PREEMPT, end)
    try:
        broken = scores(two, f"{tmp_path.name}-a", True)
    finally:
        signal.signal(slurm.PREEMPT, before)
    assert broken == scores(two, f"{tmp_path.name}-b", False)
    (run,) = cells(f"{tmp_path.name}-a")
    assert run.data.tags["resumed_from"].endswith("interrupted.ckpt")


def called(function: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What a job returns, and the signals at which it is queued again."""
    queued: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, slurm.PREEMPT)}
    signal.signal(slurm.PREEMPT, lambda number, _: queued.append(number))
    try:
        return slurm.Training()(function), queued  # type: ignore[no-untyped-call]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def preempted() -> None:
    try:
        os.kill(os.getpid(), slurm.PREEMPT)
        time.sleep(5)
    except KeyboardInterrupt:  # as Lightning does
        raise SystemExit(1) from None


def test_a_job_is_queued_again_at_the_signal_and_at_nothing_else() -> None:
    assert called(lambda: 3) == (3, [])
    (error, queued) = called(preempted)
    assert queued == [slurm.PREEMPT]

    def interrupted() -> None:
        raise KeyboardInterrupt  # from `run_cell`, whose training saw the signal

    assert called(interrupted)[1] == [slurm.PREEMPT]

    def fails() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise ConfigError("data: wrong")

    error, queued = called(fails)
    assert (str(error), type(error), queued) == ("data: wrong", ConfigError, [])


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("command", ["sweep", "layer-transfer", "speech-transfer", "label-curve", "chains", "search"])
def test_every_grid_has_the_options(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--executor {local,slurm}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameters", "more", "message"),
    [
        ("timeout_min: 5", SLURM[2:], "slurm: it needs --executor slurm"),
        ("timeout_min: 5", (*SLURM, "--slurm", "no.yaml"), "slurm: no file 'no.yaml'"),
        ("slurm_partitoin: gpu", SLURM, "slurm: jobs.yaml: Unknown argument 'partitoin' for executor 'slurm'"),
        ("timeout_min: 4 hours", SLURM, 'slurm: jobs.yaml: Parameter "timeout_min" expected type'),
        ("nodes: 2", SLURM, "slurm: nodes in jobs.yaml: a training is one task on one node"),
        ("timeout_min: 5", (*SLURM, "--jobs", "0"), "jobs: 0 is less than 1"),
    ],
)
def test_a_mistake_is_named_before_anything_is_submitted(
    words: list[str], cluster: Slurm, tmp_path: Path, parameters: str, more: tuple[str, ...], message: str
) -> None:
    (tmp_path / "jobs.yaml").write_text(parameters)
    with pytest.raises(SystemExit, match=message) as stop:
        main(["sweep", *words, experiment(tmp_path.name), *more])
    assert stop.value.code == 2
    assert not runs(tmp_path.name)
    assert not cluster.states()


def test_without_slurm_or_submitit_one_line_says_what_to_do(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="executor: there is no SLURM here, no command srun"):
        main(["sweep", *words, experiment(tmp_path.name), *SLURM])
    monkeypatch.delitem(sys.modules, "lightning_da.grids.slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit, match=r"need the package submitit: pip install 'submitit.*extra \[slurm\]"):
        main(["sweep", *words, experiment(tmp_path.name), *SLURM])


# ---------------------------------------------------------------- whole grids


@pytest.mark.slow
def test_jobs_give_the_table_of_local_processes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    options = ["sweep", *words, "--seeds", "0", "1"]
    jobs = main([*options, experiment(f"{tmp_path.name}-jobs"), *SLURM])
    same(jobs, main([*options, experiment(tmp_path.name), "--jobs", "2"]))


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_goes_on(words: list[str], tmp_path: Path, cluster: Slurm) -> None:
    options = ["sweep", *words, "--seeds", "0", "1"]
    table = main([*options, experiment(f"{tmp_path.name}-jobs"), *SLURM, once(slurm.PREEMPT)])
    assert cluster.ended() == ["COMPLETED"] * 2
    logs = [next((store_folder() / "slurm").glob(f"*/{job}_0_log.out")).read_text() for job in cluster.states()]
    assert sorted(log.count("Requeued job") for log in logs) == [0, 1]
    assert sum("resumed_from" in run.data.tags for run in cells(f"{tmp_path.name}-jobs")) == 1
    assert [run.info.status for run in cells(f"{tmp_path.name}-jobs")] == ["FINISHED"] * 2
    same(table, main([*options, experiment(tmp_path.name), "--jobs", "2"]))


@pytest.mark.slow
def test_a_killed_job_is_named_and_run_again_by_the_same_command(
    words: list[str], tmp_path: Path, cluster: Slurm
) -> None:
    options = ["sweep", *words, "--seeds", "0", "1", experiment(tmp_path.name), *SLURM, once(signal.SIGKILL)]
    with pytest.raises(
        SystemExit, match=r"1 of 2 trainings failed; the first: .* its job \d+ ended without a result"
    ) as stop:
        main(options)
    assert stop.value.code == 1
    assert cluster.ended() == ["COMPLETED", "FAILED"]
    finished = [run.info.run_id for run in cells(tmp_path.name) if "whole" in run.data.tags]
    main(options)
    assert cluster.ended() == ["COMPLETED", "COMPLETED", "FAILED"]
    assert sorted(run.info.status for run in cells(tmp_path.name)) == ["FINISHED", "FINISHED", "KILLED"]
    assert finished[0] in [run.info.run_id for run in cells(tmp_path.name) if "whole" in run.data.tags]


@pytest.mark.slow
def test_after_kill_9_the_command_waits_for_the_jobs_that_run(words: list[str], tmp_path: Path, cluster: Slurm) -> None:
    options = ["sweep", *words, "--seeds", "0", "1", experiment(tmp_path.name), *SLURM, "--jobs", "1"]
    options.append(once(signal.SIGSTOP))
    command = subprocess.Popen([sys.executable, "-m", "lightning_da", *options], env=os.environ.copy())
    until = time.monotonic() + 300
    while (tmp_path / "once").exists() or not cells(tmp_path.name):
        assert command.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    command.kill()
    command.wait()
    (job,) = cluster.states()
    threading.Timer(10, cluster.signal, (job, signal.SIGCONT)).start()
    main(options)
    assert cluster.ended() == ["COMPLETED"] * 2
    assert [run.info.status for run in cells(tmp_path.name)] == ["FINISHED"] * 2
