"""Retrieval by binary codes: the mean average precision over Hamming distances."""

import torch
from torch import Tensor

from lightning_da.methods.verification import Embeddings


class Retrieval(Embeddings):
    """Whether the samples with the most similar binary codes are of the same class; codes are signs of features.

    Each sample is a query, and all others of its domain are the collection; of large splits `LIMIT` samples are read.
    """

    def compute(self) -> dict[str, Tensor]:
        """`retrieval_map`, the mean average precision of all samples; nothing if no class has two samples."""
        x, y = self.all()
        found = average_precisions(x, y)
        return {"retrieval_map": found.mean()} if len(found) else {}


def average_precisions(x: Tensor, y: Tensor) -> Tensor:
    """Average precision of each query among all other samples, in the order of the Hamming distances of their codes.

    Samples at equal distances are found together, so that the order of the rows does not matter:
    `sum_d (recall_d - recall_(d - 1)) precision_d` over the distances d, as in scikit-learn's
    `average_precision_score`.

    Args:
        x: Features, shape (n, bits), floating point; the code is 1 where they are positive.
        y: Classes, shape (n,), int64.

    Returns:
        Shape (queries,), float64: those whose class has another sample.

    Examples:
        >>> average_precisions(torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0]]), torch.tensor([0, 0, 1])).tolist()
        [1.0, 1.0]
    """
    codes, bits = (x > 0).double() * 2 - 1, x.shape[1]
    distances = ((bits - codes @ codes.T) / 2).round().long()
    relevant = (y[:, None] == y).long().fill_diagonal_(0)
    found, right = (
        torch.zeros(len(y), bits + 1, dtype=torch.long).scatter_add_(1, distances, counted)
        for counted in (1 - torch.eye(len(y), dtype=torch.long), relevant)
    )
    precision = right.cumsum(dim=1) / found.cumsum(dim=1).clamp(min=1)
    queries = relevant.any(dim=1)
    return (right * precision.double()).sum(dim=1)[queries] / right.sum(dim=1)[queries]
