"""Scores that choose a network, a checkpoint or a setting without target labels. Higher is better for all of them.

Features are (n, d), logits (n, classes), floating point, one row for each sample; labels are int64, with `UNKNOWN` (-1)
where the class is not known. Everything is computed in float64 on the CPU and returned as a Python number.

A score compares networks for the same data. None is right everywhere: a network that predicts one class for all samples
has the best entropy, and a network that is confident and wrong has a good one.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from lightning_da.data.base import UNKNOWN
from lightning_da.transferability import measures

TEMPERATURE = 0.05
"""Temperature of `snd`."""
NEIGHBOURS = 5
"""Number of source samples in a `vote`."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network computes for held-out samples of both domains. There are no target labels.

    Attributes:
        source: Features of the source, shape (n_s, d).
        source_logits: Shape (n_s, classes).
        source_labels: Shape (n_s,).
        target: Features of the target, shape (n_t, d).
        target_logits: Shape (n_t, classes).

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> outputs = Outputs(logits, logits, torch.tensor([0, 1]), logits, logits)
        >>> SCORES["source_acc"](outputs)
        1.0
    """

    source: Tensor
    source_logits: Tensor
    source_labels: Tensor
    target: Tensor
    target_logits: Tensor

    @cached_property
    def known(self) -> Tensor:
        """Whether the label of a source sample is known, shape (n_s,)."""
        return self.source_labels != UNKNOWN

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropies of the source samples with a label."""
        logits = self.source_logits[self.known].double()
        return cross_entropy(logits, self.source_labels[self.known], reduction="none")

    @cached_property
    def votes(self) -> Tensor:
        """Classes of the target by `vote` of the source samples with a label, shape (n_t,)."""
        known = self.known
        return vote(self.source[known], self.source_labels[known], self.target, self.target_logits.shape[1])

    @cached_property
    def weights(self) -> Tensor:
        """`importance_weights` of the source samples with a label."""
        return importance_weights(self.source, self.target)[self.known]


def _probabilities(logits: Tensor) -> Tensor:
    return logits.detach().double().cpu().softmax(dim=1)


def _entropies(probabilities: Tensor) -> Tensor:
    entropies: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return entropies


def entropy(logits: Tensor) -> float:
    """Negative mean entropy of the predictions, in nats.

    Source: Morerio et al., "Minimal-entropy correlation alignment for unsupervised deep domain adaptation", ICLR 2018.
    https://arxiv.org/abs/1711.10288

    Args:
        logits: Of the target.

    Examples:
        >>> round(entropy(torch.zeros(4, 2)), 3)
        -0.693
    """
    return -float(_entropies(_probabilities(logits)).mean())


def diversity(logits: Tensor) -> float:
    """Entropy of the mean prediction, in nats: 0 if one class is predicted for all samples.

    Source: Musgrave et al., "Benchmarking validation methods for unsupervised domain adaptation", 2022.
    https://arxiv.org/abs/2208.07360

    Args:
        logits: Of the target.

    Examples:
        >>> round(diversity(torch.tensor([[20.0, 0.0], [0.0, 20.0]])), 3)
        0.693
    """
    return float(_entropies(_probabilities(logits).mean(dim=0)))


def infomax(logits: Tensor) -> float:
    """`entropy` and `diversity` together: the mutual information of sample and predicted class, in nats.

    Source: Krause et al., "Discriminative clustering by regularized information maximization", NeurIPS 2010.

    Args:
        logits: Of the target.

    Returns:
        A number in [0, log classes].

    Examples:
        >>> round(infomax(torch.tensor([[20.0, 0.0], [0.0, 20.0]])), 3)
        0.693
    """
    return entropy(logits) + diversity(logits)


def bnm(logits: Tensor) -> float:
    """Nuclear norm of the predicted probabilities, divided by the number of samples.

    Source: Cui et al., "Towards discriminability and diversity: batch nuclear-norm maximization", CVPR 2020.
    https://arxiv.org/abs/2003.12237

    Args:
        logits: Of the target.

    Examples:
        >>> round(bnm(20 * torch.eye(2)), 3)
        1.0
    """
    return float(torch.linalg.matrix_norm(_probabilities(logits), "nuc")) / len(logits)


def snd(logits: Tensor, temperature: float = TEMPERATURE) -> float:
    """Soft neighbourhood density: mean entropy of the similarities of a sample to all other samples, in nats.

    The similarities are a softmax of the cosines between predicted probabilities. It is large if each sample has many
    near neighbours.

    Source: Saito et al., "Tune it the right way: unsupervised validation of domain adaptation via soft neighborhood
    density", ICCV 2021, section 3.
    https://arxiv.org/abs/2108.10860

    Args:
        logits: Of the target, at least two samples.
        temperature: Divides the cosines.

    Returns:
        A number in [0, log(n - 1)].

    Examples:
        >>> round(snd(torch.zeros(5, 2)), 3)  # log 4: all samples are equal
        1.386
    """
    points = torch.nn.functional.normalize(_probabilities(logits), dim=1)
    similarities = points @ points.T / temperature
    similarities.fill_diagonal_(-torch.inf)
    return float(_entropies(similarities.softmax(dim=1)).mean())


def class_ami(features: Tensor, logits: Tensor, seed: int = 0) -> float:
    """Adjusted mutual information of the predicted classes and k-means clusters of the features, k the classes.

    Source: Musgrave et al., "Benchmarking validation methods for unsupervised domain adaptation", 2022.
    https://arxiv.org/abs/2208.07360

    Args:
        features: Of the target.
        logits: Of the target.
        seed: Seed of k-means.

    Returns:
        At most 1; about 0 if clusters and classes are independent, and 0 if one class is predicted for all samples.

    Examples:
        >>> features = torch.tensor([[0.0, 0.0], [0.0, 0.1], [9.0, 0.0], [9.1, 0.0]])
        >>> class_ami(features, torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]]))
        1.0
    """
    points = features.detach().double().cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than classes
        clusters = KMeans(min(logits.shape[1], len(points)), n_init=3, random_state=seed).fit_predict(points.numpy())
    classes = logits.argmax(dim=1).cpu().numpy()
    if min(len(set(classes)), len(set(clusters))) < 2:
        return 0.0
    return float(adjusted_mutual_info_score(classes, clusters))


def vote(source: Tensor, source_labels: Tensor, target: Tensor, classes: int) -> Tensor:
    """The most frequent label of the `NEIGHBOURS` source samples with the largest cosine, for each target sample.

    Args:
        source: Features of source samples with a label, shape (n_s, d).
        source_labels: Their labels, shape (n_s,).
        target: Features of the target, shape (n_t, d).
        classes: Number of classes.

    Returns:
        Classes, shape (n_t,), int64. If several labels are the most frequent, the smallest counts.

    Examples:
        >>> vote(torch.eye(2), torch.tensor([0, 1]), torch.tensor([[2.0, 0.1]]), 2)
        tensor([0])
    """
    s, t = (normalize(x.detach().double().cpu(), dim=1) for x in (source, target))
    near = source_labels.cpu()[(t @ s.T).topk(min(NEIGHBOURS, len(s)), dim=1).indices]
    return one_hot(near, classes).sum(dim=1).argmax(dim=1)


def neighbours(logits: Tensor, votes: Tensor) -> float:
    """How often the predicted class of a target sample is the vote of its nearest source samples.

    A network that moves target samples to other classes than its classifier says, or between the classes, has a low
    score.

    Args:
        logits: Of the target.
        votes: The result of `vote`, shape (n_t,).

    Returns:
        A number in [0, 1].

    Examples:
        >>> neighbours(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    return float((votes == logits.detach().cpu().argmax(dim=1)).double().mean())


# ---------------------------------------------------------------- importance weights


def importance_weights(source: Tensor, target: Tensor, seed: int = 0) -> Tensor:
    """The density of the target at source samples, divided by the density of the source.

    It is (n_s / n_t) p(target | x) / p(source | x), from a logistic regression of the domains on standardised features.
    Each weight is of a classifier that was fitted on the other half of the samples.

    Source: Bickel et al., "Discriminative learning under covariate shift", JMLR 2009; You et al., "Towards accurate
    model selection in deep unsupervised domain adaptation", ICML 2019.
    https://www.jmlr.org/papers/v10/bickel09a.html, https://proceedings.mlr.press/v97/you19a.html

    Args:
        source: Features, shape (n_s, d), at least two samples.
        target: Features, shape (n_t, d), at least two samples.
        seed: Seed of the halves.

    Returns:
        Weights of the source samples, shape (n_s,), float64.

    Examples:
        >>> weights = importance_weights(torch.arange(8.0)[:, None], torch.arange(8.0)[:, None] + 3)
        >>> weights.argmax() > weights.argmin()
        tensor(True)
    """
    parts = [x.detach().double().cpu() for x in (source, target)]
    both = torch.cat(parts)
    scale = both.std(dim=0, correction=0)
    parts = [(x - both.mean(dim=0)) / torch.where(scale > 0, scale, 1.0) for x in parts]
    generator = torch.Generator().manual_seed(seed)
    halves = [torch.randperm(len(x), generator=generator).tensor_split(2) for x in parts]
    weights = torch.empty(len(source), dtype=torch.float64)
    for fitted, held in ((0, 1), (1, 0)):
        chosen = [x[half[fitted]] for x, half in zip(parts, halves, strict=True)]
        domain = torch.cat([torch.full((len(x),), float(i)) for i, x in enumerate(chosen)])
        model = LogisticRegression(C=0.1, max_iter=200).fit(torch.cat(chosen).numpy(), domain.numpy())
        odds = torch.from_numpy(model.decision_function(parts[0][halves[0][held]].numpy())).clamp(-20, 20).exp()
        weights[halves[0][held]] = odds * (len(chosen[0]) / len(chosen[1]))
    return weights


def iwv(losses: Tensor, weights: Tensor) -> float:
    """Importance-weighted validation: the negative mean of weighted source losses.

    Source: Sugiyama et al., "Covariate shift adaptation by importance weighted cross validation", JMLR 2007.
    https://www.jmlr.org/papers/v8/sugiyama07a.html

    Args:
        losses: Losses of held-out source samples, shape (n,).
        weights: Shape (n,), as from `importance_weights`.

    Examples:
        >>> iwv(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5]))
        -1.75
    """
    return -float((losses.double() * weights.double()).mean())


def dev(losses: Tensor, weights: Tensor) -> float:
    """Deep embedded validation: `iwv` with a control variate, which lowers its variance.

    Source: You et al., "Towards accurate model selection in deep unsupervised domain adaptation", ICML 2019,
    algorithm 1.
    https://proceedings.mlr.press/v97/you19a.html

    Args:
        losses: As for `iwv`.
        weights: As for `iwv`.

    Examples:
        >>> dev(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
        -1.5
    """
    weighted, w = losses.double() * weights.double(), weights.double()
    variance = w.var()
    eta = -torch.cov(torch.stack([weighted, w]))[0, 1] / variance if variance > 0 else torch.zeros(())
    return -float(weighted.mean() + eta * w.mean() - eta)


def _source_acc(outputs: Outputs) -> float:
    right = outputs.source_logits.argmax(dim=1) == outputs.source_labels
    return float(right[outputs.known].double().mean())


SCORES: dict[str, Callable[[Outputs], float]] = {
    "source_acc": _source_acc,
    "entropy": lambda outputs: entropy(outputs.target_logits),
    "diversity": lambda outputs: diversity(outputs.target_logits),
    "infomax": lambda outputs: infomax(outputs.target_logits),
    "bnm": lambda outputs: bnm(outputs.target_logits),
    "snd": lambda outputs: snd(outputs.target_logits),
    "class_ami": lambda outputs: class_ami(outputs.target, outputs.target_logits),
    "neighbours": lambda outputs: neighbours(outputs.target_logits, outputs.votes) if outputs.known.any() else math.nan,
    "iwv": lambda outputs: iwv(outputs.losses, outputs.weights) if outputs.known.any() else math.nan,
    "dev": lambda outputs: dev(outputs.losses, outputs.weights) if outputs.known.any() else math.nan,
    "mmd": lambda outputs: -measures.mmd_test(outputs.source, outputs.target, 0).value,
    "a_distance": lambda outputs: -measures.a_distance(outputs.source, outputs.target),
}
"""The scores of the project, by name."""
