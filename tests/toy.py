"""A pair of domains small enough to train on in a second, and a trainer that leaves nothing behind."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch

from lightning_da.backbones import FeedForward
from lightning_da.data import DomainPairDataModule, TensorDomain
from lightning_da.methods import DANN, DeepCORAL, FineTune, TransferModule

BACKBONE = partial(FeedForward, hidden=[32, 16])
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=5e-3)


class Toy(DomainPairDataModule):
    """Three classes told apart by two of eight dimensions; the others are twelve times as large in the target."""

    def __init__(self, batch_size: int = 32, number: int = 320, classes: int = 3) -> None:
        super().__init__("calm", "noisy", batch_size)
        self.number, self.classes_wanted = number, classes

    def dataset(self, domain: str, split: str) -> TensorDomain:
        rng = np.random.default_rng([["train", "val", "test"].index(split), len(domain)])
        y = rng.integers(self.classes_wanted, size=self.number)
        angle = 2 * np.pi * y / self.classes_wanted
        x = rng.normal(0, 0.4, (self.number, 8))
        x[:, 0] += 2 * np.cos(angle)
        x[:, 1] += 2 * np.sin(angle)
        if domain == "noisy":
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


METHODS: dict[str, Callable[..., TransferModule]] = {
    "source_only": FineTune,
    "dann": DANN,
    "deep_coral": partial(DeepCORAL, layers=("fc1", "fc2", "head")),
}
ADAPTING = [name for name in METHODS if name != "source_only"]


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
