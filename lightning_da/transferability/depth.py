"""Curves over depth: measures of each layer with their spread and their null floor, as a table."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import pandas as pd
import torch
from torch import Tensor

from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.errors import ConfigError, list_choices
from lightning_da.transferability import measures

Measure = Literal["a_distance", "mmd", "coral", "probe_source", "probe_target", "logme", "h_score", "leep", "nce"]
DEFAULT_MEASURES: tuple[Measure, ...] = ("a_distance", "mmd", "coral", "probe_source", "probe_target")
COLUMNS = ("depth", "layer", "measure", "value", "low", "high", "null", "null_high", "p")
RESAMPLES = 20
"""Random halves for the spread of a value, and shuffles for its null floor."""
FEWEST = 8
"""Samples, or labels, of which halves of halves can still be measured."""


def check_measures(chosen: Sequence[str]) -> None:
    """Raises a `ConfigError` if a measure is not known, or named twice, or none is named."""
    for measure in chosen:
        if measure not in get_args(Measure):
            raise ConfigError(f"measures: no measure {measure!r}; {list_choices(measure, get_args(Measure))}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"measures: name at least one measure, and each once, not {list(chosen)}")


class Features(NamedTuple):
    """What a layer makes of a sample of both domains.

    Attributes:
        source: Shape (n_s, d).
        target: Shape (n_t, d).
        y_source: Labels, shape (n_s,), `UNKNOWN` where there is none.
        y_target: Labels, shape (n_t,).
    """

    source: Tensor
    target: Tensor
    y_source: Tensor
    y_target: Tensor

    def labelled(self, domains: Iterable[str]) -> "Features":
        """Without the samples of these domains whose class is not known."""
        s, t = (
            (y != UNKNOWN) | (domain not in domains)
            for domain, y in zip(DOMAINS, (self.y_source, self.y_target), strict=True)
        )
        return Features(self.source[s], self.target[t], self.y_source[s], self.y_target[t])

    def half(self, generator: torch.Generator) -> "Features":
        """A random half of each domain."""
        s, t = (measures.half(len(x), generator) for x in (self.source, self.target))
        return Features(self.source[s], self.target[t], self.y_source[s], self.y_target[t])

    def shuffled_domains(self, generator: torch.Generator) -> "Features":
        """The same samples, told at random which domain they are of."""
        both, y = torch.cat([self.source, self.target]), torch.cat([self.y_source, self.y_target])
        order = torch.randperm(len(both), generator=generator)
        n = len(self.source)
        return Features(both[order[:n]], both[order[n:]], y[order[:n]], y[order[n:]])

    def shuffled_labels(self, generator: torch.Generator) -> "Features":
        """The same samples with the labels of others of their domain."""
        y_source, y_target = (y[torch.randperm(len(y), generator=generator)] for y in (self.y_source, self.y_target))
        return Features(self.source, self.target, y_source, y_target)


def _probe_source(f: Features) -> float:
    """Accuracy on one half of the source of a probe fitted on the other, mean of both ways."""
    parts = torch.randperm(len(f.source), generator=torch.Generator().manual_seed(0)).tensor_split(2)
    found = [
        measures.Probe(f.source[a], f.y_source[a]).accuracy(f.source[b], f.y_source[b]) for a, b in (parts, parts[::-1])
    ]
    return sum(found) / 2


class _Kind(NamedTuple):
    """A measure: its value, what is shuffled for its null floor, its least and largest value, the labels it reads."""

    value: Callable[[Features], float]
    shuffle: Callable[[Features, torch.Generator], Features]
    low: float
    high: float
    labels: tuple[str, ...]
    head_only: bool = False


_domains, _labels, _inf = Features.shuffled_domains, Features.shuffled_labels, math.inf
KINDS: dict[Measure, _Kind] = {
    "a_distance": _Kind(lambda f: measures.a_distance(f.source, f.target), _domains, 0, 2, ()),
    "mmd": _Kind(lambda f: measures.mmd_test(f.source, f.target, 0).value, _domains, -_inf, _inf, ()),
    "coral": _Kind(lambda f: measures.coral_distance(f.source, f.target), _domains, -1, 1, ()),
    "probe_source": _Kind(_probe_source, _labels, 0, 1, ("source",)),
    "probe_target": _Kind(
        lambda f: measures.Probe(f.source, f.y_source).accuracy(f.target, f.y_target), _labels, 0, 1, DOMAINS
    ),
    "logme": _Kind(lambda f: measures.logme(f.target, f.y_target), _labels, -_inf, _inf, ("target",)),
    "h_score": _Kind(lambda f: measures.h_score(f.target, f.y_target), _labels, 0, _inf, ("target",)),
    "leep": _Kind(lambda f: measures.leep(f.target.softmax(1), f.y_target), _labels, -_inf, 0, ("target",), True),
    "nce": _Kind(lambda f: measures.nce(f.target.argmax(1), f.y_target), _labels, -_inf, 0, ("target",), True),
}
"""LogME, H-score, LEEP and NCE are of the target's labels, the last two of the logits alone."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices of a few hundred rows are small: several threads wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def depth_table(
    features: dict[str, Features], chosen: Iterable[Measure], spread: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Measures of each layer; those for which there are fewer than eight samples, or labels, are left out.

    The band is 1.96 standard deviations to both sides, from random halves of both domains drawn without replacement
    (the delete-half jackknife; near the null floor it is too wide, by up to a factor of 2). Samples drawn twice, as in
    a bootstrap with replacement, would stand in the part that a classifier is fitted on and in the part that it is
    judged on, and count as equal pairs in an MMD. The null floor is the mean over shuffles of the domain labels, or,
    for measures of labels, of those.

    Source: Shao and Wu, "A general theory for jackknife variance estimation", 1989.

    Args:
        features: Of each layer, in the order of depth.
        chosen: The measures.
        spread: Whether to compute band, null floor and p-value as well.
        seed: Of halves and shuffles.

    Returns:
        A row for each layer and measure: depth (from 1), layer, measure, value, low, high, null, null_high (the 95th
        percentile of the shuffles) and p (of MMD).
    """
    rows = []
    for depth, (layer, f) in enumerate(features.items(), start=1):
        for measure in chosen:
            kind = KINDS[measure]
            part = f.labelled(kind.labels)
            if min(len(part.source), len(part.target)) >= FEWEST and (layer == "head" or not kind.head_only):
                row = {"depth": depth, "layer": layer, "measure": measure}
                rows.append(row | _measured(measure, part, spread, seed))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured(measure: Measure, f: Features, spread: bool, seed: int) -> dict[str, float]:
    if not all(part.isfinite().all() for part in (f.source, f.target)):
        return {"value": math.nan}  # the network has diverged
    kind, generator = KINDS[measure], torch.Generator().manual_seed(seed)
    if not spread:
        return {"value": kind.value(f)}
    if measure == "mmd":
        test = measures.mmd_test(f.source, f.target, seed=seed, halves=RESAMPLES)
        value, halves, null, more = test.value, test.halves, test.null, {"p": test.p}
    else:
        value, more = kind.value(f), {}
        halves = torch.tensor([kind.value(f.half(generator)) for _ in range(RESAMPLES)])
        null = torch.tensor([kind.value(kind.shuffle(f, generator)) for _ in range(RESAMPLES)])
    reach = 1.96 * float(halves.double().std())
    return more | {
        "value": value,
        "low": max(value - reach, kind.low),
        "high": min(value + reach, kind.high),
        "null": float(null.mean()),
        "null_high": float(null.double().quantile(0.95)),
    }
