"""Signs, without target labels, that source and target have different classes.

They are of a network that was trained on the source alone: adaptation hides them. A large shift between equal classes
makes the same signs, so that they are a reason to look at the data and no proof.
"""

from torch import Tensor, bincount

from lightning_da.data.base import UNKNOWN

SURE = 0.95
"""Share of the source samples that are sure, by definition."""
RARE = 0.2
"""A class is missing if the target is predicted to have less than so much of its share in the source."""


def unsure(source_logits: Tensor, target_logits: Tensor) -> float:
    """The share of target samples with a largest probability below that of 95 per cent of the source samples.

    It is .05 on equal distributions, and large if many target samples are of no class of the source.

    Args:
        source_logits: Of held-out source samples, shape (n_s, classes), floating point.
        target_logits: Shape (n_t, classes).

    Examples:
        >>> sure = Tensor([[9.0, 0.0]])
        >>> unsure(sure.repeat(8, 1), Tensor([[9.0, 0.0], [0.0, 0.0]]))
        0.5
    """
    source, target = (logits.double().softmax(dim=1).amax(dim=1) for logits in (source_logits, target_logits))
    return float((target < source.quantile(1 - SURE)).double().mean())


def missing(source_labels: Tensor, target_logits: Tensor) -> float:
    """The share of the source's classes that the target seems to lack, from the proportions of the predictions.

    Args:
        source_labels: Of held-out source samples, shape (n_s,), int64, `UNKNOWN` where the class is not known.
        target_logits: Shape (n_t, classes), floating point.

    Examples:
        >>> missing(Tensor([0, 1, 2, 2]).long(), Tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])) == 1 / 3
        True
    """
    known = source_labels[source_labels != UNKNOWN]
    shares = bincount(known, minlength=target_logits.shape[1]).double() / len(known)
    found = target_logits.double().softmax(dim=1).mean(dim=0)
    there = shares > 0
    return float((found[there] < RARE * shares[there]).double().mean())
