"""Verification and retrieval: what the distances of embeddings tell of identities."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_da.data.base import UNKNOWN

FOLDS = 10
LIMIT = 2000
"""The most samples whose pairs are counted; of more, so many at equal distances in their order."""
RANKS = (1, 5, 10)

Array = NDArray[Any]


class Curves(NamedTuple):
    """What a verification and a retrieval give at every threshold and rank.

    Attributes:
        false_positive: False positive rate, ascending, shape (t,).
        true_positive: True positive rate, shape (t,).
        cmc: Cumulative match characteristic: the share of samples whose nearest other sample of the same identity is
            among the r nearest of all, for r = 1, 2, ..., shape (n - 1,).
    """

    false_positive: Array
    true_positive: Array
    cmc: Array


class Embeddings(Metric):
    """The embeddings and identities of samples; a subclass computes scores of them. Unknown identities are left out."""

    full_state_update = False
    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.embeddings: list[Tensor]
        self.identities: list[Tensor]
        for name in ("embeddings", "identities"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, y: Tensor) -> None:
        """Adds embeddings (B, d) and identities (B,), int64, `UNKNOWN` where the identity is not known."""
        known = y != UNKNOWN
        self.embeddings.append(embeddings[known].detach().float())
        self.identities.append(y[known])

    def all(self) -> tuple[Tensor, Tensor]:
        """Embeddings (n, d) and identities (n,) of `LIMIT` samples at most."""
        if not len(self.embeddings):
            return torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)
        x, y = dim_zero_cat(self.embeddings).cpu(), dim_zero_cat(self.identities).cpu()
        rows = torch.arange(len(y)) if len(y) <= LIMIT else torch.linspace(0, len(y) - 1, LIMIT).long()
        return x[rows], y[rows]


class Verification(Embeddings):
    """Whether two samples are of one identity, told by the Euclidean distance of their embeddings.

    Source of the protocol: Huang et al., "Labeled faces in the wild", 2007. Here all pairs of samples are read, and
    pairs of one identity weigh as much as pairs of two. They are in ten folds: those of identities a and b in fold
    (a + b) modulo 10, those of one identity a in fold a modulo 10. Samples of unknown identity are left out.
    https://vis-www.cs.umass.edu/lfw/lfw.pdf
    """

    def compute(self) -> dict[str, Tensor]:
        """The scores of all samples.

        Returns:
            `acc`, the verification accuracy: mean over folds, each with the threshold that is best on the other folds;
            `acc_error`, its standard error; `auc`, the area below the ROC curve; `rank_1`, `rank_5` and `rank_10`, see
            `Curves.cmc`; and `map_at_r`, the mean average precision of retrieval. Nothing if fewer than three
            identities have two samples.
        """
        x, y = self.all()
        if not _verifiable(y):
            return {}
        from pytorch_metric_learning.distances import LpDistance  # noqa: PLC0415  # an extra
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator  # noqa: PLC0415
        from pytorch_metric_learning.utils.inference import CustomKNN  # noqa: PLC0415
        from sklearn.metrics import auc  # noqa: PLC0415  # slow to import

        distances = torch.cdist(x, x).numpy()
        folds, curves = fold_accuracies(distances, y.numpy()), curves_of(distances, y.numpy())
        calculator = AccuracyCalculator(
            include=("mean_average_precision_at_r",),
            k="max_bin_count",
            device=torch.device("cpu"),
            knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
        )
        found = {
            "acc": folds.mean(),
            "acc_error": folds.std(ddof=1) / len(folds) ** 0.5,
            "auc": auc(curves.false_positive, curves.true_positive),
            **{f"rank_{rank}": curves.cmc[min(rank, len(curves.cmc)) - 1] for rank in RANKS},
            "map_at_r": calculator.get_accuracy(x, y)["mean_average_precision_at_r"],
        }
        return {key: torch.tensor(float(value)) for key, value in found.items()}

    def curves(self) -> Curves | None:
        """The curves of all samples; None as for `compute`. Under several processes, of those of this one."""
        x, y = self.all()
        return curves_of(torch.cdist(x, x).numpy(), y.numpy()) if _verifiable(y) else None


def _verifiable(y: Tensor) -> bool:
    return int((y.unique(return_counts=True)[1] > 1).sum()) > 2


def fold_accuracies(distances: Array, y: Array) -> Array:
    """The verification accuracy of each fold of pairs, see `Verification`.

    Args:
        distances: Between all samples, shape (n, n), floating point.
        y: Identities, shape (n,), integers; at least three have two samples.

    Returns:
        Shape (folds,), float64: as many folds as identities with two samples, ten at most.
    """
    _, y, counts = np.unique(y, return_inverse=True, return_counts=True)
    y = np.argsort(np.argsort(counts < 2, kind="stable"))[y]  # those with two samples first: each fold needs pairs
    number = min(FOLDS, int((counts > 1).sum()))
    one, other = np.triu_indices(len(y), 1)
    same = y[one] == y[other]
    fold = np.where(same, y[one], y[one] + y[other]) % number
    order = np.argsort(distances[one, other], kind="stable")
    same, fold, sorted_distances = same[order], fold[order], distances[one, other][order]
    last = np.append(np.diff(sorted_distances) > 0, True)  # thresholds fall between unequal distances

    def rates(kept: NDArray[np.bool_]) -> Array:
        """Balanced accuracy over `kept` pairs, if the i nearest pairs are called the same, for i from 1."""
        alike, different = same & kept, ~same & kept
        accuracy: Array = (alike.cumsum() / alike.sum() + 1 - different.cumsum() / different.sum()) / 2
        return accuracy

    found = []
    for held in range(number):
        threshold = np.where(last, rates(fold != held), -1).argmax()
        found.append(rates(fold == held)[threshold])
    return np.array(found)


def curves_of(distances: Array, y: Array) -> Curves:
    """ROC curve and cumulative match characteristic.

    Args:
        distances: Between all samples, shape (n, n), floating point.
        y: Identities, shape (n,), integers.
    """
    from sklearn.metrics import roc_curve  # noqa: PLC0415  # slow to import

    same = y[:, None] == y
    one, other = np.triu_indices(len(y), 1)
    false_positive, true_positive, _ = roc_curve(same[one, other], -distances[one, other])
    itself = np.eye(len(y), dtype=bool)
    nearest = np.where(same & ~itself, distances, np.inf).min(axis=1)
    ranks = ((distances <= nearest[:, None]) & ~same).sum(axis=1)[np.isfinite(nearest)]
    return Curves(false_positive, true_positive, np.bincount(ranks, minlength=len(y) - 1).cumsum() / len(ranks))
