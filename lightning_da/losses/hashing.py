"""Losses of binary codes that are relaxed to numbers: pairs of one class, signs, and classes by similar codes."""

from math import log

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lightning_da.losses.confusion import entropy
from lightning_da.losses.precision import full_precision


@full_precision
def pair_likelihood(codes: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood that pairs are of one class, with the probability `sigmoid(u_i . u_j)`; mean over pairs.

    Source: Venkateswara et al., "Deep hashing network for unsupervised domain adaptation", CVPR 2017, the supervised
    hash loss, there as a sum over pairs.
    https://arxiv.org/abs/1706.07522

    Args:
        codes: Shape (n, bits), floating point.
        y: Classes, shape (n,), int64; samples with a negative one are passed over.

    Returns:
        A scalar, float32 or better; 0 if there is no pair.

    Examples:
        >>> round(pair_likelihood(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])).item(), 4)
        0.1269
        >>> round(pair_likelihood(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1])).item(), 4)
        2.1269
    """
    codes, y = codes[y >= 0], y[y >= 0]
    one, other = torch.triu_indices(len(y), len(y), 1, device=y.device)
    products = (codes @ codes.T)[one, other]
    return (softplus(products) - (y[one] == y[other]) * products).sum() / max(len(one), 1)


@full_precision
def quantization(codes: Tensor) -> Tensor:
    """Squared distance of codes to their signs, without gradient for the signs; the mean over samples and bits.

    Source: Venkateswara et al., CVPR 2017, the second term of the relaxed hash loss, there a sum. Beside a mean over
    pairs, the mean over bits keeps its share near to that of the paper.
    https://arxiv.org/abs/1706.07522

    Args:
        codes: Shape (n, bits), floating point.

    Returns:
        A scalar, float32 or better; 0 if all values are 1 or -1.

    Examples:
        >>> quantization(torch.tensor([[0.5, -1.0]])).item()
        0.125
    """
    return (codes - codes.detach().sign()).square().mean()


@full_precision
def category_entropy(target: Tensor, source: Tensor, y: Tensor) -> Tensor:
    """Entropy of the classes of target codes, by their similarity to source codes; the mean over target samples.

    The probability of class c is proportional to the mean of `exp(u_t . u_s)` over its source samples. The paper has
    the sum, over as many samples in each class.

    Source: Venkateswara et al., CVPR 2017, the unsupervised entropy loss.
    https://arxiv.org/abs/1706.07522

    Args:
        target: Codes, shape (n_t, bits), floating point.
        source: Codes, shape (n_s, bits), floating point.
        y: Classes of the source, shape (n_s,), int64; samples with a negative one are passed over.

    Returns:
        A scalar, float32 or better, between 0 and log(classes); 0 if the source has fewer than two classes.

    Examples:
        >>> source, y = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([0, 1])
        >>> round(category_entropy(torch.tensor([[1.0, -1.0]]), source, y).item(), 4)
        0.6931
    """
    products = target @ source.T
    groups = [(y == c).nonzero()[:, 0] for c in y.unique() if c >= 0]
    if len(groups) < 2:
        return products.sum() * 0
    logits = [products[:, rows].logsumexp(dim=1) - log(len(rows)) for rows in groups]
    return entropy(torch.stack(logits, dim=1)).mean()
