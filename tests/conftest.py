import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_da.callbacks import LogModel
from lightning_da.process import freeze


def pytest_collection_finish() -> None:
    """Garbage collections leave out what the imports have made: all of torch and MLflow."""
    freeze()


@pytest.fixture(scope="session", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test tracks into a store of its own, never into the project's."""
    folder = tmp_path_factory.mktemp("mlruns")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    yield
    del os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "disabled", True)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for each fit is for the tests that are about models, and for those of the command line."""
    if request.module.__name__.rpartition(".")[2] not in ("test_cli", "test_lstm", "test_models", "test_outbox"):
        monkeypatch.setattr(LogModel, "record", lambda *_args: None)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features, voices and typeset digits are kept for all processes of the session, never in the user's cache."""
    base = tmp_path_factory.getbasetemp()
    os.environ["XDG_CACHE_HOME"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")
    yield
    del os.environ["XDG_CACHE_HOME"]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with `source.csv`, which knows speakers and genders, and `target.csv`, which knows emotions too."""
    from tests import voices  # a copy of the project without speech has none

    voices.pair(tmp_path / "pair")
    return tmp_path / "pair"
