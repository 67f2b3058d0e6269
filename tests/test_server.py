"""A team's store: an MLflow server on PostgreSQL that keeps the artifacts, used from a folder without its disk."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from lightning_da.paths import PROJECT

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def started(port: int, path: str, process: subprocess.Popen[Any]) -> None:
    """Waits for an answer."""
    until = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < until
            time.sleep(0.5)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server with an empty data base."""
    psycopg = pytest.importorskip("psycopg")
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("no PostgreSQL (initdb, postgres) on the PATH")
    user: dict[str, Any] = {}
    folder = Path(tmp_path_factory.mktemp("postgres"))
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            user = {"user": pwd.getpwnam("postgres").pw_uid, "group": pwd.getpwnam("postgres").pw_gid}
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        folder = Path("/tmp") / f"lightning_da-{os.getpid()}-postgres"
        folder.mkdir(mode=0o700)
        os.chown(folder, user["user"], user["group"])
    port = free_port()
    subprocess.run(
        ["initdb", "--pgdata", str(folder / "data"), "--username", "team", "--auth", "trust", "--no-sync"],
        check=True, stdout=subprocess.DEVNULL, cwd="/", **user,
    )  # fmt: skip
    given = ["-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(["postgres", *given], stdout=log, stderr=log, cwd="/", **user)

    until = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="team", dbname="postgres").close()
            break
        except psycopg.OperationalError:
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
    yield f"postgresql+psycopg://team@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)
    server.wait()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def store(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on the data base, through which the artifacts go."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = ["server", "--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port), "--workers", "2"],
        stdout=log, stderr=log, cwd=folder, start_new_session=True,
    )  # fmt: skip
    started(port, "/health", server)
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, signal.SIGTERM)
    server.wait()
    log.close()


class Colleague:
    """Commands on a machine of one's own: a copy of the project, and nothing shared but the server."""

    def __init__(self, store: str, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("lightning_da", "conf", "pyproject.toml"):
            copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
            copy(PROJECT / name, folder / name)
        rng = np.random.default_rng(0)
        for name, shift in (("one", 0.0), ("two", 0.5)):
            y = np.arange(160) % 2
            np.savez(folder / f"{name}.npz", x=rng.normal(size=(160, 5)) + 3 * y[:, None] + shift, y=y)
        self.environment = os.environ | {
            "MLFLOW_TRACKING_URI": store,
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lightning_da", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder, env=self.environment,
        )  # fmt: skip

    def run(self, *words: str) -> str:
        process = self.start(*words)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        return said


DATA = (
    *("--config", "data/features.yaml", "--data.source", "one.npz", "--data.target", "two.npz"),
    *("--data.batch_size", "16", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
)


def test_what_one_machine_trains_another_compares_draws_and_predicts_with(store: str, tmp_path: Path) -> None:
    first, second = (Colleague(store, tmp_path / name) for name in ("first", "second"))
    sweep = ("sweep", *DATA, "--methods", "source_only", "dann", "--trainer.max_steps", "30")
    first.run(*sweep, "--jobs", "2")
    predict = ("predict", "--ckpt_path", "dann-one-two-s0", "--predictions.path")
    first.run(*predict, "one.csv")
    predicted = (first.folder / "one.csv").read_text()
    shutil.rmtree(first.folder)
    said = second.run(*sweep)
    assert "2 of 2 trainings are already finished" in said
    assert "Downloading artifacts" not in said
    assert "dann" in second.run("compare")
    assert "source_only" in second.run("curve", "--ckpt_path", "dann-one-two-s0", "source_only-one-two-s0")
    second.run(*predict, "two.csv")
    assert (second.folder / "two.csv").read_text() == predicted
    assert len(predicted.splitlines()) > 160


def test_an_interrupted_fit_goes_on_on_its_machine_and_another_says_that_it_cannot(store: str, tmp_path: Path) -> None:
    first, second = (Colleague(store, tmp_path / name) for name in ("first", "second"))
    fit = ("fit", *DATA, "--config", "method/source_only.yaml", "--trainer.callbacks", "null")
    process = first.start(*fit, "--trainer.max_steps", "3000", "--trainer.logger.run_name", "long")
    tracked = mlflow.MlflowClient(store)
    until = time.monotonic() + 240
    while not [run for run in tracked.search_runs(["0", "1", "2"], "run_name = 'long'") if run.data.metrics]:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert "interrupted at step" in process.communicate()[0]
    other = second.start("fit", "--ckpt_path", "long")
    assert "run 'long' has no checkpoint to go on from" in other.communicate()[0]
    assert other.returncode == 2
    first.run("fit", "--ckpt_path", "long")
    (run,) = tracked.search_runs(["0", "1", "2"], "run_name = 'long'")
    assert run.info.status == "FINISHED"
    assert [file.path for file in tracked.list_artifacts(run.info.run_id, "checkpoints")]
    second.run("fit", "--ckpt_path", "long", "--trainer.max_steps", "3010")
    assert tracked.get_run(run.info.run_id).data.tags["extended.max_steps"] == "3010"
