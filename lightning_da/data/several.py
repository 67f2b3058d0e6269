"""Several domains as one source or one target: their samples, shares of a batch, and distances."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import Dataset

from lightning_da.data.datasets import UNKNOWN, DataError, TensorDomain
from lightning_da.inputs import Input

Weights = Literal["size", "equal", "proximity"]
"""What the domains of the source have of a batch: as many samples as they are large, as many each, or the more the
nearer they are to the target."""
FOLDS = 5
"""Parts of the samples in the cross-validation of the proximity: the fewest samples of a domain."""


class Joined(Dataset[Any]):
    """The samples of several domains, one domain after the other.

    Args:
        parts: The dataset of each domain, by its name, with the attributes of `DomainPairDataModule.dataset`.

    Attributes:
        y: Labels, shape (n,), int64.
        domain: The place of each sample's domain in `parts`, shape (n,), int64.
        classes: Class names in the order of the labels, those of the first domain that has labels.

    Raises:
        DataError: If the domains have different classes.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        self.classes = classes_of(self.parts)
        self.y = torch.cat([torch.as_tensor(part.y) for part in self.parts.values()])
        sizes = torch.tensor([len(part) for part in self.parts.values()])
        self.domain = torch.arange(len(sizes)).repeat_interleave(sizes)
        self._starts = (sizes.cumsum(0) - sizes).tolist()

    @property
    def names(self) -> list[str]:
        """Name of each sample, with that of its domain before it."""
        return names_of(self.parts)

    @property
    def reads(self) -> Input | None:
        """How a model outside of this project reads a sample; None if the domains differ."""
        return common_reads(self.parts)

    def __len__(self) -> int:
        return len(self.y)

    def _place(self, index: int) -> tuple[Any, int]:
        number = int(self.domain[index])
        return list(self.parts.values())[number], index - self._starts[number]

    def __getitem__(self, index: int) -> Any:
        part, place = self._place(index)
        return part[place]

    def unscaled(self, index: int) -> Tensor:
        """A sample as `reads` gives it."""
        part, place = self._place(index)
        found: Tensor = part.unscaled(place)
        return found

    def fingerprint(self) -> str:
        """A digest of all parts."""
        return hashlib.sha256(" ".join(part.fingerprint() for part in self.parts.values()).encode()).hexdigest()


class JoinedTensors(TensorDomain):
    """As `Joined`, in memory. The parts share the memory of the whole.

    Args:
        parts: The dataset of each domain, by its name.
    """

    def __init__(self, parts: Mapping[str, TensorDomain]) -> None:
        whole = Joined(parts)
        of_images = {part.x.dtype for part in parts.values()} == {torch.uint8}
        xs = [part.x if of_images else part.__getitems__(list(range(len(part))))[0] for part in parts.values()]
        y, numbers = whole.y, None
        if all(part.numbers is not None for part in parts.values()):
            known = [part.numbers[:-1] for part in parts.values()]  # type: ignore[index]  # the last stands for UNKNOWN
            sizes = torch.tensor([len(part) for part in known])
            y = torch.where(y == UNKNOWN, y, y + (sizes.cumsum(0) - sizes)[whole.domain])
            numbers = torch.cat(known)
        masks = [part.masks for part in parts.values() if part.masks is not None]
        every = torch.cat(masks) if len(masks) == len(parts) else None
        super().__init__(torch.cat(xs), y, whole.classes, whole.names, whole.reads, numbers, every)
        self.domain, self._digest = whole.domain, whole.fingerprint()
        for part, x in zip(parts.values(), self.x.split([len(part) for part in parts.values()]), strict=True):
            if part.x.dtype == x.dtype:
                part.x.set_(x)  # in place, for all who hold it

    def fingerprint(self) -> str:
        """A digest of all parts."""
        return self._digest


class WithDomain(Dataset[Any]):
    """The samples of several domains with a label and the place of the domain.

    Args:
        whole: The domains.
    """

    def __init__(self, whole: Joined | JoinedTensors) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.whole[index], self.whole.domain[index])

    def __getitems__(self, indices: list[int]) -> Any:
        if isinstance(self.whole, JoinedTensors):
            return (*self.whole.__getitems__(indices), self.whole.domain[indices])
        return [self[index] for index in indices]


def join(parts: Mapping[str, Any]) -> Joined | JoinedTensors:
    """The samples of several domains; in memory if all of them are.

    Args:
        parts: The dataset of each domain, by its name, with the same classes.

    Raises:
        DataError: If they have different classes or, in memory, samples of different shapes.
    """
    if not all(isinstance(part, TensorDomain) for part in parts.values()):
        return Joined(parts)
    (first, shape), *others = [(name, tuple(part.x.shape[1:])) for name, part in parts.items()]
    for name, own in others:
        if own != shape:
            raise DataError(
                f"samples differ in shape (channels first): {shape} in domain {first!r}, {own} in domain {name!r}; "
                "give both domains the same shape"
            )
    return JoinedTensors(parts)


def classes_of(parts: Mapping[str, Any]) -> list[str]:
    """The classes of several domains; those without any class have no label."""
    labelled = {name: list(part.classes) for name, part in parts.items() if part.classes}
    for name, own in labelled.items():
        if own != (first := next(iter(labelled.values()))):
            raise DataError(f"classes differ: domain {name!r} has {own}, domain {next(iter(labelled))!r} has {first}")
    return next(iter(labelled.values()), [])


def names_of(parts: Mapping[str, Any]) -> list[str]:
    """Names of all samples, each with the name of its domain before it."""
    found = []
    for domain, part in parts.items():
        names = list(part.names)
        prefix = "" if all(name.startswith(f"{domain}/") for name in names) else f"{domain}/"
        found += [prefix + name for name in names]
    return found


def common_reads(parts: Mapping[str, Any]) -> Input | None:
    """How a model outside of this project reads the samples; None if the domains differ."""
    found = [getattr(part, "reads", None) for part in parts.values()]
    return found[0] if all(own == found[0] for own in found) else None


def shares(weights: Sequence[float], number: int) -> list[int]:
    """How many of the samples of a batch are of each domain: at least one, and otherwise as the weights are.

    The method of Webster and Sainte-Lague for seats in a parliament, where each party has one.

    Args:
        weights: Weights of the domains, not negative.
        number: Samples in a batch, at least as many as domains.

    Examples:
        >>> shares([0.5, 0.3, 0.2], 10)
        [5, 3, 2]
        >>> shares([1.0, 0.0], 8)
        [7, 1]
    """
    found = [1] * len(weights)
    for _ in range(number - len(weights)):
        quotients = [weight / (2 * own + 1) for weight, own in zip(weights, found, strict=True)]
        found[quotients.index(max(quotients))] += 1
    return found


class Mixture:
    """The samples of each batch, for domains with a fixed number of samples in it.

    Each domain has passes of its own: no sample is read again before all others of its domain were read, and none is
    in a batch twice. Which samples are in a batch depends on the number of the batch only.

    Args:
        domain: The domain of each sample, shape (n,), int64.
        counts: How many samples of a batch are of each domain, at most as many as it has.
        seed: Seed of the orders.
        order: From the places of a domain's samples, shape (n_k,), and a seed to an order of them, indices (n_k,).
    """

    def __init__(
        self, domain: Tensor, counts: Sequence[int], seed: int, order: Callable[[Tensor, int], Tensor]
    ) -> None:
        self.number, self.counts, self.seed, self._order_of = len(domain), list(counts), seed, order
        self._rows = [(domain == place).nonzero()[:, 0] for place in range(len(counts))]
        self._last: dict[int, tuple[int, Tensor]] = {}

    def batch(self, number: int) -> Tensor:
        """The samples of a batch, in random order: sample i in pass p of its domain is p * n + i.

        Args:
            number: The number of the batch, from 0.
        """
        parts = []
        for place, count in enumerate(self.counts):
            first, size = number * count, len(self._rows[place])
            for passes in range(first // size, (first + count - 1) // size + 1):
                low, high = max(first - passes * size, 0), min(first + count - passes * size, size)
                parts.append(self._order(place, passes)[low:high] + passes * self.number)
        mixed = torch.cat(parts)
        return mixed[torch.randperm(len(mixed), generator=_generator(self.seed, number))]

    def _order(self, place: int, passes: int) -> Tensor:
        """The samples of a domain in the order of a pass.

        Where a batch begins in the pass before, its samples are read last: none is in the batch twice.
        """
        known, found = self._last.get(place, (-1, torch.empty(0)))
        rows, count = self._rows[place], self.counts[place]
        for number in range(known + 1 if known <= passes else 0, passes + 1):
            fresh = rows[self._order_of(rows, _seed_of(self.seed, place, number))]
            if begun := number * len(rows) % count:
                read = torch.isin(fresh, found[-begun:])
                fresh = torch.cat([fresh[~read], fresh[read]])
            found = fresh
        self._last[place] = passes, found
        return found


def _seed_of(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed_of(*parts))


def vectors(x: Tensor) -> Tensor:
    """Samples as vectors of at most some hundred numbers, for a distance between domains.

    Args:
        x: Vectors (n, d); images (n, channels, height, width), which are reduced to at most 16 x 16 pixels; or
            sentences (n, length), int64, of which the words are counted in 256 groups.

    Returns:
        Shape (n, m), float64.
    """
    if x.dtype == torch.int64:
        counts = torch.zeros(len(x), 256, dtype=torch.float64)
        return counts.scatter_add_(1, x % 256, (x > 0).double())
    if x.ndim == 4:
        x = adaptive_avg_pool2d(x.float(), (min(16, x.shape[2]), min(16, x.shape[3])))
    return x.flatten(1).double()


def proximity(source: Tensor, target: Tensor) -> float:
    """How near a domain is to the target: 1 - d / 2, d the proxy A-distance, which is 2 (1 - 2 e).

    So it is 2 e, where e is the error of a linear classifier that tells the domains apart, on samples that it was not
    fitted on (five folds of a ridge regression, both domains with the same weight): 1 if they cannot be told apart, 0
    if they can always be.

    Source: Ben-David et al., "A theory of learning from different domains", Machine Learning 2010, section 6, for
    several sources and the distance; Ganin et al., JMLR 2016, section 5.1.4, for its proxy.
    https://doi.org/10.1007/s10994-009-5152-4

    Args:
        source: Shape (n_s, d), at least five samples.
        target: Shape (n_t, d), at least five samples.
    """
    both = torch.cat([source, target])
    deviation = both.std(dim=0)
    scaled = ((both - both.mean(dim=0)) / torch.where(deviation > 0, deviation, 1.0)).numpy()
    y: NDArray[np.int64] = np.repeat([0, 1], [len(source), len(target)])
    model = RidgeClassifier(alpha=float(both.shape[1]), class_weight="balanced")
    wrong = cross_val_predict(model, scaled, y, cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0)) != y
    error = (wrong[y == 0].mean() + wrong[y == 1].mean()) / 2
    return float(min(2 * error, 1.0))
