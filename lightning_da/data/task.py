"""A labelled subset of one domain: some classes, and optionally a limited number of labels."""

from typing import Literal

import torch

from lightning_da.data.base import UNKNOWN, DataError, DomainPairDataModule, Roles, Selection, TensorDomain, select
from lightning_da.data.labels import draw_labelled
from lightning_da.errors import list_choices


class Task(DomainPairDataModule):
    """Classification of some classes of one domain.

    Samples without a label are left out.

    Args:
        data: A pair of domains.
        domain: The domain of the pair that the samples come from.
        classes: Class names in the order of the new labels; None uses all classes.
        labels: Number of training samples, drawn evenly over the classes as far as each class has enough; None uses
            all.
        seed: Seed of the draw.
        batch_size: Samples per batch, on each process; at most the number of training samples.

    Raises:
        DataError: If a class name is unknown, there are fewer than two classes, or fewer labels than classes.
    """

    def __init__(
        self,
        data: DomainPairDataModule,
        domain: Literal["source", "target"] = "source",
        classes: list[str] | None = None,
        labels: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        name = getattr(data, domain)
        super().__init__(None, name, batch_size)
        self.data, self._chosen, self.labels, self.seed = data, classes, labels, seed
        self.num_workers, self.predicted, self.words = data.num_workers, data.predicted, data.words
        self._known = data.classes_in(domain)
        for wanted in classes or []:
            if wanted not in self._known:
                raise DataError(f"classes: no class {wanted!r}; {list_choices(wanted, self._known)}")
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise DataError(f"classes: name at least two classes, each once, not {self.classes}")
        if labels is not None and labels < len(self.classes):
            raise DataError(f"labels: {labels} is fewer than the {len(self.classes)} classes")

    @property
    def classes(self) -> list[str]:
        """Class names of the task."""
        return list(self._chosen or self._known)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.data.input_shape

    def check(self, roles: Roles = Roles(("source",), ())) -> None:  # noqa: B008
        """Checks the task, after limiting the batch size to the number of training samples."""
        self.batch_size = min(self.batch_size, max(len(self._get(self.source, "train")) // roles.processes, 1))
        super().check(roles)

    def dataset(self, domain: str, split: str) -> TensorDomain | Selection:
        whole = self.data._own(domain, split)
        label = torch.full((len(self._known) + 1,), UNKNOWN)
        for new, name in enumerate(self.classes):
            label[self._known.index(name)] = new
        y = label[torch.as_tensor(whole.y)]
        indices = (y != UNKNOWN).nonzero()[:, 0]
        if split == "train" and not len(indices):
            raise DataError(f"domain {domain!r}: no training sample has a label in {self.classes}")
        if split == "train" and self.labels is not None:
            indices = indices[draw_labelled(y[indices], self.labels, self.seed, "labels")]
        return select(whole, indices, y[indices], self.classes)
