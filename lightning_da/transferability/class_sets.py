"""A sign, without target labels, that the target lacks classes of the source."""

from torch import Tensor, bincount

from lightning_da.data.base import UNKNOWN

RARE = 0.5
"""A class is missing if the target is predicted to have less than so much of its share in the source."""


def missing(source_labels: Tensor, target_logits: Tensor) -> float:
    """The share of the source's classes that the target seems to lack, from the proportions of the predicted classes.

    It is for a network that was trained on the source alone: adaptation hides it. A large shift between equal classes
    makes the same sign, so that it is a reason to look at the data and no proof.

    Args:
        source_labels: Of held-out source samples, shape (n_s,), int64, `UNKNOWN` where the class is not known.
        target_logits: Shape (n_t, classes), floating point.

    Examples:
        >>> missing(Tensor([0, 1, 2, 2]).long(), Tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])) == 1 / 3
        True
    """
    known = source_labels[source_labels != UNKNOWN]
    shares = bincount(known, minlength=target_logits.shape[1]).double() / len(known)
    found = bincount(target_logits.argmax(dim=1), minlength=len(shares)) / len(target_logits)
    there = shares > 0
    return float((found[there] < RARE * shares[there]).double().mean())
