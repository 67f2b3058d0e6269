"""Writes of a fit that its MLflow store does not take: they wait in a file, and are sent when the store is back."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from lightning_da.logged_models import DATA_CONTEXT, METRICS_AT_ONCE, link_metrics, send_model
from lightning_da.store import PatientClient, cause, impatient, is_fault, without_password

PAUSE = 10.0
"""Seconds between two attempts to reach the store; more if an attempt takes long."""
LAST_WAIT = 60.0
"""Seconds that the end of a fit waits for the store."""
WRITES, STORE, REFUSED = "writes.jsonl", "store.txt", "refused.jsonl"
"""The waiting writes and the address of their store, in the folder; the refused writes, beside it."""


class OutboxClient(PatientClient):
    """A client whose writes wait in a folder while the store fails; they are sent in order before the next write.

    A write that is sent twice changes nothing: a metric has its step and its time. A write that the store refuses, as
    that of a deleted run, is set aside with a warning.

    Args:
        uri: Address of the store.
        folder: The folder for the writes of one run; it exists as long as writes wait.

    Raises:
        OSError: If the store and the folder take no write; it names the folder.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        super().__init__(uri)
        self.folder, self._uri, self._store = folder, uri, without_password(uri)
        self._next_attempt = 0.0

    # ---------------------------------------------------------------- the writes of a fit

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> Any:
        if synchronous is False:
            return MlflowClient.log_batch(self, run_id, metrics, params, tags, synchronous)
        if metrics:
            self._write("metrics", run_id, values=[(m.key, m.value, m.timestamp, m.step) for m in metrics])
        if params:
            self._write("params", run_id, values=[(p.key, str(p.value)) for p in params])
        for tag in tags:
            self.set_tag(run_id, tag.key, tag.value)
        return None

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:  # noqa: ARG002
        self._write("set_tag", run_id, key=key, value=str(value))

    def delete_tag(self, run_id: str, key: str) -> None:
        self._write("delete_tag", run_id, key=key)

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        self._write("artifact", run_id, file=str(local_path), path=artifact_path)

    def log_model(self, run_id: str, folder: str, step: int, kind: str, tags: Mapping[str, str]) -> None:
        """Logs the model of a run; for the arguments see `send_model`."""
        self._write("model", run_id, file=folder, step=step, type=kind, tags=dict(tags))

    def link_metrics(self, run_id: str) -> None:
        """Shows the metrics of a run with its model."""
        self._write("link", run_id)

    def log_data(self, run_id: str, sets: Sequence[tuple[str, str, str]]) -> None:
        """Logs the data sets of a run.

        Args:
            run_id: The run.
            sets: Name, digest and context of each, for example `target/test`.
        """
        self._write("data", run_id, sets=[list(values) for values in sets])

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        self._write("end", run_id, status=status, time=end_time or int(1000 * time.time()))

    # ---------------------------------------------------------------- the folder

    def send(self) -> int:
        """Sends the waiting writes.

        A write that the store refuses is set aside, in the file `refused.jsonl` beside the folder.

        Returns:
            The number of writes that waited.

        Raises:
            Exception: If the store fails; all writes stay in the folder.
        """
        with self._locked():
            waiting = self.waiting()
            for write in _merged(waiting):
                self._apply_or_refuse(write)
            (self.folder / WRITES).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        return len(waiting)

    @property
    def waits(self) -> bool:
        """Whether there are waiting writes."""
        return (self.folder / WRITES).exists()

    def waiting(self) -> list[dict[str, Any]]:
        """The writes in the folder, in order."""
        path, found = self.folder / WRITES, []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:  # empty, or torn by a kill
                continue
        return found

    def finish(self, wait: bool) -> bool:
        """Sends the waiting writes at the end of a fit, or says where they stay.

        Args:
            wait: Whether to wait up to a minute for the store.

        Returns:
            Whether no write waits any more.
        """
        end = time.monotonic() + (LAST_WAIT if wait else 0.0)
        while self.waits:
            try:
                self._send_first()
            except Exception as error:
                if time.monotonic() >= end:
                    rank_zero_warn(
                        f"{len(self.waiting())} writes to the MLflow store wait in {self.folder} ({cause(error)}); "
                        "`lightning-da sync` sends them when the store is back"
                    )
                    return False
                time.sleep(1)
        return True

    def _write(self, kind: str, run_id: str, **given: Any) -> None:
        write = {"kind": kind, "run_id": run_id, **given}
        start = time.monotonic()
        if self.waits and start < self._next_attempt:
            self._keep(write)
            return
        try:
            self._send_first()
            self._apply_or_refuse(write)
        except Exception as error:
            if not self.waits:
                rank_zero_warn(
                    f"the MLflow store fails ({cause(error)}); the fit goes on, and what it logs waits in {self.folder}"
                )
            self._keep(write)
            now = time.monotonic()
            self._next_attempt = now + max(PAUSE, 9 * (now - start))  # at most a tenth of the time is lost

    def _send_first(self) -> None:
        if self.waits and (sent := self.send()):
            rank_zero_info(f"the MLflow store answers again: {sent} waiting writes are sent")

    def _apply_or_refuse(self, write: dict[str, Any]) -> None:
        """Sends a write, or sets it aside if it can never be sent.

        Raises:
            Exception: If the store fails.
        """
        try:
            if "file" in write and not (self.folder / write["file"]).exists():
                raise MlflowException.invalid_parameter_value(f"the file {write['file']!r} is gone")
            self._apply(write)
        except Exception as error:
            if is_fault(error):
                raise
            place = self.folder.parent / REFUSED
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("a") as file:
                file.write(json.dumps(write | {"reason": cause(error)}) + "\n")
            rank_zero_warn(f"the MLflow store refuses {write['kind']} of a fit ({cause(error)}); they are in {place}")

    def _apply(self, write: dict[str, Any]) -> None:
        run_id, kind = write["run_id"], write["kind"]
        with impatient(uploads="file" in write):
            if kind == "metrics":
                metrics = [Metric(*value) for value in write["values"]]
                MlflowClient.log_batch(self, run_id, metrics, synchronous=True)
            elif kind == "params":
                params = [Param(*value) for value in write["values"]]
                MlflowClient.log_batch(self, run_id, params=params, synchronous=True)
            elif kind == "set_tag":
                MlflowClient.set_tag(self, run_id, write["key"], write["value"], synchronous=True)
            elif kind == "delete_tag":
                MlflowClient.delete_tag(self, run_id, write["key"])
            elif kind == "artifact":
                MlflowClient.log_artifact(self, run_id, str(self.folder / write["file"]), write["path"])
            elif kind == "model":
                folder = str(self.folder / write["file"])
                send_model(MlflowClient(self._uri), run_id, folder, write["step"], write["type"], write["tags"])
            elif kind == "link":
                link_metrics(MlflowClient(self._uri), run_id)
            elif kind == "data":
                MlflowClient.log_inputs(self, run_id, [_data_set(*values) for values in write["sets"]])
            else:
                MlflowClient.set_terminated(self, run_id, write["status"], write["time"])

    def _keep(self, write: dict[str, Any]) -> None:
        """Adds a write to the folder, with the file of an artifact."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self.folder.mkdir(exist_ok=True)  # the process that held the lock has removed it
                if "file" in write:
                    given = Path(write["file"])
                    kept = self.folder / str(len(list(self.folder.iterdir()))) / given.name
                    kept.parent.mkdir()
                    (shutil.copytree if given.is_dir() else shutil.copyfile)(given, kept)
                    write = write | {"file": str(kept.relative_to(self.folder))}
                (self.folder / STORE).write_text(self._store)
                with (self.folder / WRITES).open("a") as file:
                    file.write("\n" + json.dumps(write))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error

    def _locked(self) -> FileLock:
        """Two processes, a fit and `lightning-da sync`, must not change the folder at the same time."""
        return FileLock(self.folder.with_name(f".{self.folder.name}.lock"))


def _data_set(name: str, digest: str, context: str) -> DatasetInput:
    source = json.dumps({"uri": name})
    return DatasetInput(Dataset(name, digest, "local", source), [InputTag(DATA_CONTEXT, context)])


def _merged(writes: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The writes in order; metrics that follow one another are one write, with as many as MLflow takes."""
    for (kind, run_id), group in groupby(writes, key=lambda write: (write["kind"], write["run_id"])):
        if kind != "metrics":
            yield from group
            continue
        values = [value for write in group for value in write["values"]]
        for start in range(0, len(values), METRICS_AT_ONCE):
            yield {"kind": kind, "run_id": run_id, "values": values[start : start + METRICS_AT_ONCE]}
