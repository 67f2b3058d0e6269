"""A disk that refuses a file: no part of a checkpoint, one line, and a run that goes on."""

import errno
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_da.checkpoint_io import WholeCheckpointIO
from lightning_da.errors import ConfigError
from lightning_da.main import main
from lightning_da.networks.weights import read_checkpoint
from lightning_da.store import client
from tests.test_outbox import logged, words  # noqa: F401


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond this number of bytes in a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(10)}}, path)
    with files_of_at_most(20_000), pytest.raises(OSError, match=r"last\.ckpt") as error:
        WholeCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(10_000)}}, path)
    assert error.value.errno == errno.EFBIG
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert torch.equal(read_checkpoint(str(path))["state_dict"]["w"], torch.ones(10))


class FullAt(L.Callback):
    """Lets the disk refuse larger files from a step on."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ARG002
        if trainer.global_step == self.step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


EVERY = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {save_last: true, save_top_k: 0, every_n_train_steps: 4}
"""


@pytest.mark.parametrize(
    ("kept", "full", "size", "refused", "step"),
    [
        (True, 10, 3_000_000, "last.ckpt", 12),  # large files are refused, and so not the store's
        (False, 2, 3_000_000, "last.ckpt", 7),
        (True, 10, 100, "unsent", 11),
    ],
    ids=["a checkpoint is kept", "nothing is kept", "the store is refused too"],
)
def test_a_full_disk_ends_the_fit_in_one_line_and_it_goes_on(
    kept: bool,
    full: int,
    size: int,
    refused: str,
    step: int,
    words: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    Path("every.yaml").write_text(EVERY)
    experiment = f"--trainer.logger.experiment_name={tmp_path.name}"
    words = [*words, *(["--config", "every.yaml"] if kept else []), "--model.backbone.hidden=[600, 600]", experiment]
    whole = logged(main(["fit", *words]).trainer.logger.run_id)
    at = f"--trainer.callbacks+={{class_path: tests.test_disk.FullAt, init_args: {{step: {full}, size: {size}}}}}"
    with files_of_at_most(resource.RLIM_INFINITY), pytest.raises(SystemExit) as stop:
        main(["fit", *words, at])
    assert stop.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    run = client().search_runs([experiment_of(tmp_path.name)])[0]
    command = f"lightning-da fit --ckpt_path {run.info.run_id}" if kept else "the same command"
    assert f"{refused}: File too large, at step {step}; " in said
    assert said.endswith(f"make room or allow writing, then run {command}")
    assert (run.info.status == "FAILED") == (refused == "last.ckpt")
    if kept:
        main(["fit", "--ckpt_path", run.info.run_id, *words])
        resumed = logged(run.info.run_id)
        assert resumed["tags"].pop("resumed_from")
        assert resumed == whole


def experiment_of(name: str) -> str:
    found = client().get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)


def test_flipped_bytes_of_the_directory_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(10)}}, path)
    whole = path.read_bytes()
    for place in range(len(whole) - 600, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        with suppress(ConfigError):  # no other exception, and no other weights
            assert torch.equal(read_checkpoint(str(path))["state_dict"]["w"], torch.ones(10))


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_flipped_bytes_are_noticed(place: float, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"state_dict": {"w": torch.randn(1000)}}, path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"last\.ckpt' is damaged: the checksum"):
        read_checkpoint(str(path))
