import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from lightning_da import outbox, store, tracking
from lightning_da.cli import TransferCLI
from lightning_da.errors import RunError
from lightning_da.grids.cell import Order, run_cell
from lightning_da.grids.engine import result_of
from lightning_da.logged_models import models_of
from lightning_da.main import main
from lightning_da.outbox import OutboxClient
from lightning_da.store import cause, client, impatient, is_fault
from tests import toy


class Store:
    """An sqlite store that can fail: its file is then no database."""

    def __init__(self, folder: Path) -> None:
        self.file, self.away = folder / "store" / "mlflow.db", folder / "store" / "away.db"

    def fail(self) -> None:
        self.file.rename(self.away)
        self.file.write_text("this is no database" * 100)

    def heal(self) -> None:
        if self.away.exists():
            self.away.replace(self.file)


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store without runs."""
    path = tmp_path_factory.mktemp("new") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def own_store(tmp_path: Path, new_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    shutil.copyfile(new_store, tmp_path / "store" / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    monkeypatch.setattr(outbox, "PAUSE", -1.0)
    monkeypatch.setattr(outbox, "LAST_WAIT", 0.0)
    monkeypatch.setattr(store, "PATIENCE", 0.0)
    made = Store(tmp_path)
    client()
    yield made
    made.heal()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    toy.write_tables(tmp_path)
    return [
        *toy.DANN_OF_TABLES,
        "--model.backbone={class_path: FeedForward, init_args: {hidden: [8]}}",
        "--trainer.callbacks+={class_path: lightning_da.callbacks.LogModel}",
    ]


STOP = "--trainer.callbacks+={class_path: tests.test_resume.At, init_args: {step: 12, number: 15}}"


class Outage(L.Callback):
    """Breaks the store at a step, and mends it at another one."""

    def __init__(self, folder: str, first: int, last: int) -> None:
        self.store, self.first, self.last = Store(Path(folder)), first, last

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ARG002
        if trainer.global_step == self.first:
            self.store.fail()
        if trainer.global_step == self.last:
            self.store.heal()


def outage(folder: Path, first: int, last: int) -> str:
    given = json.dumps({"folder": str(folder), "first": first, "last": last})
    return f"--trainer.callbacks+={{class_path: tests.test_outbox.Outage, init_args: {given}}}"


def logged(run_id: str) -> dict[str, Any]:
    """What a run has in the store, without times."""
    run = client().get_run(run_id)
    histories: dict[str, Any] = {
        key: [(point.step, point.value) for point in client().get_metric_history(run_id, key)]
        for key in run.data.metrics
    }
    histories["fit/seconds"] = [(step, 0.0) for step, _ in histories["fit/seconds"]]
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    files = {str(path.relative_to(folder)): path.stat().st_size > 0 for path in paths}
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert run.inputs is not None
    histories |= {f"data {part.dataset.name}": [tag.value for tag in part.tags] for part in run.inputs.dataset_inputs}
    for model in models_of(client(), run):
        place = Path(model.artifact_location.removeprefix("file://"))
        histories[f"model {model.name}"] = [str(model.status), model.tags, sorted(m.key for m in model.metrics or [])]
        histories["files"] = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    return {"metrics": histories, "params": run.data.params, "tags": tags, "files": files, "status": run.info.status}


def unsent(run_id: str) -> Path:
    folder = Path(client().get_run(run_id).info.artifact_uri.removeprefix("file://"))
    return folder / "checkpoints" / "unsent"


# ---------------------------------------------------------------- fits


@pytest.mark.usefixtures("own_store")
def test_a_store_that_fails_for_some_steps_has_everything_once(words: list[str], tmp_path: Path) -> None:
    whole = logged(main(["fit", *words]).trainer.logger.run_id)
    with pytest.warns(UserWarning, match="the MLflow store fails .*; the fit goes on, and what it logs waits in"):
        run_id = main(["fit", *words, outage(tmp_path, 5, 12)]).trainer.logger.run_id
    assert logged(run_id) == whole
    assert not unsent(run_id).exists()
    assert len(whole["metrics"]["train/task_loss"]) == 20
    assert whole["metrics"]["model dann-one-two-s0"][0] == "READY"
    assert "data/network.pt2" in whole["metrics"]["files"]


def test_sync_sends_the_rest_of_a_fit_whose_store_stays_away(
    own_store: Store, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = logged(main(["fit", *words]).trainer.logger.run_id)
    with pytest.warns(UserWarning, match=r"\d+ writes to the MLflow store wait in .*`lightning-da sync` sends them"):
        run_id = main(["fit", *words, outage(tmp_path, 5, 10**6)]).trainer.logger.run_id
    with pytest.raises(SystemExit):
        main(["sync"])
    assert "does not take the writes in" in capsys.readouterr().err
    own_store.heal()
    assert client().get_run(run_id).info.status == "RUNNING"
    with pytest.raises(SystemExit) as stop:
        main(["test", "--ckpt_path", run_id])
    assert stop.value.code == 2
    assert "send the rest with `lightning-da sync`" in capsys.readouterr().err
    main(["sync"])
    assert "writes sent, which waited in" in capsys.readouterr().out
    assert logged(run_id) == whole
    main(["sync"])
    assert capsys.readouterr().out == "nothing waits any more\n"
    main(["test", "--ckpt_path", run_id])
    assert client().get_run(run_id).data.metrics["test/target/acc"] > 0.5


def test_an_interrupted_fit_sends_its_rest_when_it_goes_on(own_store: Store, words: list[str], tmp_path: Path) -> None:
    whole = logged(main(["fit", *words]).trainer.logger.run_id)
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match="the fit goes on"):
        main(
            [
                "fit",
                *words,
                outage(tmp_path, 5, 10**6),
                "--trainer.callbacks+={class_path: tests.test_resume.At, init_args: {step: 12, number: 15}}",
            ]
        )
    own_store.heal()
    (killed,) = (run for run in client().search_runs(["1"]) if run.info.status == "RUNNING")
    main(["fit", "--ckpt_path", killed.info.run_id, *words])
    resumed = logged(killed.info.run_id)
    assert resumed["tags"].pop("resumed_from")
    assert resumed == whole


def test_the_results_of_a_cell_wait_too(own_store: Store, words: list[str], tmp_path: Path) -> None:
    config = TransferCLI("fit", [*words, outage(tmp_path, 5, 10**6)]).plain()
    config["trainer"]["logger"]["init_args"]["tags"] = {"cell": "{}", "mlflow.parentRunId": "grid"}
    client().create_experiment("lightning_da", (tmp_path / "store" / "artifacts").as_uri())
    with pytest.raises(RunError, match="does not take its results; run the same command again"):
        run_cell(Order(config, None, (), 1))
    own_store.heal()
    (run,) = client().search_runs(["1"])
    assert "whole" not in run.data.tags
    main(["sync"])
    (run,) = client().search_runs(["1"])
    assert run.data.tags["whole"] == "true"
    assert result_of(run).metrics["test/target/acc"] > 0.5


# ---------------------------------------------------------------- the client


@pytest.fixture
def run(own_store: Store) -> Run:
    assert own_store.file.exists()
    made = client().create_experiment("outbox")
    return client().create_run(made)


@pytest.fixture
def box(tmp_path: Path) -> OutboxClient:
    return OutboxClient(os.environ["MLFLOW_TRACKING_URI"], tmp_path / "unsent")


def metric(step: int) -> Metric:
    return Metric("loss", step / 2, 1000 + step, step)


def steps(run: Run) -> list[int]:
    return [point.step for point in client().get_metric_history(run.info.run_id, "loss")]


def test_writes_keep_their_order_and_more_than_one_call_takes(
    own_store: Store, run: Run, box: OutboxClient, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("one")
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.set_tag(run.info.run_id, "stage", "early")
    box.log_batch(run.info.run_id, params=[Param("rate", "0.1")])
    for step in range(1500):
        box.log_batch(run.info.run_id, [metric(step)])
    box.log_artifact(run.info.run_id, str(tmp_path / "note.txt"), "notes")
    (tmp_path / "note.txt").unlink()
    box.set_tag(run.info.run_id, "stage", "late")
    box.set_tag(run.info.run_id, "gone", "soon")
    box.delete_tag(run.info.run_id, "gone")
    box.set_terminated(run.info.run_id, "FINISHED", 4242)
    own_store.heal()
    assert not steps(run)
    assert box.finish(wait=False)
    assert steps(run) == list(range(1500))
    found = client().get_run(run.info.run_id)
    assert (found.data.tags["stage"], found.data.params) == ("late", {"rate": "0.1"})
    assert "gone" not in found.data.tags
    assert (found.info.status, found.info.end_time) == ("FINISHED", 4242)
    assert (Path(found.info.artifact_uri.removeprefix("file://")) / "notes" / "note.txt").read_text() == "one"
    assert not box.folder.exists()


def test_waiting_writes_are_sent_before_the_next_one(own_store: Store, run: Run, box: OutboxClient) -> None:
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.set_tag(run.info.run_id, "stage", "early")
    own_store.heal()
    box._next_attempt = 0.0
    box.set_tag(run.info.run_id, "stage", "late")
    assert not box.waits
    assert client().get_run(run.info.run_id).data.tags["stage"] == "late"


def test_writes_that_are_sent_twice_are_there_once(
    own_store: Store, run: Run, box: OutboxClient, tmp_path: Path
) -> None:
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.log_batch(run.info.run_id, [metric(0), metric(1)])
    box.set_tag(run.info.run_id, "stage", "early")
    shutil.copytree(box.folder, tmp_path / "again")
    own_store.heal()
    assert box.send() == 2
    shutil.copytree(tmp_path / "again", box.folder)
    assert box.send() == 2
    assert steps(run) == [0, 1]


def test_a_torn_line_is_left_out_and_the_next_ones_are_whole(own_store: Store, run: Run, box: OutboxClient) -> None:
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.log_batch(run.info.run_id, [metric(0)])
    path = box.folder / outbox.WRITES
    whole = path.read_text()
    path.write_text(whole + whole[:-7])
    box.log_batch(run.info.run_id, [metric(1)])
    own_store.heal()
    assert box.send() == 2
    assert steps(run) == [0, 1]


def test_a_store_is_not_asked_again_at_every_write(
    own_store: Store, run: Run, box: OutboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PAUSE", 100.0)
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.log_batch(run.info.run_id, [metric(0)])
    own_store.heal()
    box.log_batch(run.info.run_id, [metric(1)])
    assert not steps(run)
    assert box.finish(wait=False)
    assert steps(run) == [0, 1]


def test_a_refused_write_is_set_aside_and_the_others_are_sent(
    own_store: Store, run: Run, box: OutboxClient, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"refuses set_tag of a fit \(.*not found.*they are in .*refused\.jsonl"):
        box.set_tag("no such run", "stage", "early")
    assert not box.folder.exists()
    (tmp_path / "note.txt").write_text("one")
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.log_batch(run.info.run_id, params=[Param("rate", "1")])
    box.log_batch(run.info.run_id, params=[Param("rate", "2")])
    box.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    box.log_batch(run.info.run_id, [metric(0)])
    next(box.folder.glob("*/note.txt")).unlink()
    own_store.heal()
    with pytest.warns(UserWarning, match="refuses") as warned:
        box.send()
    assert len(warned) == 2
    assert client().get_run(run.info.run_id).data.params == {"rate": "1"}
    assert steps(run) == [0]
    assert not box.waits
    kept = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert [write["kind"] for write in kept] == ["set_tag", "params", "artifact"]


def test_a_deleted_run_does_not_end_its_fit(own_store: Store, run: Run, box: OutboxClient) -> None:
    assert own_store.file.exists()
    client().delete_run(run.info.run_id)
    with pytest.warns(UserWarning, match="active"):
        box.log_batch(run.info.run_id, [metric(0)])


def test_sync_leaves_the_writes_for_another_store(
    own_store: Store, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking, "_uploads", lambda: tmp_path / "upload")
    box = OutboxClient(os.environ["MLFLOW_TRACKING_URI"], tmp_path / "upload" / "id" / "checkpoints" / tracking.UNSENT)
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.log_batch(run.info.run_id, [metric(0)])
    own_store.heal()
    there = box.folder / outbox.STORE
    there.write_text("http://me:***@other:5000")
    assert tracking.send_waiting() == 0
    assert "waits for http://me:***@other:5000" in capsys.readouterr().err
    there.write_text(store.shown_uri())
    assert tracking.send_waiting() == 0
    assert steps(run) == [0]


def test_a_folder_that_cannot_be_removed_is_sent_once(
    own_store: Store, run: Run, box: OutboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_store.fail()
    with pytest.warns(UserWarning, match="the MLflow store fails"):
        box.log_batch(run.info.run_id, [metric(0)])
    own_store.heal()
    monkeypatch.setattr("shutil.rmtree", lambda *_args, **_kwargs: None)
    assert box.finish(wait=True)
    assert box.folder.exists()
    assert box.send() == 0


def test_uploads_may_take_long_and_the_settings_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    with impatient():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "8"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    with impatient(uploads=True):
        assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


# ---------------------------------------------------------------- the client of the commands


def failing(times: int, error: Exception) -> Callable[..., str]:
    left = [times]

    def method(_client: MlflowClient) -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "answer"

    return store._patiently(method)


def test_a_command_waits_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    assert failing(3, ConnectionError("refused"))(None) == "answer"
    monkeypatch.setattr(store, "PATIENCE", -1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    with pytest.raises(RunError, match=r"http://me:\*\*\*@host:5000 fails \(\[Errno 111\] Connection refused\)"):
        failing(1, ConnectionError("('aborted', [Errno 111] Connection refused')"))(None)
    with pytest.raises(MlflowException):
        failing(1, MlflowException.invalid_parameter_value("no run"))(None)


def test_faults_and_refusals() -> None:
    assert is_fault(MlflowException("busy"))  # INTERNAL_ERROR
    assert is_fault(OSError(28, "No space left on device"))
    assert not is_fault(MlflowException.invalid_parameter_value("long"))
    assert not is_fault(KeyError("run"))
    assert cause(OSError("http://me:secret@host is gone")) == "http://me:***@host is gone"
