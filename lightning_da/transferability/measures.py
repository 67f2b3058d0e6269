"""Measures of transferability: functions on tensors of features, labels and predictions.

Features are (n, d), floating point, one row for each sample. Everything is computed in float64 on the CPU and returned
as a Python number. Labels are int64, with `UNKNOWN` (-1) where the class is not known; such samples are ignored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from lightning_da.data.base import UNKNOWN
from lightning_da.losses.mmd import GaussianKernel, kernel_matrix, quadratic_mmd, shuffled_members

PENALTY = 1e-2
"""Penalty of the squared weights of a linear model of standardised features."""


def _double(features: Tensor) -> Tensor:
    return features.detach().double().cpu()


def _known(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples with a label, in float64, and their labels, renumbered from 0 without gaps."""
    labels = labels.detach().cpu()
    known = labels != UNKNOWN
    _, classes = labels[known].unique(return_inverse=True)
    return _double(features)[known.to(features.device)], classes


# ---------------------------------------------------------------- linear models


class _Ridges(NamedTuple):
    """Linear maps: slope (r, d, k), intercept (r, 1, k)."""

    slope: Tensor
    intercept: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The responses to x (n, d), shape (r, n, k)."""
        r, d, k = self.slope.shape
        together: Tensor = x @ self.slope.transpose(0, 1).reshape(
            d, r * k
        )  # one product; a broadcast one copies x r times
        return together.reshape(-1, r, k).transpose(0, 1) + self.intercept


def _fit_ridges(x: Tensor, y: Tensor, rows: Tensor, weight: Tensor | None = None, penalty: float = PENALTY) -> _Ridges:
    """Ridge regressions of y (r, m, k) on the standardised rows (r, m) of x (n, d).

    Their sums are taken one by one, so that no copy of all rows is needed; the rest is done for all together.

    Args:
        x: Features, float64.
        y: Responses, float64.
        rows: The samples of each regression, int64.
        weight: Weights of the samples of a regression, shape (m,); equal if None.
        penalty: Penalty of the squared weights.
    """
    weight = torch.ones(rows.shape[1], dtype=x.dtype) if weight is None else weight
    weight = (weight / weight.sum())[:, None]
    found: list[list[Tensor]] = []
    for part, response in zip(rows, y, strict=True):
        z = x[part]
        centre, offset = z[:1] + weight.T @ (z - z[:1]), weight.T @ response
        z = z - centre
        scale = (weight.T @ z.square()).sqrt()
        scale = torch.where(scale > 1e-9 * scale.max(), scale, torch.inf)  # constant features have no weight
        z = z / scale
        found.append([centre, offset, scale, z.T @ (weight * (response - offset)), z.T @ (weight * z)])
    centre, offset, scale, right, gram = (torch.stack(part) for part in zip(*found, strict=True))
    gram.diagonal(dim1=1, dim2=2).add_(penalty)
    slope = torch.cholesky_solve(right, torch.linalg.cholesky(gram)) / scale.mT
    return _Ridges(slope, offset - centre @ slope)


class Resampled(NamedTuple):
    """A measure, and its values on random halves and shuffles of the samples.

    Attributes:
        value: The measure.
        halves: Values on random halves of both domains, shape (halves,), float64.
        null: Values without any transfer, shape (shuffles,), float64: with shuffled domains or labels.
        p: The probability of a value at least as large on equal distributions; NaN if it is not computed.

    Examples:
        >>> source = torch.arange(8.0)[:, None]
        >>> found = mmd_test(source, source + 100, permutations=99, halves=5)
        >>> isinstance(found, Resampled), found.null.shape, found.halves.shape
        (True, torch.Size([99]), torch.Size([5]))
    """

    value: float
    halves: Tensor
    null: Tensor
    p: float = float("nan")


def _orders(rows: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Each of the index sets (m,) in random order, shape (r, m)."""
    return torch.stack([part[torch.randperm(len(part), generator=generator)] for part in rows])


# ---------------------------------------------------------------- between two domains


def a_distance(source: Tensor, target: Tensor, penalty: float = PENALTY, seed: int = 0) -> float:
    """Proxy A-distance 2 (1 - 2 e), clipped to [0, 2], e the held-out error of a linear classifier of the domains.

    The classifier is a ridge regression. It is fitted on a random half of each domain and tested on the other half; e
    is the mean of both ways. Both domains have the same weight, whatever their sizes. On equal distributions the
    distance is of the order of 1 / sqrt(n).

    Source: Ben-David et al., "A theory of learning from different domains", Machine Learning 2010; Ganin et al., JMLR
    2016, section 5.1.4.
    https://arxiv.org/abs/1505.07818, https://doi.org/10.1007/s10994-009-5152-4

    Args:
        source: Features, shape (n_s, d), at least two samples.
        target: Features, shape (n_t, d), at least two samples.
        penalty: Penalty of the squared weights; features are standardised.
        seed: Seed of the halves.

    Returns:
        A number in [0, 2].

    Examples:
        >>> source = torch.arange(8.0)[:, None]
        >>> a_distance(source, source + 100)
        2.0
    """
    both, generator = torch.cat([_double(source), _double(target)]), torch.Generator().manual_seed(seed)
    rows_source, rows_target = (
        _orders([rows], generator) for rows in torch.arange(len(both)).tensor_split([len(source)])
    )
    return float(_a_distances(both, rows_source, rows_target, penalty))


def a_distance_test(source: Tensor, target: Tensor, resamples: int = 20, seed: int = 0) -> Resampled:
    """The proxy A-distance, also on random halves of both domains and with shuffled domains.

    Args:
        source: As for `a_distance`, at least four samples.
        target: As for `a_distance`, at least four samples.
        resamples: The number of halves, and of shuffles.
        seed: Seed of everything that is random.

    Examples:
        >>> source = torch.arange(8.0)[:, None]
        >>> found = a_distance_test(source, source + 100)
        >>> found.value, found.halves.mean().item(), found.null.mean() < 1
        (2.0, 2.0, tensor(True))
    """
    both, n = torch.cat([_double(source), _double(target)]), len(source)
    generator = torch.Generator().manual_seed(seed)
    mixed = [torch.randperm(len(both), generator=generator).tensor_split([n]) for _ in range(resamples)]
    parts = [(half(n, generator), n + half(len(both) - n, generator)) for _ in range(resamples)]
    null, halves = (
        _a_distances(both, _orders([s for s, _ in drawn], generator), _orders([t for _, t in drawn], generator))
        for drawn in (mixed, parts)
    )
    return Resampled(a_distance(source, target, seed=seed), halves, null)


def _a_distances(both: Tensor, source: Tensor, target: Tensor, penalty: float = PENALTY) -> Tensor:
    """A-distances between r pairs of sets of rows (r, n_s) and (r, n_t) of both (n, d), in random order."""
    errors = []
    folds = list(zip(source.tensor_split(2, dim=1), target.tensor_split(2, dim=1), strict=True))
    for fitted, held in (folds, folds[::-1]):
        sign, weight = (
            torch.cat(
                [
                    torch.full((part.shape[1],), number, dtype=both.dtype)
                    for part, number in zip(fitted, by, strict=True)
                ]
            )
            for by in ((1, -1), [1 / part.shape[1] for part in fitted])
        )
        model = _fit_ridges(both, sign.expand(len(source), -1)[..., None], torch.cat(fitted, dim=1), weight, penalty)
        responses = model(both)[..., 0]
        held_source, held_target = (responses.gather(1, part) for part in held)
        errors += [(held_source <= 0).double().mean(dim=1), (held_target > 0).double().mean(dim=1)]
    return (2 - 4 * torch.stack(errors).mean(dim=0)).clamp(0, 2)


BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the median squared distance."""


def mmd_test(source: Tensor, target: Tensor, permutations: int = 200, seed: int = 0, halves: int = 0) -> Resampled:
    """Unbiased squared MMD with five Gaussian kernels, and its permutation test.

    The p-value is (1 + the number of shuffles of the domain labels with at least this value) / (1 + permutations).

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, equation 3 and section 3; Phipson and Smyth,
    "Permutation p-values should never be zero", 2010.
    https://www.jmlr.org/papers/v13/gretton12a.html

    Args:
        source: Features, shape (n_s, d), at least two samples; three for random halves.
        target: Features, shape (n_t, d), as many.
        permutations: The number of shuffles.
        seed: Seed of the shuffles and the halves.
        halves: The number of random halves on which the value is computed again.

    Returns:
        Value, p-value, and the values of shuffles and halves.

    Examples:
        >>> source = torch.arange(8.0)[:, None]
        >>> found = mmd_test(source, source + 100, permutations=99)
        >>> round(found.value, 3), found.p
        (1.282, 0.01)
    """
    n, generator = len(source), torch.Generator().manual_seed(seed)
    k = kernel_matrix(torch.cat([_double(source), _double(target)]), GaussianKernel(BANDWIDTHS))
    member = (torch.arange(len(k)) < n).to(k)[:, None]
    value = float(quadratic_mmd(k, member, n, unbiased=True))
    shuffled = shuffled_members(n, len(k) - n, permutations, generator).to(k)
    null = quadratic_mmd(k, shuffled, n, unbiased=True)
    parts = [k.new_zeros(0)]
    for _ in range(halves):
        rows = torch.cat([half(n, generator), n + half(len(k) - n, generator)])
        parts.append(quadratic_mmd(k[rows][:, rows], member[rows], int(member[rows].sum()), unbiased=True))
    at_least = null >= value - 1e-12  # equal values differ by rounding; kernels are in [0, 1]
    p = (1 + int(at_least.sum())) / (1 + permutations)
    return Resampled(value, torch.cat(parts), null, p)


def half(n: int, generator: torch.Generator) -> Tensor:
    """Indices of a random half of n samples.

    Args:
        n: The number of samples.
        generator: Draws the half.

    Returns:
        Ascending indices, shape ((n + 1) // 2,), int64.

    Examples:
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
    https://arxiv.org/abs/1607.01719

    Args:
        source: Features, shape (n_s, d), at least four samples.
        target: Features, shape (n_t, d), at least four samples.

    Returns:
        A number in [-1, 1]; 0 if the features of both domains are constant.

    Examples:
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
    https://arxiv.org/abs/1610.01644

    Args:
        features: Training features, shape (n, d).
        labels: Shape (n,).
        penalty: Penalty of the squared weights; features are standardised.

    Examples:
        >>> features, labels = torch.arange(8.0)[:, None], torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> Probe(features, labels).accuracy(features, labels)
        1.0
    """

    def __init__(self, features: Tensor, labels: Tensor, penalty: float = PENALTY) -> None:
        labels = labels.detach().cpu()
        known = labels != UNKNOWN
        self._classes, y = labels[known].unique(return_inverse=True)
        one_hot = torch.eye(len(self._classes), dtype=torch.float64)[y]
        self._ridge = _fit_ridges(_double(features)[known], one_hot[None], torch.arange(len(y))[None], penalty=penalty)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The accuracy on samples with a known label; NaN if there are none.

        Args:
            features: Shape (n, d).
            labels: Shape (n,).
        """
        labels = labels.detach().cpu()
        known = labels != UNKNOWN
        found = self._classes[self._ridge(_double(features)[known])[0].argmax(dim=1)]
        return float((found == labels[known]).double().mean())


def probe_within(features: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Accuracy of a `Probe` fitted on one half of the samples and tested on the other, the mean of both ways.

    Args:
        features: Shape (n, d).
        labels: Shape (n,).
        seed: Seed of the halves.

    Examples:
        >>> features, labels = torch.arange(64.0)[:, None], torch.arange(64) // 32
        >>> round(probe_within(features, labels))
        1
    """
    x, y = _known(features, labels)
    order = _orders([torch.arange(len(y))], torch.Generator().manual_seed(seed))
    return float(_probes_within(x, y[None], order))


def probe_within_test(features: Tensor, labels: Tensor, resamples: int = 20, seed: int = 0) -> Resampled:
    """`probe_within`, also on random halves of the samples and with shuffled labels.

    Args:
        features: As for `probe_within`.
        labels: As for `probe_within`.
        resamples: The number of halves, and of shuffles.
        seed: Seed of everything that is random.

    Examples:
        >>> features, labels = torch.arange(64.0)[:, None], torch.arange(64) // 32
        >>> found = probe_within_test(features, labels)
        >>> found.value > 0.9, found.null.mean() < 0.75
        (True, tensor(True))
    """
    x, y = _known(features, labels)
    generator, everything = torch.Generator().manual_seed(seed), torch.arange(len(y))
    halves = [half(len(y), generator) for _ in range(resamples)]
    shuffled = y[_orders([everything] * resamples, generator)]
    return Resampled(
        probe_within(features, labels, seed),
        _probes_within(x, y[None], _orders(halves, generator)),
        _probes_within(x, shuffled, _orders([everything], generator)),
    )


def _probes_within(x: Tensor, y: Tensor, order: Tensor) -> Tensor:
    """As `_probe_accuracies`, for the first and the second half of the rows `order` (r, m), the mean of both ways."""
    one, other = order.tensor_split(2, dim=1)
    return (_probe_accuracies(x, y, one, other) + _probe_accuracies(x, y, other, one)) / 2


def probe_between_test(
    source: Tensor, y_source: Tensor, target: Tensor, y_target: Tensor, resamples: int = 20, seed: int = 0
) -> Resampled:
    """Accuracy on the target of a `Probe` fitted on the source.

    It is computed also on random halves of both domains, and with the labels of each domain shuffled.

    Args:
        source: Features, shape (n_s, d).
        y_source: Labels, shape (n_s,), all of them known.
        target: Features, shape (n_t, d).
        y_target: Labels, shape (n_t,), all of them known.
        resamples: The number of halves, and of shuffles.
        seed: Seed of everything that is random.

    Examples:
        >>> features, labels = torch.arange(16.0)[:, None], torch.arange(16) // 8
        >>> found = probe_between_test(features, labels, features + 0.1, labels)
        >>> found.value, found.null.mean() < 0.75
        (1.0, tensor(True))
    """
    x, y = _known(torch.cat([source, target]), torch.cat([y_source, y_target]))
    n, generator = len(source), torch.Generator().manual_seed(seed)
    domains = torch.arange(len(y)).tensor_split([n])
    drawn = [(half(n, generator), n + half(len(y) - n, generator)) for _ in range(resamples)]
    shuffled = y[torch.cat([_orders([rows] * resamples, generator) for rows in domains], dim=1)]
    whole = [rows[None] for rows in domains]
    return Resampled(
        float(_probe_accuracies(x, y[None], *whole)),
        _probe_accuracies(x, y[None], *(torch.stack(rows) for rows in zip(*drawn, strict=True))),
        _probe_accuracies(x, shuffled, *whole),
    )


def _probe_accuracies(x: Tensor, y: Tensor, fitted: Tensor, held: Tensor) -> Tensor:
    """Accuracies of probes on the rows `held` (r, m'), fitted on the rows `fitted` (r, m) of x (n, d).

    Either r or the number q of labellings y (q, n) is 1. A class without a fitted sample responds with 0, which is
    never the largest, because the responses sum to 1.
    """
    one_hot = torch.eye(int(y.max()) + 1, dtype=x.dtype)[y]  # (q, n, classes)
    if len(y) == 1:
        responses = _fit_ridges(x, one_hot[0][fitted], fitted)(x)
    else:  # the labellings share the features: they are columns of one regression
        columns = one_hot[:, fitted[0]].transpose(0, 1).flatten(1)
        responses = _fit_ridges(x, columns[None], fitted)(x)[0].unflatten(1, (len(y), -1)).transpose(0, 1)
    right = (responses.argmax(dim=2) == y).double()
    return right.gather(1, held.expand(len(right), -1)).mean(dim=1)


def logme(features: Tensor, labels: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> float:
    """LogME: the log evidence per sample of a Bayesian linear regression of the one-hot labels, the mean over classes.

    For each class the fixed-point equations find the precisions alpha (weights) and beta (noise) with the largest
    evidence. With more features than samples there can be several maxima; they find the nearest. Higher is better. Only
    values for the same labels can be compared.

    Source: You et al., "LogME: practical assessment of pre-trained models for transfer learning", ICML 2021, section
    4.2 and algorithm 3.
    https://arxiv.org/abs/2102.11005

    Args:
        features: Shape (n, d).
        labels: Shape (n,).
        iterations: The largest number of updates of alpha and beta.
        tolerance: The updates end when alpha / beta changes by less than this, relatively.

    Returns:
        A number.

    Examples:
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
    https://arxiv.org/abs/2212.10082, https://arxiv.org/abs/2110.06893

    Args:
        features: Shape (n, d).
        labels: Shape (n,).

    Returns:
        A number, at least 0.

    Examples:
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
    https://arxiv.org/abs/2002.12462

    Args:
        probabilities: Outputs of a source head, shape (n, source classes), floating point; each row sums to 1.
        labels: Shape (n,).

    Returns:
        A number, at most 0.

    Examples:
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
    https://arxiv.org/abs/1908.08142

    Args:
        predictions: Predicted source class of each sample, shape (n,), int64.
        labels: Shape (n,).

    Returns:
        A number, at most 0.

    Examples:
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
    https://arxiv.org/abs/1905.00414

    Args:
        one: Shape (n, d).
        other: Shape (n, e).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If the numbers of samples differ.

    Examples:
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
