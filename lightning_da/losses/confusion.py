"""Losses of class probabilities that need no label: confusion between classes, information of the predictions."""

import torch
from torch import Tensor

from lightning_da.losses.precision import full_precision


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted classes of each sample, in nats.

    Args:
        logits: Shape (n, classes), floating point.

    Returns:
        Shape (n,), the dtype of `logits`, between 0 and log(classes).

    Examples:
        >>> round(entropy(torch.zeros(1, 2)).item(), 4)
        0.6931
    """
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


@full_precision
def certainty(logits: Tensor) -> Tensor:
    """Weight of each sample that prefers certain predictions: `1 + exp(-H)`, H the entropy; without gradient.

    Source: Long et al., "Conditional adversarial domain adaptation", NeurIPS 2018, equation 9.
    https://arxiv.org/abs/1705.10667

    Args:
        logits: Shape (n, classes), floating point.

    Returns:
        Shape (n,), float32 or better, from 1 + 1 / classes to 2.

    Examples:
        >>> certainty(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).tolist()
        [1.5, 2.0]
    """
    return 1 + torch.exp(-entropy(logits.detach()))


@full_precision
def class_confusion(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Minimum class confusion: the share of a class's probability that falls to other classes, the mean over classes.

    With the probabilities P at a temperature and the `certainty` w of each sample as weight, the confusion of the
    classes is `C = P^T diag(w) P`, its rows are divided by their sums, and the loss is the mean of the row sums without
    the diagonal. No gradient goes through the weights.

    Source: Jin et al., "Minimum class confusion for versatile domain adaptation", ECCV 2020, equations 2 to 6.
    https://arxiv.org/abs/1912.03699

    Args:
        logits: Shape (n, classes), floating point.
        temperature: Divides the logits.

    Returns:
        A scalar, float32 or better, between 0 and 1 - 1 / classes.

    Examples:
        >>> class_confusion(torch.tensor([[0.0, 0.0], [0.0, 0.0]])).item()
        0.5
        >>> round(class_confusion(torch.tensor([[100.0, 0.0], [0.0, 100.0]])).item(), 6)
        0.0
    """
    p = (logits / temperature).softmax(dim=1)
    weights = certainty(logits / temperature)[:, None]
    confusion = p.T @ (weights / weights.sum() * p)
    shares = confusion.diagonal() / confusion.sum(dim=1).clamp(min=torch.finfo(p.dtype).tiny)
    return 1 - shares.mean()


@full_precision
def information_loss(logits: Tensor) -> Tensor:
    """Entropy of each prediction, the mean over samples, minus the entropy of the mean prediction.

    It is the negative mutual information of sample and predicted class: low if each prediction is certain and all
    classes are predicted.

    Source: Liang et al., "Do we really need to access the source data? Source hypothesis transfer for unsupervised
    domain adaptation", ICML 2020, equations 2 and 3.
    https://arxiv.org/abs/2002.08546

    Args:
        logits: Shape (n, classes), floating point.

    Returns:
        A scalar, float32 or better, between -log(classes) and 0.

    Examples:
        >>> round(information_loss(torch.tensor([[100.0, 0.0], [0.0, 100.0]])).item(), 4)
        -0.6931
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    # a probability of 0 has no gradient here, where that of the entropy is infinite
    return entropy(logits).mean() + (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


@full_precision
def class_means(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """The mean of the samples of each class; 0 for a class without a sample.

    Args:
        x: Samples, shape (n, d), floating point.
        y: Classes, shape (n,), int64; samples with a negative one are passed over.
        classes: Number of classes.

    Returns:
        Shape (classes, d), the dtype of `x`.

    Examples:
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, -1]), 2).tolist()
        [[2.0], [0.0]]
    """
    x, y = x[y >= 0], y[y >= 0]
    sums = x.new_zeros(classes, x.shape[1]).index_add_(0, y, x)
    return sums / y.bincount(minlength=classes).clamp(min=1)[:, None]
