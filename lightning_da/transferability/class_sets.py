"""Signs, without target labels, that the target lacks classes of the source, or has others."""

import torch
from sklearn.cluster import KMeans
from torch import Tensor, bincount
from torch.nn.functional import normalize

from lightning_da.data.base import UNKNOWN

RARE = 0.5
"""A class is missing if the target is predicted to have less than so much of its share in the source."""
NEAR = 0.3
"""A cluster is near a class if the cosine of its centre and the mean of the class is at least so large."""
CLUSTERS = 2
"""Clusters of the target for each class of the source."""
FOREIGN = (
    "{:.0%} of the target's samples are in clusters that are near no class of the source; it has other classes, or "
    "differs much: look at some samples; with other classes set --data.class_sets open"
)
"""What a large value of `foreign` means."""
MANY = 0.25
"""A sign is said above this value; the figures are in docs/class_sets.md."""


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


def foreign(source: Tensor, source_labels: Tensor, target: Tensor, seed: int = 0) -> float:
    """The share of the target's samples in clusters that are near no class of the source.

    It is for features of a pretrained network, before training: a network that was trained on the source sees classes
    of the source everywhere. Each domain is standardised by itself. A large shift between equal classes makes the same
    sign.

    Args:
        source: Features, shape (n_s, d), floating point.
        source_labels: Shape (n_s,), int64, `UNKNOWN` where the class is not known.
        target: Features, shape (n_t, d).
        seed: Seed of k-means.

    Returns:
        A number in [0, 1]; NaN if no source label is known, or the target has fewer samples than clusters.

    Examples:
        >>> points = torch.tensor([[4.0, 0.0], [-4.0, 0.0]]).repeat(20, 1) + torch.randn(40, 2)
        >>> foreign(points, torch.tensor([0, 1]).repeat(20), points + 5)
        0.0
    """
    known = source_labels != UNKNOWN
    classes = source_labels[known].unique()
    if not len(classes) or len(target) < CLUSTERS * len(classes):
        return float("nan")
    s, t = ((x - x.mean(dim=0)) / (x.std(dim=0) + 1e-6) for x in (source.double(), target.double()))
    means = torch.stack([s[source_labels == label].mean(dim=0) for label in classes])
    clusters = KMeans(CLUSTERS * len(classes), n_init=5, random_state=seed).fit(t.numpy())
    centres = torch.from_numpy(clusters.cluster_centers_)
    far = (normalize(centres) @ normalize(means).T).amax(dim=1) < NEAR
    return float(far[torch.from_numpy(clusters.labels_).long()].double().mean())
