"""Datasets of one domain: in memory, and parts of other datasets."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_da.data.class_sets import UNKNOWN_CLASS
from lightning_da.errors import ConfigError
from lightning_da.inputs import Images, Input, Numbers, Texts

UNKNOWN = -1
"""Label of a sample with an unknown class: losses and metrics ignore it."""


class DataError(ConfigError):
    """Unusable data; the message names the file, domain or value and the remedy."""


class TensorDomain(Dataset[tuple[Tensor, Tensor]]):
    """One split of one domain, held in memory.

    Args:
        x: Samples, shape (n, ...), floating point, uint8 or int64. Images of uint8 are scaled to floats in [0, 1]; the
            words of sentences stay int64.
        y: Labels, shape (n,), integers; `UNKNOWN` (-1) where the class is unknown.
        classes: Class names in the order of the labels.
        names: Name of each sample, for the CSV file of predictions; None uses the indices.
        reads: How a model outside of this project reads a sample; None takes image files for grey and colour images of
            uint8, texts for sentences (int64, shape (n, length)), otherwise the numbers that the network reads.
        numbers: The number that each label stands for, for regression, shape (number of labels,), floating point. A
            batch then has these numbers, float32, in place of labels, NaN for `UNKNOWN`, and there are no classes.
        masks: The class of each pixel, for segmentation, shape (n, height, width), integers; `UNKNOWN` where the class
            is unknown. A batch then has these masks, int64, in place of labels. `y` is 0 for an image with a mask; it
            becomes `UNKNOWN` where the class of no pixel is known.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        classes: Sequence[str],
        names: Sequence[str] | None = None,
        reads: Input | None = None,
        numbers: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> None:
        self.masks = masks
        self.numbers = None if numbers is None else torch.cat([numbers.float(), torch.tensor([torch.nan])])
        if masks is not None:
            y = torch.where((masks != UNKNOWN).flatten(1).any(dim=1), y, UNKNOWN)
        self.x, self.y, self.classes = x, y.long(), list(classes)
        images = x.dtype == torch.uint8 and x.ndim == 4 and x.shape[1] in (1, 3)
        own: Input = Images((x.shape[2], x.shape[3]), x.shape[1]) if images else Numbers(tuple(x.shape[1:]))
        if x.dtype == torch.int64 and x.ndim == 2:
            own = Texts(x.shape[1])
        self.reads = reads or own
        self.names = list(names) if names is not None else [str(i) for i in range(len(x))]

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        x = self.x[indices]
        if x.dtype != torch.int64:
            x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        y = self.y[indices] if self.masks is None else self.masks[indices].long()
        return x, y if self.numbers is None else self.numbers[y]  # the index -1 is the last

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def unscaled(self, index: int) -> Tensor:
        """A sample as `reads` gives it."""
        return self.x[index] if isinstance(self.reads, Images) else self[index][0]

    def fingerprint(self) -> str:
        """A digest of the content."""
        digest = hashlib.sha256()
        for part in (self.x, self.y, self.numbers, self.masks):
            if part is not None:
                digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


class Selection(Dataset[Any]):
    """A subset of a dataset with new labels.

    Args:
        whole: A dataset from `DomainPairDataModule.dataset`.
        indices: Indices of the samples, shape (n,).
        y: New labels of the samples, shape (n,).
        classes: Class names in the order of the new labels.
    """

    def __init__(self, whole: Any, indices: Tensor, y: Tensor, classes: Sequence[str]) -> None:
        self.whole, self.indices, self.y, self.classes = whole, indices, y, list(classes)

    @property
    def names(self) -> list[str]:
        """Name of each sample."""
        names = self.whole.names
        return [names[index] for index in self.indices.tolist()]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.whole[int(self.indices[index])][0], self.y[index]

    @property
    def reads(self) -> Input | None:
        """How a model outside of this project reads a sample."""
        found: Input | None = getattr(self.whole, "reads", None)
        return found

    def unscaled(self, index: int) -> Tensor:
        """A sample as `reads` gives it."""
        found: Tensor = self.whole.unscaled(int(self.indices[index]))
        return found

    def fingerprint(self) -> str:
        """A digest of the whole dataset and the selection."""
        chosen = f"{self.whole.fingerprint()} {self.indices.tolist()} {self.y.tolist()}"
        return hashlib.sha256(chosen.encode()).hexdigest()


def select(whole: Any, indices: Tensor, y: Tensor, classes: Sequence[str]) -> TensorDomain | Selection:
    """A subset of a dataset with new labels; in memory if the dataset is. For the arguments see `Selection`."""
    if not isinstance(whole, TensorDomain):
        return Selection(whole, indices, y, classes)
    names = [whole.names[index] for index in indices.tolist()]
    return TensorDomain(whole.x[indices], y, classes, names, whole.reads)


def relabel(whole: Any, classes: Sequence[str]) -> TensorDomain | Selection:
    """A dataset with the same samples, whose labels count a longer list of classes.

    Args:
        whole: A dataset from `DomainPairDataModule.dataset`.
        classes: Class names in the order of the new labels; those of the dataset are among them, or are `unknown`.

    Raises:
        DataError: If a label is out of range.
    """
    known = [classes.index(name if name in classes else UNKNOWN_CLASS) for name in whole.classes]
    y = torch.as_tensor(whole.y)
    if ((y < UNKNOWN) | (y >= len(known))).any():
        raise DataError(
            f"a label is out of range; the {len(known)} classes {whole.classes} are labelled 0 to {len(known) - 1}"
        )
    label = torch.tensor([*known, UNKNOWN])  # the index -1 is the last
    if isinstance(whole, TensorDomain):
        masks = None if whole.masks is None else label[whole.masks.long()]
        return TensorDomain(whole.x, label[y], classes, whole.names, whole.reads, masks=masks)
    return Selection(whole, torch.arange(len(whole)), label[y], classes)
