"""Classes of samples without a label, by the centroids of the classes."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_da.losses.confusion import entropy
from lightning_da.losses.precision import full_precision

_SHORTEST = 1e-6
"""Shorter vectors are divided by this length: the direction of rounding errors is not taken for one."""


@full_precision
def nearest_centroid(features: Tensor, centroids: Tensor) -> Tensor:
    """The class whose centroid has the smallest angle to each sample; without gradient.

    Source: Liang et al., ICML 2020, equation 5.
    https://arxiv.org/abs/2002.08546

    Args:
        features: Shape (n, d), floating point.
        centroids: Centroid of each class, shape (classes, d); a class whose centroid is 0 has none, and no sample.

    Returns:
        Classes, shape (n,), int64; -1 (unknown) if no class has a centroid.

    Examples:
        >>> nearest_centroid(torch.tensor([[9.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.1]])).tolist()
        [0, 1]
    """
    there = (centroids != 0).any(dim=1)
    with torch.no_grad():
        cosines = normalize(features, dim=1) @ normalize(centroids, dim=1).T
        classes = cosines.masked_fill(~there, -torch.inf).argmax(dim=1)
        return torch.where(there.any(), classes, -1)


@full_precision
def similarity_entropy(features: Tensor, centroids: Tensor, temperature: float = 0.1) -> Tensor:
    """How undecided samples are between the centroids: entropy of `softmax(cosine / temperature)`, mean over samples.

    The gradient goes to the samples and to the centroids.

    Source: Luo et al., "Label efficient learning of transferable representations across domains and tasks", NIPS 2017,
    section 3.3, with the cosine as similarity.
    https://arxiv.org/abs/1712.00123

    Args:
        features: Shape (n, d), floating point.
        centroids: Centroid of each class, shape (classes, d); a class whose centroid is 0 has none.
        temperature: Divides the cosines.

    Returns:
        A scalar, float32 or better, between 0 and log(classes); 0 if fewer than two classes have a centroid.

    Examples:
        >>> centroids = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> round(similarity_entropy(torch.tensor([[1.0, 1.0]]), centroids).item(), 4)
        0.6931
        >>> round(similarity_entropy(torch.tensor([[1.0, 0.0]]), centroids).item(), 4)
        0.0005
    """
    there = centroids[(centroids != 0).any(dim=1)]
    if len(there) < 2:
        return (features.sum() + centroids.sum()) * 0
    cosines = normalize(features, dim=1, eps=_SHORTEST) @ normalize(there, dim=1, eps=_SHORTEST).T
    return entropy(cosines / temperature).mean()


@full_precision
def paired_error(source: Tensor, source_labels: Tensor, target: Tensor, target_labels: Tensor) -> Tensor:
    """Mean squared error over all pairs of a source and a target sample of one class.

    Each source sample has the same weight, however many partners it has; one without a partner is passed over.

    Args:
        source: Features, shape (n_s, d), floating point.
        source_labels: Shape (n_s,), int64; a sample with a negative label has no partner.
        target: Features, shape (n_t, d), floating point.
        target_labels: Shape (n_t,), int64.

    Returns:
        A scalar, float32 or better; 0 if there is no pair.

    Examples:
        >>> source, target = torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [3.0]])
        >>> paired_error(source, torch.tensor([0, 1]), target, torch.tensor([0, 0])).item()
        5.0
    """
    partners = ((source_labels[:, None] == target_labels) & (source_labels[:, None] >= 0)).to(source)
    counts = partners.sum(dim=1, keepdim=True)
    shares = partners / counts.clamp(min=1)
    means = shares @ target
    errors = (source - means).square() + shares @ target.square() - means.square()
    paired = counts[:, 0] > 0
    return errors.mean(dim=1)[paired].sum() / paired.sum().clamp(min=1)
