"""Curves over depth: the measures, and a table of each layer's values with their spread and their null floor."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.errors import ConfigError, list_choices
from lightning_da.transferability import measures

COLUMNS = ("depth", "layer", "measure", "panel", "value", "low", "high", "null", "null_high", "p")
RESAMPLES = 20
"""Random halves for the spread of a value, and shuffles for its null floor."""
FEWEST = 8
"""The least number of samples, or labels. Halves of halves can still be measured."""


class Features(NamedTuple):
    """The activations of a layer on a sample of both domains.

    Attributes:
        source: Shape (n_s, d), floating point.
        target: Shape (n_t, d), floating point.
        y_source: Labels, shape (n_s,), int64, `UNKNOWN` where there is none.
        y_target: Labels, shape (n_t,), int64.
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
        """The same samples, assigned to the domains at random."""
        both, y = torch.cat([self.source, self.target]), torch.cat([self.y_source, self.y_target])
        order = torch.randperm(len(both), generator=generator)
        n = len(self.source)
        return Features(both[order[:n]], both[order[n:]], y[order[:n]], y[order[n:]])

    def shuffled_labels(self, generator: torch.Generator) -> "Features":
        """The same samples, with the labels of each domain in random order."""
        y_source, y_target = (y[torch.randperm(len(y), generator=generator)] for y in (self.y_source, self.y_target))
        return Features(self.source, self.target, y_source, y_target)


# ---------------------------------------------------------------- the measures


@dataclass(frozen=True)
class Measure:
    """A measure: everything that table, figure and page need to know about it.

    A measure of your own is such an object in a module of yours. Its import path is its name in `measures`:
    `my_module.energy` is shown as `energy`.

    Attributes:
        value: From the features of a layer to a number.
        panel: Title of its panel. Measures with the same title share the panel; an empty title is the measure's name.
        low: Least possible value.
        high: Largest possible value.
        labels: Domains whose labels it reads. It sees only the labelled samples of these domains.
        shuffle: From features and a random generator to features without any transfer, for the null floor. By default
            the labels are shuffled if the measure reads any, else the domains.
        head_only: Whether it reads logits, so that it is measured at the head alone.
        test: From features and a seed to the value, also on halves and shuffles; for a measure that gets them faster
            than by repeating `value`.
    """

    value: Callable[[Features], float]
    panel: str = ""
    low: float = -math.inf
    high: float = math.inf
    labels: tuple[str, ...] = ()
    shuffle: Callable[[Features, torch.Generator], Features] | None = None
    head_only: bool = False
    test: Callable[[Features, int], measures.Resampled] | None = None


_PROBE = "accuracy of a linear probe of the source"
_LIKELIHOOD = "log-likelihood of the target's labels given the head's classes"
MEASURES: dict[str, Measure] = {
    "a_distance": Measure(
        lambda f: measures.a_distance(f.source, f.target),
        "proxy A-distance",
        low=0,
        high=2,
        test=lambda f, seed: measures.a_distance_test(f.source, f.target, RESAMPLES, seed),
    ),
    "mmd": Measure(
        lambda f: measures.mmd_test(f.source, f.target, 0).value,
        "squared MMD",
        test=lambda f, seed: measures.mmd_test(f.source, f.target, seed=seed, halves=RESAMPLES),
    ),
    "coral": Measure(lambda f: measures.coral_distance(f.source, f.target), "CORAL distance", low=-1, high=1),
    "probe_source": Measure(
        lambda f: measures.probe_within(f.source, f.y_source),
        _PROBE,
        low=0,
        high=1,
        labels=("source",),
        test=lambda f, seed: measures.probe_within_test(f.source, f.y_source, RESAMPLES, seed),
    ),
    "probe_target": Measure(
        lambda f: measures.Probe(f.source, f.y_source).accuracy(f.target, f.y_target),
        _PROBE,
        low=0,
        high=1,
        labels=DOMAINS,
        test=lambda f, seed: measures.probe_between_test(f.source, f.y_source, f.target, f.y_target, RESAMPLES, seed),
    ),
    "logme": Measure(lambda f: measures.logme(f.target, f.y_target), "LogME on the target", labels=("target",)),
    "h_score": Measure(
        lambda f: measures.h_score(f.target, f.y_target), "H-score on the target", low=0, labels=("target",)
    ),
    "leep": Measure(
        lambda f: measures.leep(f.target.softmax(1), f.y_target),
        _LIKELIHOOD,
        high=0,
        labels=("target",),
        head_only=True,
    ),
    "nce": Measure(
        lambda f: measures.nce(f.target.argmax(1), f.y_target), _LIKELIHOOD, high=0, labels=("target",), head_only=True
    ),
}
"""The measures of the project, by name."""
DEFAULT_MEASURES: tuple[str, ...] = ("a_distance", "mmd", "coral", "probe_source", "probe_target")


def check_measures(chosen: Sequence[str]) -> dict[str, Measure]:
    """Finds measures.

    Args:
        chosen: Names in `MEASURES`, and import paths of `Measure` objects.

    Returns:
        The measures, by the name under which they are shown: the last word of an import path.

    Raises:
        ConfigError: If a measure is not known, two have the same name, or none is named.
    """
    found = {name.rpartition(".")[2]: _find(name) for name in chosen}
    if not found or len(found) < len(chosen):
        raise ConfigError(f"measures: name at least one measure, and each once, not {list(chosen)}")
    return found


def measures_for(chosen: Sequence[str], domains: Sequence[str]) -> list[str]:
    """The names of the measures that say something about the domains: of one domain, those that read its labels alone.

    Args:
        chosen: As for `check_measures`.
        domains: The roles of the domains.
    """
    found = check_measures(chosen)
    return [name for name in chosen if len(domains) > 1 or len(found[name.rpartition(".")[2]].labels) == 1]


def _find(name: str) -> Measure:
    known: dict[str, object] = dict(MEASURES)
    module, _, attribute = name.rpartition(".")
    if module:
        try:
            known = vars(import_module(module))
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"measures: {name!r} cannot be imported: {error}") from error
    measure = known.get(attribute)
    if not isinstance(measure, Measure):
        there = [key for key, value in known.items() if isinstance(value, Measure)]
        raise ConfigError(f"measures: no measure {name!r}; {list_choices(attribute, there)}")
    return measure


# ---------------------------------------------------------------- the table


@contextmanager
def one_thread() -> Iterator[None]:
    """On matrices of a few hundred rows several threads wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def depth_table(
    features: dict[str, Features], chosen: Sequence[str], spread: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Measures each layer. A measure with fewer than eight samples or labels is left out.

    The band is 1.96 standard deviations to both sides, from random halves of both domains, drawn without replacement
    (the delete-half jackknife). Near the null floor it is too wide, by up to a factor of 2. A bootstrap draws with
    replacement: the same sample would train a classifier and test it, and would be an equal pair in an MMD. The null
    floor is the mean over shuffles: of the domains, or, for measures that read labels, of the labels.

    Source: Shao and Wu, "A general theory for jackknife variance estimation", 1989.

    Args:
        features: The features of each layer, in the order of depth.
        chosen: Measures, as for `check_measures`, or none.
        spread: Whether to compute band, null floor and p-value.
        seed: Seed of halves and shuffles.

    Returns:
        A row for each layer and measure: depth (from 1), layer, measure, panel, value, low, high, null, null_high (the
        95th percentile of the shuffles) and p (of MMD alone).

    Raises:
        ConfigError: As `check_measures`.
    """
    rows = []
    found = check_measures(chosen) if chosen else {}
    for depth, (layer, f) in enumerate(features.items(), start=1):
        for name, measure in found.items():
            part = f.labelled(measure.labels)
            if min(len(part.source), len(part.target)) >= FEWEST and (layer == "head" or not measure.head_only):
                row = {"depth": depth, "layer": layer, "measure": name, "panel": measure.panel or name}
                rows.append(row | _measured(measure, part, spread, seed))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured(measure: Measure, f: Features, spread: bool, seed: int) -> dict[str, float]:
    if not all(part.isfinite().all() for part in (f.source, f.target)):
        return {"value": math.nan}  # the network has diverged
    if not spread:
        return {"value": measure.value(f)}
    if measure.test is not None:
        test = measure.test(f, seed)
        value, halves, null, more = test.value, test.halves, test.null, {} if math.isnan(test.p) else {"p": test.p}
    else:
        generator = torch.Generator().manual_seed(seed)
        value, more = measure.value(f), {}
        shuffle = measure.shuffle or (Features.shuffled_labels if measure.labels else Features.shuffled_domains)
        halves = torch.tensor([measure.value(f.half(generator)) for _ in range(RESAMPLES)])
        null = torch.tensor([measure.value(shuffle(f, generator)) for _ in range(RESAMPLES)])
    reach = 1.96 * float(halves.double().std())
    return more | {
        "value": value,
        "low": max(value - reach, measure.low),
        "high": min(value + reach, measure.high),
        "null": float(null.mean()),
        "null_high": float(null.double().quantile(0.95)),
    }
