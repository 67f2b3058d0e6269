"""The MLflow store: its address, its faults, and a client that waits for it."""

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import mlflow
from filelock import FileLock
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_da.errors import ConfigError, RunError, one_line
from lightning_da.paths import work_folder

P = ParamSpec("P")
T = TypeVar("T")
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}
"""Settings of MLflow, unless they are set: a dead server is noticed within seconds."""
PATIENCE = 60.0
"""Seconds for which a call is repeated while the store fails."""
REFUSALS = (
    *("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"),
    "RESOURCE_LIMIT_EXCEEDED",
)
"""Error codes of MLflow that blame the call; the others blame the store."""


class TrackingError(ConfigError):
    """A missing store, run or checkpoint; the message names it and the place of the search."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the sqlite store in the folder `mlruns` of `work_folder()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_folder() / 'mlruns' / 'mlflow.db'}"


def store_folder() -> Path:
    """The folder of an sqlite store; for a store on a server, the folder `mlruns` of `work_folder()`."""
    uri = tracking_uri()
    return Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else work_folder() / "mlruns"


def shown_uri() -> str:
    """`tracking_uri()` for messages: without the password."""
    return without_password(tracking_uri())


def without_password(text: str) -> str:
    """The text without the passwords of addresses in it."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", text)


def is_fault(error: BaseException) -> bool:
    """Whether the store fails, rather than refuses the call."""
    return isinstance(error, OSError) or (isinstance(error, MlflowException) and error.error_code not in REFUSALS)


def cause(error: BaseException) -> str:
    """Why a store fails, in a few words and without its password."""
    short = re.search(r"\[Errno -?\d+\] [^\"')]*|timed out", str(error))
    text = short.group(0) if short else one_line(error).partition(" [SQL:")[0]
    return without_password(re.sub(r"^\(\S+\) ", "", text))


@contextmanager
def impatient(uploads: bool = False) -> Iterator[None]:
    """Within it, calls of MLflow do not wait and retry for minutes.

    Args:
        uploads: Whether the calls upload files, whose answer may be slow.
    """
    names = [name for name in IMPATIENT if name not in os.environ and not (uploads and name.endswith("TIMEOUT"))]
    os.environ.update({name: IMPATIENT[name] for name in names})
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def _patiently(method: Callable[P, T]) -> Callable[P, T]:
    """The method of a client, repeated while the store fails."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if not is_fault(error):
                    raise
                if time.monotonic() > end:
                    raise RunError(
                        f"the MLflow store {shown_uri()} fails ({cause(error)}); run the same command again when it "
                        "answers"
                    ) from error
            time.sleep(1)

    return call


class PatientClient(mlflow.MlflowClient):
    """A client that repeats its calls for a minute while the store fails."""

    create_run = _patiently(mlflow.MlflowClient.create_run)
    get_experiment_by_name = _patiently(mlflow.MlflowClient.get_experiment_by_name)
    get_run = _patiently(mlflow.MlflowClient.get_run)
    log_artifact = _patiently(mlflow.MlflowClient.log_artifact)
    log_metric = _patiently(mlflow.MlflowClient.log_metric)
    log_param = _patiently(mlflow.MlflowClient.log_param)
    search_experiments = _patiently(mlflow.MlflowClient.search_experiments)
    search_runs = _patiently(mlflow.MlflowClient.search_runs)
    set_experiment_tag = _patiently(mlflow.MlflowClient.set_experiment_tag)
    set_tag = _patiently(mlflow.MlflowClient.set_tag)
    set_terminated = _patiently(mlflow.MlflowClient.set_terminated)
    update_run = _patiently(mlflow.MlflowClient.update_run)


@cache
def _client(uri: str) -> mlflow.MlflowClient:
    if not uri.startswith("sqlite:///"):
        return _answering(uri)
    path = Path(uri.removeprefix("sqlite:///"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as store:
            store.execute("PRAGMA schema_version")
        with FileLock(f"{path}.lock"):  # two processes must not create the tables at the same time
            return _answering(uri)
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"the MLflow store {shown_uri()} cannot be opened ({error}); correct MLFLOW_TRACKING_URI"
        ) from error


def _answering(uri: str) -> mlflow.MlflowClient:
    """A client of a store that answers."""
    try:
        with impatient():
            mlflow.MlflowClient(uri).search_experiments(max_results=1)
        return PatientClient(uri)
    except ModuleNotFoundError as error:  # of the driver of a data base
        raise TrackingError(
            f"the MLflow store {shown_uri()} needs the package {error.name}; install it, for PostgreSQL with the "
            "extra [postgres] of this project"
        ) from error
    except Exception as error:  # each kind of store has exceptions of its own
        raise TrackingError(
            f"the MLflow store {shown_uri()} does not answer ({cause(error)}); start it, or correct MLFLOW_TRACKING_URI"
        ) from error


def client() -> mlflow.MlflowClient:
    """A client of the store at `tracking_uri()`; an sqlite store is created if it does not exist."""
    return _client(tracking_uri())


def by_name(key: str, name: str) -> str:
    r"""MLflow's filter for a name, which may have quotes of one kind.

    Examples:
        >>> by_name("run_name", "it's")
        'run_name = "it\'s"'
    """
    mark = '"' if "'" in name else "'"
    return f"{key} = {mark}{name.replace(mark, '')}{mark}"


def search_runs(experiment_id: str, wanted: str = "", newest_first: bool = False) -> list[Run]:
    """The runs of an experiment that match an MLflow filter (all if empty), in order of their start."""
    runs: list[Run] = []
    order, token = [f"start_time {'DESC' if newest_first else 'ASC'}"], None
    while True:
        page = client().search_runs([experiment_id], wanted, order_by=order, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs
