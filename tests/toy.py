"""A pair of domains small enough to train on in a second, and a trainer that leaves nothing behind."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from lightning_da.data import DomainPairDataModule, TensorDomain
from lightning_da.methods import ADDA, DAN, DANN, JAN, DeepCORAL, FineTune, TransferModule
from lightning_da.networks.backbones import FeedForward

BACKBONE = partial(FeedForward, hidden=[32, 16])
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=5e-3)


class Toy(DomainPairDataModule):
    """Three classes told apart by two of eight dimensions; the others are twelve times as large in the target.

    Or, with `moved`, all are moved in the target.
    """

    def __init__(self, batch_size: int = 32, number: int = 320, classes: int = 3, moved: bool = False) -> None:
        super().__init__("calm", "noisy", batch_size)
        self.number, self.classes_wanted, self.moved = number, classes, moved

    def dataset(self, domain: str, split: str) -> TensorDomain:
        rng = np.random.default_rng([["train", "val", "test"].index(split), len(domain)])
        y = rng.integers(self.classes_wanted, size=self.number)
        angle = 2 * np.pi * y / self.classes_wanted
        x = rng.normal(0, 0.4, (self.number, 8))
        x[:, 0] += 2 * np.cos(angle)
        x[:, 1] += 2 * np.sin(angle)
        if domain == "noisy" and self.moved:
            x += 1.5
        elif domain == "noisy":
            x[:, 2:] *= 12
        return TensorDomain(
            torch.from_numpy(x).float(), torch.from_numpy(y), [f"class {i}" for i in range(self.classes_wanted)]
        )


class Uneven(Toy):
    """A training split of one domain that is shorter than the other's."""

    def __init__(self, short: str, number: int = 320) -> None:
        super().__init__(number=number)
        self.short = short

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        if (domain, split) != (self.short, "train"):
            return data
        return TensorDomain(data.x[:72], data.y[:72], data.classes)


def adda(**kwargs: Any) -> ADDA:
    """Both stages: a short fit on the source, then the method that starts from it."""
    seed, path = torch.initial_seed(), Path(tempfile.mkdtemp(dir=".")) / "stage_1.ckpt"
    network = {key: kwargs[key] for key in ("num_classes", "input_shape", "backbone")}
    fit(FineTune(**network, optimizer=ADAM), steps=60).trainer.save_checkpoint(path)
    L.seed_everything(seed, verbose=False)
    return ADDA(init_from=str(path), **kwargs)


DEEP = ("fc1", "fc2", "head")
METHODS: dict[str, Callable[..., TransferModule]] = {
    "source_only": FineTune,
    "dan": partial(DAN, layers=DEEP),
    "dan_linear": partial(DAN, layers=DEEP, estimator="linear", beta="uniform"),
    "dan_biased": partial(DAN, layers=DEEP, estimator="biased", bandwidths=(0.5, 1, 2), beta=(1.0, 2.0, 1.0)),
    "ddc": partial(DAN, layers=("bottleneck",), estimator="biased", bandwidths="linear", beta="uniform"),
    "jan": JAN,
    "dann": DANN,
    "deep_coral": partial(DeepCORAL, layers=DEEP),
    "adda": adda,
}
ADAPTING = [name for name in METHODS if name != "source_only"]
ON_ONE_NETWORK = [name for name in ADAPTING if name != "adda"]
"""Those that train one network for both domains, with a task loss and a domain loss."""


def build(name: str, seed: int = 0, **kwargs: Any) -> TransferModule:
    L.seed_everything(seed, verbose=False)
    given: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": BACKBONE, "optimizer": SGD} | kwargs
    return METHODS[name](**given)


def trainer(steps: int = 30, **kwargs: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "num_sanity_val_steps": 0,
        "max_steps": steps,
    }
    return L.Trainer(**(quiet | kwargs))


def fit(model: TransferModule, steps: int = 30, data: Toy | None = None, **kwargs: Any) -> TransferModule:
    trainer(steps, limit_val_batches=0, **kwargs).fit(model, data or Toy())
    return model


def accuracy(model: TransferModule, data: Toy | None = None) -> dict[str, float]:
    results = trainer().test(model, data or Toy(), verbose=False)
    return {key: value for part in results for key, value in part.items()}
