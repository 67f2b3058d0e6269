"""The random state is a part of a checkpoint, so that a resumed fit equals an unbroken one."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch


class KeepRandomState(L.Callback):
    """Keeps the state of the random generators of Python, NumPy and torch in checkpoints, for dropout for example.

    It is set at the first batch after a resume: until then, the start of a fit draws numbers of its own.
    """

    def __init__(self) -> None:
        self._found: dict[str, Any] | None = None

    def on_train_batch_start(self, *args: Any) -> None:  # noqa: ARG002
        if self._found is None:
            return
        version, inner, gauss = self._found["python"]
        random.setstate((version, tuple(inner), gauss))
        name, key, *rest = self._found["numpy"]
        np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))
        torch.set_rng_state(self._found["torch"])
        if torch.cuda.is_available() and "cuda" in self._found:
            torch.cuda.set_rng_state(self._found["cuda"])
        self._found = None

    def state_dict(self) -> dict[str, Any]:
        name, key, *rest = np.random.get_state(legacy=True)
        state: dict[str, Any] = {"python": random.getstate(), "numpy": (name, np.asarray(key).tolist(), *rest)}
        cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
        return state | {"torch": torch.get_rng_state()} | cuda

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = state_dict
