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
