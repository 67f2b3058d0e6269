"""A data module to copy: see "A task of your own" in the README. The places to edit are marked EDIT."""

import numpy as np
import torch

from lightning_da.data.base import DomainPairDataModule, TensorDomain


class Template(DomainPairDataModule):  # EDIT: the name, here and in the YAML
    """Two clouds of points, `morning` and `evening`, which is turned and moved.  EDIT: what your domains are.

    Args:
        source: Domain with labels.
        target: Domain to transfer to.
        batch_size: Samples of each domain in a batch, on each process.
        noise: Spread of the clouds.  EDIT: what your data can be configured with.
    """

    def __init__(
        self, source: str = "morning", target: str = "evening", batch_size: int = 32, noise: float = 0.5
    ) -> None:
        super().__init__(source, target, batch_size)
        self.noise = noise

    def dataset(self, domain: str, split: str) -> TensorDomain:
        # EDIT: read one split of one domain. Splits must not overlap; a label that is not known is -1.
        # Samples can have any shape: vectors (n, d), images (n, channels, height, width), floating point or uint8.
        # Data too large for memory: return a torch Dataset with the attributes that DomainPairDataModule.dataset names.
        generator = np.random.default_rng([["train", "val", "test"].index(split), domain == "evening"])
        labels = generator.integers(2, size=400)
        points = np.stack([4 * labels - 2, 0 * labels], axis=1) + generator.normal(0, self.noise, (400, 2))
        if domain == "evening":
            angle = 0.7
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            points = points @ turn.T + [0.0, 1.0]
        return TensorDomain(torch.from_numpy(points).float(), torch.from_numpy(labels), classes=["left", "right"])
