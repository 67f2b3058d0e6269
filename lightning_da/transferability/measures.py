"""Measures of transferability: functions on tensors of features, labels and predictions.

Features are (n, d), floating point, one row for each sample. Everything is computed in float64 on the CPU and returned
as a Python number. Labels are int64, with `UNKNOWN` (-1) where the class is not known; such samples are ignored.
"""

from typing import NamedTuple

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from lightning_da.data.base import UNKNOWN
from lightning_da.losses.mmd import GaussianKernel, kernel_matrix, quadratic_mmd, shuffled_mmd


def _double(features: Tensor) -> Tensor:
    return features.detach().double().cpu()


def _known(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples with a label, in float64, and their labels, renumbered from 0 without gaps."""
    labels = labels.detach().cpu()
    known = labels != UNKNOWN
    _, classes = labels[known].unique(return_inverse=True)
    return _double(features)[known.to(features.device)], classes


# ---------------------------------------------------------------- linear models


class _Ridge(NamedTuple):
    """A linear map of standardised features."""

    centre: Tensor
    scale: Tensor
    weights: Tensor
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.scale @ self.weights + self.offset


def _fit_ridge(x: Tensor, y: Tensor, penalty: float, weight: Tensor | None = None) -> _Ridge:
    """Ridge regression of y (n, k) on standardised x (n, d); the weights of the samples (n,) are scaled to sum to 1."""
    weight = torch.ones(len(x), dtype=x.dtype) if weight is None else weight
    weight = weight[:, None] / weight.sum()
    centre, offset = (weight * x).sum(dim=0), (weight * y).sum(dim=0)
    scale = (weight * (x - centre).square()).sum(dim=0).sqrt()
    scale = torch.where(scale > 1e-9 * scale.max(), scale, torch.inf)  # constant features have no weight
    z = (x - centre) / scale
    gram = z.T @ (weight * z) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.cholesky_solve(z.T @ (weight * (y - offset)), torch.linalg.cholesky(gram))
    return _Ridge(centre, scale, weights, offset)


# ---------------------------------------------------------------- between two domains


def a_distance(source: Tensor, target: Tensor, penalty: float = 1e-2, seed: int = 0) -> float:
    """Proxy A-distance 2 (1 - 2 e), clipped to [0, 2], e the held-out error of a linear classifier of the domains.

    The classifier is a ridge regression. It is fitted on a random half of each domain and tested on the other half; e
    is the mean of both ways. Both domains have the same weight, whatever their sizes. On equal distributions the
    distance is of the order of 1 / sqrt(n).

    Source: Ben-David et al., "A theory of learning from different domains", Machine Learning 2010; Ganin et al., JMLR
    2016, section 5.1.4.

    Args:
        source: Features, shape (n_s, d), at least two samples.
        target: Features, shape (n_t, d), at least two samples.
        penalty: Penalty of the squared weights; features are standardised.
        seed: Seed of the halves.

    Returns:
        A number in [0, 2].

    Example:
        >>> source = torch.arange(8.0)[:, None]
        >>> a_distance(source, source + 100)
        2.0
    """
    generator = torch.Generator().manual_seed(seed)
    halves = [
        [x[part] for part in torch.randperm(len(x), generator=generator).tensor_split(2)]
        for x in (_double(source), _double(target))
    ]
    errors = []
    for fitted in (0, 1):
        parts = [half[fitted] for half in halves]
        sign = torch.cat(
            [torch.full((len(part), 1), s, dtype=torch.float64) for part, s in zip(parts, (1, -1), strict=True)]
        )
        weight = torch.cat([torch.full((len(part),), 1 / len(part), dtype=torch.float64) for part in parts])
        model = _fit_ridge(torch.cat(parts), sign, penalty, weight)
        held_source, held_target = (model(half[1 - fitted]) for half in halves)
        errors += [(held_source <= 0).double().mean(), (held_target > 0).double().mean()]
    return min(max(2 - 4 * float(torch.stack(errors).mean()), 0.0), 2.0)


class Discrepancy(NamedTuple):
    """A squared discrepancy and its permutation test.

    Attributes:
        value: The discrepancy.
        p: The probability of a value at least as large on equal distributions.
        null: Values with shuffled domain labels, shape (permutations,), float64.
        halves: Values of random halves of both domains with the same kernel, shape (halves,), float64.

    Example:
        >>> source = torch.arange(8.0)[:, None]
        >>> found = mmd_test(source, source + 100, permutations=99, halves=5)
        >>> isinstance(found, Discrepancy), found.null.shape, found.halves.shape
        (True, torch.Size([99]), torch.Size([5]))
    """

    value: float
    p: float
    null: Tensor
    halves: Tensor


BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the median squared distance."""


def mmd_test(source: Tensor, target: Tensor, permutations: int = 200, seed: int = 0, halves: int = 0) -> Discrepancy:
    """Unbiased squared MMD with five Gaussian kernels, and its permutation test.

    The p-value is (1 + the number of shuffles of the domain labels with at least this value) / (1 + permutations).

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, equation 3 and section 3; Phipson and Smyth,
    "Permutation p-values should never be zero", 2010.

    Args:
        source: Features, shape (n_s, d), at least two samples; three for random halves.
        target: Features, shape (n_t, d), as many.
        permutations: The number of shuffles.
        seed: Seed of the shuffles and the halves.
        halves: The number of random halves on which the value is computed again.

    Returns:
        Value, p-value, and the values of shuffles and halves.

    Example:
        >>> source = torch.arange(8.0)[:, None]
        >>> found = mmd_test(source, source + 100, permutations=99)
        >>> round(found.value, 3), found.p
        (1.282, 0.01)
    """
    n, generator = len(source), torch.Generator().manual_seed(seed)
    k = kernel_matrix(torch.cat([_double(source), _double(target)]), GaussianKernel(BANDWIDTHS))
    member = (torch.arange(len(k)) < n).to(k)[:, None]
    value = float(quadratic_mmd(k, member, n, unbiased=True))
    null = shuffled_mmd(k, n, permutations, generator, unbiased=True)
    parts = [k.new_zeros(0)]
    for _ in range(halves):
        rows = torch.cat([half(n, generator), n + half(len(k) - n, generator)])
        parts.append(quadratic_mmd(k[rows][:, rows], member[rows], int(member[rows].sum()), unbiased=True))
    at_least = null >= value - 1e-12  # equal values differ by rounding; kernels are in [0, 1]
    p = (1 + int(at_least.sum())) / (1 + permutations)
    return Discrepancy(value, p, null, torch.cat(parts))


def half(n: int, generator: torch.Generator) -> Tensor:
    """Indices of a random half of n samples.

    Args:
        n: The number of samples.
        generator: Draws the half.

    Returns:
        Ascending indices, shape ((n + 1) // 2,), int64.

    Example:
        >>> half(5, torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    return torch.randperm(n, generator=generator)[: (n + 1) // 2].sort().values


def _squared_norm(deviations: Tensor) -> Tensor:
    """Unbiased estimate of ||Sigma||_F^2, Sigma the covariance, from n >= 4 centred samples (n, d).

    It is the unbiased HSIC of the linear kernel with itself (Song et al., "Feature selection via dependence
    maximization", JMLR 2012, equation 5). For centred samples its sums need no Gram matrix (Himeno and Yamada,
    "Estimations for some functions of covariance matrix", 2014).
    """
    n, lengths = len(deviations), deviations.square().sum(dim=1)
    products = (deviations.T @ deviations).square().sum()
    total = products - n / (n - 2) * lengths.square().sum() + lengths.sum().square() / ((n - 1) * (n - 2))
    return total / (n * (n - 3))


def coral_distance(source: Tensor, target: Tensor) -> float:
    """||S_s - S_t||_F^2 / (||S_s||_F^2 + ||S_t||_F^2), S the covariances of the distributions.

    It is the CORAL distance in units that do not depend on the scale of the features, so that layers can be compared.
    It does not see a shift of the mean. The norms and the inner product are unbiased estimates: on equal distributions
    the distance averages about 0 and can be slightly negative. The norms of sample covariances would give d / (n + d).

    Source: Sun and Saenko, "Deep CORAL", ECCV workshops 2016, equation 1.

    Args:
        source: Features, shape (n_s, d), at least four samples.
        target: Features, shape (n_t, d), at least four samples.

    Returns:
        A number in [-1, 1]; 0 if the features of both domains are constant.

    Example:
        >>> source = torch.arange(8.0)[:, None]
        >>> round(coral_distance(source, 3 * source), 3)
        0.755
    """
    s, t = (x - x[0] for x in (_double(source), _double(target)))  # constant features are exactly 0
    s, t = s - s.mean(dim=0), t - t.mean(dim=0)
    inner = ((s.T @ s) * (t.T @ t)).sum() / ((len(s) - 1) * (len(t) - 1))
    # The estimated norms of few samples can be too small, or negative.
    norms = torch.maximum(_squared_norm(s) + _squared_norm(t), inner)
    return float(1 - 2 * inner / norms) if norms > 0 else 0.0


# ---------------------------------------------------------------- of features for a task


class Probe:
    """A linear classifier of features: ridge regression of the one-hot labels. The largest response decides.

    Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.

    Args:
        features: Training features, shape (n, d).
        labels: Shape (n,).
        penalty: Penalty of the squared weights; features are standardised.

    Example:
        >>> features, labels = torch.arange(8.0)[:, None], torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> Probe(features, labels).accuracy(features, labels)
        1.0
    """

    def __init__(self, features: Tensor, labels: Tensor, penalty: float = 1e-2) -> None:
        labels = labels.detach().cpu()
        known = labels != UNKNOWN
        self._classes, y = labels[known].unique(return_inverse=True)
        self._ridge = _fit_ridge(_double(features)[known], torch.eye(len(self._classes)).double()[y], penalty)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The accuracy on samples with a known label; NaN if there are none.

        Args:
            features: Shape (n, d).
            labels: Shape (n,).
        """
        labels = labels.detach().cpu()
        known = labels != UNKNOWN
        found = self._classes[self._ridge(_double(features)[known]).argmax(dim=1)]
        return float((found == labels[known]).double().mean())


def logme(features: Tensor, labels: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> float:
    """LogME: the log evidence per sample of a Bayesian linear regression of the one-hot labels, the mean over classes.

    For each class the fixed-point equations find the precisions alpha (weights) and beta (noise) with the largest
    evidence. With more features than samples there can be several maxima; they find the nearest. Higher is better. Only
    values for the same labels can be compared.

    Source: You et al., "LogME: practical assessment of pre-trained models for transfer learning", ICML 2021, section
    4.2 and algorithm 3.

    Args:
        features: Shape (n, d).
        labels: Shape (n,).
        iterations: The largest number of updates of alpha and beta.
        tolerance: The updates end when alpha / beta changes by less than this, relatively.

    Returns:
        A number.

    Example:
        >>> features = torch.arange(8.0)[:, None]
        >>> round(logme(features, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])), 3)
        -0.725
        >>> round(logme(features, torch.tensor([0, 1, 1, 0, 0, 1, 1, 0])), 3)
        -1.007
    """
    x, y = _known(features, labels)
    n, d = x.shape
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)
    eigenvalues = singular.square()
    evidences = []
    for label in y.unique():
        target = (y == label).double()
        projected = (left.T @ target).square()
        outside = (target.square().sum() - projected.sum()).clamp(min=0)
        alpha = beta = torch.ones((), dtype=torch.float64)
        for _ in range(iterations):
            ratio = alpha / beta
            gamma = (eigenvalues / (eigenvalues + ratio)).sum()
            weights = (eigenvalues * projected / (eigenvalues + ratio).square()).sum().clamp(min=1e-300)
            error = ((ratio / (eigenvalues + ratio)).square() * projected).sum() + outside
            alpha, beta = (gamma / weights).clamp(min=1e-12), (n - gamma) / error.clamp(min=1e-12)
            if abs(alpha / beta - ratio) <= tolerance * ratio:
                break
        ratio = alpha / beta
        weights = (eigenvalues * projected / (eigenvalues + ratio).square()).sum()
        error = ((ratio / (eigenvalues + ratio)).square() * projected).sum() + outside
        determinant = (alpha + beta * eigenvalues).log().sum() + (d - len(eigenvalues)) * alpha.log()
        evidence = d * alpha.log() + n * beta.log() - determinant - beta * error - alpha * weights
        evidences.append((evidence - n * torch.log(torch.tensor(2 * torch.pi))) / (2 * n))
    return float(torch.stack(evidences).mean())


def h_score(features: Tensor, labels: Tensor) -> float:
    """Regularised H-score: (1 - a) tr(C_a^-1 C_between), C_a the covariance with Ledoit and Wolf's shrinkage a.

    It is the variance between the classes in units of the whole variance: 0 for features that say nothing about the
    class, and at most the number of classes less one.

    Source: Bao et al., "An information-theoretic approach to transferability in task transfer learning", ICIP 2019;
    Ibrahim et al., "Newer is not always better", ECML 2022, equation 6.

    Args:
        features: Shape (n, d).
        labels: Shape (n,).

    Returns:
        A number, at least 0.

    Example:
        >>> features = torch.arange(8.0)[:, None]
        >>> round(h_score(features, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])), 3)
        0.762
    """
    x, y = _known(features, labels)
    x = x - x.mean(dim=0)
    shrunk, amount = ledoit_wolf(x.numpy(), assume_centered=True)
    sizes = torch.bincount(y).double()
    means = torch.zeros(len(sizes), x.shape[1], dtype=x.dtype).index_add_(0, y, x) / sizes[:, None]
    between = means.T @ (sizes[:, None] * means) / len(x)
    inverse = torch.linalg.pinv(torch.from_numpy(shrunk), hermitian=True)
    return float((1 - amount) * (inverse * between).sum())


def leep(probabilities: Tensor, labels: Tensor) -> float:
    """LEEP: the mean log-likelihood of labels under P(y | z), weighted by the probabilities of source classes z.

    P(y | z) is estimated from the same samples. A source head that tells the labels apart has 0, the largest value.

    Source: Nguyen et al., "LEEP: a new measure to evaluate transferability of learned representations", ICML 2020,
    equation 2.

    Args:
        probabilities: Outputs of a source head, shape (n, source classes), floating point; each row sums to 1.
        labels: Shape (n,).

    Returns:
        A number, at most 0.

    Example:
        >>> round(leep(torch.full((8, 3), 1 / 3), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])), 3)
        -0.693
    """
    theta, y = _known(probabilities, labels)
    joint = torch.zeros(int(y.max()) + 1, theta.shape[1], dtype=theta.dtype).index_add_(0, y, theta) / len(y)
    given = joint / joint.sum(dim=0).clamp(min=1e-300)
    return float((given[y] * theta).sum(dim=1).log().mean())


def nce(predictions: Tensor, labels: Tensor) -> float:
    """Negative conditional entropy -H(Y | Z) of the labels given the predicted source classes, in nats.

    Source: Tran et al., "Transferability and hardness of supervised classification tasks", ICCV 2019, equation 4.

    Args:
        predictions: Predicted source class of each sample, shape (n,), int64.
        labels: Shape (n,).

    Returns:
        A number, at most 0.

    Example:
        >>> round(nce(torch.tensor([2, 2, 2, 2]), torch.tensor([0, 0, 1, 1])), 3)
        -0.693
    """
    z, y = _known(predictions[:, None], labels)
    table = torch.zeros(int(y.max()) + 1, int(z.max()) + 1, dtype=torch.float64)
    table.index_put_((y, z[:, 0].long()), torch.ones(len(y), dtype=torch.float64), accumulate=True)
    table /= len(y)
    return float(torch.special.entr(table.sum(dim=0)).sum() - torch.special.entr(table).sum())


def cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment of the features of two layers for the same samples.

    It is ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) with centred columns. Rotation and scale of the features do not
    change it. With fewer samples than features it is near 1 for unrelated features.

    Source: Kornblith et al., "Similarity of neural network representations revisited", ICML 2019, section 3.

    Args:
        one: Shape (n, d).
        other: Shape (n, e).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If the numbers of samples differ.

    Example:
        >>> features = torch.arange(8.0)[:, None]
        >>> round(cka(features, 2 - 3 * features), 3)
        1.0
    """
    if len(one) != len(other):
        raise ValueError(f"CKA compares features of the same samples, not of {len(one)} and {len(other)}")
    x, y = (_double(features) for features in (one, other))
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    gram_x, gram_y = x @ x.T, y @ y.T
    size = gram_x.norm() * gram_y.norm()
    return float((gram_x * gram_y).sum() / size) if size > 0 else 0.0
