"""Made trajectories of people who walk, cycle, or go by bus or car, in two cities."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_da.data.base import SPLITS, DataError, DomainPairDataModule, TensorDomain
from lightning_da.errors import check_range, list_choices
from lightning_da.names import Names

POINTS, SHORTEST, LONGEST = 150, 300, 720
"""Points of a trajectory, and the seconds that a trip takes."""


class Mode(NamedTuple):
    """How people move.

    Attributes:
        speed: Between two corners, in m/s.
        jam: The largest part of the speed that a trip may lose.
        turns: Share of the corners at which they turn.
        waits: Share of the corners at which they wait.
        wait: Mean seconds of waiting.
    """

    speed: float
    jam: float
    turns: float
    waits: float
    wait: float


class City(NamedTuple):
    """Where they move, and how they are followed.

    Attributes:
        block: Mean metres between two corners.
        bend: Deviation of the angle between a street and the next one, in radians; 0 for right angles.
        pace: Factor of all speeds.
        waits: Factor of the share of corners at which they wait.
        period: Seconds between two points.
        noise: Deviation of a point, in metres.
    """

    block: float
    bend: float
    pace: float
    waits: float
    period: int
    noise: float


MODES = {
    "walk": Mode(1.4, 0.2, 0.4, 0.1, 10),
    "bike": Mode(4.8, 0.2, 0.3, 0.1, 12),
    "bus": Mode(9.0, 0.3, 0.05, 0.5, 20),
    "car": Mode(12.0, 0.3, 0.3, 0.15, 25),
}
CITIES = {
    "grid": City(110, 0.0, 1.0, 1.0, 5, 3),
    "winding": City(80, 0.5, 0.75, 1.2, 12, 6),
}


class Trajectories(DomainPairDataModule):
    """Trips in two cities: walk, bike, bus or car. A sample is a trajectory (see `lightning_da.networks.trajectories`).

    The streets of `grid` meet at right angles, and a position is known every 5 seconds. Those of `winding` bend,
    traffic is slower, and a position is known every 12 seconds, with more noise. Classes differ by speed, waiting and
    turning, and overlap: a car in a jam is as slow as a bicycle. A trip takes 5 to 12 minutes.

    Args:
        source: City with labels, `grid`.
        target: City to transfer to, `winding`.
        batch_size: Samples per batch and domain, on each process.
        number: Trips of each class in each city, over all splits.
        seed: Seed of the trips.
        **kwargs: Arguments of `DomainPairDataModule`.
    """

    def __init__(
        self,
        source: Names = "grid",
        target: Names = "winding",
        batch_size: int = 64,
        number: int = 400,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        check_range("data.number", number, 10)
        check_range("data.seed", seed, 0)
        self.number, self.seed = number, seed

    def dataset(self, domain: str, split: str) -> TensorDomain:
        if domain not in CITIES:
            raise DataError(f"no city {domain!r}; {list_choices(domain, CITIES)}")
        number = {"train": self.number * 7 // 10, "val": self.number // 10, "test": self.number // 5}[split]
        rng = np.random.default_rng([self.seed, SPLITS.index(split), list(CITIES).index(domain)])
        labels = np.repeat(np.arange(len(MODES)), number)
        names = list(MODES)
        trips = np.stack([travel(MODES[names[label]], CITIES[domain], rng) for label in labels])
        return TensorDomain(torch.from_numpy(trips)[:, None].float(), torch.from_numpy(labels), names)


def travel(mode: Mode, city: City, rng: np.random.Generator) -> NDArray[np.float64]:
    """A trip as seconds, metres east and metres north, shape (150, 3)."""
    duration = rng.uniform(SHORTEST, LONGEST)
    speed = city.pace * mode.speed * rng.lognormal(0, 0.15) * (1 - rng.uniform(0, mode.jam))
    corners = int(duration * speed / city.block) * 2 + 10
    lengths = city.block * rng.uniform(0.5, 1.5, corners)
    turns = rng.choice([-1, 1], corners) * (rng.uniform(size=corners) < mode.turns)
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(turns * np.pi / 2 + rng.normal(0, 1, corners) * city.bend)
    waits = rng.exponential(mode.wait, corners) * (rng.uniform(size=corners) < mode.waits * city.waits)
    drives = lengths / (speed * rng.lognormal(0, 0.2, corners))
    moved = np.cumsum(lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    leaves = np.cumsum(drives + waits)
    times = np.concatenate([[0], np.stack([leaves - waits, leaves], axis=1).ravel()])
    places = np.concatenate([[[0, 0]], np.repeat(moved, 2, axis=0)])
    seen = np.arange(0, duration, city.period)
    found = np.stack([seen, *(np.interp(seen, times, axis) for axis in places.T)], axis=1)
    found[:, 1:] += rng.normal(0, city.noise, (len(seen), 2))
    return np.pad(found, ((0, POINTS - len(found)), (0, 0)), mode="edge")
