"""Checkpoint files that are whole, or not there."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_da.paths import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, and renames it.

    Lightning moves it from the system's temporary folder, which is a copy if that is another disk: a kill or a full
    disk leaves a part of it, in place of the checkpoint before.

    Raises:
        OSError: If the file cannot be written; it names the file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # an object store writes whole objects
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)  # into a file, it would hide why the disk refuses
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with write_whole(Path(path)) as part:
                part.write_bytes(content.getbuffer())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
