"""Classes of samples without a label, by the nearest centroid of a class."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_da.losses.precision import full_precision


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
