"""Your own data. EDIT marks the lines to change."""

from typing import Any

import numpy as np
import torch

from lightning_da.data.base import DomainPairDataModule, TensorDomain


class Template(DomainPairDataModule):  # EDIT: the name, here and in the YAML
    """Points in the plane; the domain `evening` is `morning` rotated and shifted.  EDIT: describe your domains.

    Args:
        source: Domain with labels, or several.
        target: Domain to transfer to, or several.
        batch_size: Samples per batch and domain, on each process.
        noise: Standard deviation within a class.  EDIT: the settings of your data.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.
    """

    def __init__(
        self,
        source: str | list[str] = "morning",
        target: str | list[str] = "evening",
        batch_size: int = 32,
        noise: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        self.noise = noise

    def dataset(self, domain: str, split: str) -> TensorDomain:
        # EDIT: read one split of one domain. Splits must not overlap. An unknown label is -1.
        # Samples have any shape: vectors (n, d), images (n, channels, height, width), floating point or uint8.
        # Data too large for memory: return a torch Dataset with the attributes listed in DomainPairDataModule.dataset.
        generator = np.random.default_rng([["train", "val", "test"].index(split), domain == "evening"])
        labels = generator.integers(2, size=400)
        points = np.stack([4 * labels - 2, 0 * labels], axis=1) + generator.normal(0, self.noise, (400, 2))
        if domain == "evening":
            angle = 1.2
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            points = points @ turn.T + [0.0, 1.0]
        return TensorDomain(torch.from_numpy(points).float(), torch.from_numpy(labels), classes=["left", "right"])
