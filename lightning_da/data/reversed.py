"""The reverse of a pair: the target with predicted labels as source, and the source as target."""

import csv
from pathlib import Path

import torch

from lightning_da.data.base import DataError, DomainPairDataModule, Selection, TensorDomain, select


class Reversed(DomainPairDataModule):
    """The two domains of a pair in the other direction; `lightning-da reverse` trains on it.

    Args:
        data: The pair.
        labels: CSV file of `lightning-da predict` with the columns sample, split and class, a row for each sample of
            the pair's target.

    Raises:
        DataError: If the file does not hold the samples of the target.
    """

    def __init__(self, data: DomainPairDataModule, labels: str) -> None:
        if len(data.domains) < 2:
            raise DataError(f"data: there is one domain, {data.target!r}, and the reverse needs two")
        super().__init__(data.target, data.source, data.batch_size)
        self.data, self.num_workers, self.predicted, self.words = data, data.num_workers, data.predicted, data.words
        self._labels = Path(labels)

    @property
    def classes(self) -> list[str]:
        """Class names of the pair."""
        return self.data.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.data.input_shape

    def dataset(self, domain: str, split: str) -> TensorDomain | Selection:
        whole = self.data._get(domain, split)
        if domain == self.target:
            return whole  # type: ignore[no-any-return]
        with self._labels.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        if [row["sample"] for row in rows] != list(whole.names):
            raise DataError(f"{self._labels}: its samples are not those of domain {domain!r}, {split}; predict again")
        y = torch.tensor([self.classes.index(row["class"]) for row in rows])
        return select(whole, torch.arange(len(whole)), y, self.classes)
