"""Learning to transfer: what a method may gain on a new pair of domains, by its gains on earlier pairs."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 6
"""Earlier pairs from which something is learned."""


class Transfer(NamedTuple):
    """The outcome of a comparison of methods on an earlier pair.

    Attributes:
        pair: Its name.
        distance: How far apart its domains are, without target labels: the score `a_distance` of the network that was
            not adapted.
        gains: For each method: its target accuracy less that of the method without adaptation.
    """

    pair: str
    distance: float
    gains: dict[str, float]


class Expected(NamedTuple):
    """What a method is expected to gain.

    Attributes:
        method: Its name.
        gain: Expected gain.
        error: Root mean squared error of such an expectation for an earlier comparison, from the others.
        mean: Mean gain in the earlier comparisons.
        better: Number of them with a gain.
        number: Number of earlier comparisons with the method.
    """

    method: str
    gain: float
    error: float
    mean: float
    better: int
    number: int


def expected(earlier: Sequence[Transfer], distance: float, methods: Iterable[str]) -> Expected | None:
    """The method with the largest expected gain on a new pair, of which no target label is read.

    The expectation is a ridge regression of the gain on the distance between the domains, over the earlier pairs; its
    penalty is chosen by cross-validation. One descriptor is enough for a dozen pairs: with more it was worse.

    Source: the idea, a model of earlier transfers that chooses for a new pair, is that of Wei et al., "Transfer
    learning via learning to transfer", ICML 2018. https://proceedings.mlr.press/v80/wei18a.html

    Args:
        earlier: The outcomes on earlier pairs.
        distance: The distance between the domains of the new pair, as in `Transfer`.
        methods: The methods to choose from.

    Returns:
        None if no method has been tested on `FEWEST` earlier pairs.

    Examples:
        >>> earlier = [Transfer(str(d), d, {"dann": 0.1 * d}) for d in range(8)]
        >>> round(expected(earlier, 2.5, ["dann", "adda"]).gain, 2)
        0.25
    """
    from sklearn.linear_model import RidgeCV  # noqa: PLC0415  # slow to import, and most tables do without
    from sklearn.model_selection import LeaveOneOut, cross_val_predict  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    found = []
    for method in methods:
        known = [transfer for transfer in earlier if method in transfer.gains]
        if len({transfer.pair for transfer in known}) < FEWEST:
            continue
        x = np.array([[transfer.distance] for transfer in known])
        gains = np.array([transfer.gains[method] for transfer in known])
        error = float(np.sqrt(np.mean((cross_val_predict(model, x, gains, cv=LeaveOneOut()) - gains) ** 2)))
        gain = float(model.fit(x, gains).predict([[distance]])[0])
        found.append(Expected(method, gain, error, float(gains.mean()), int((gains > 0).sum()), len(gains)))
    return max(found, key=lambda own: own.gain, default=None)
