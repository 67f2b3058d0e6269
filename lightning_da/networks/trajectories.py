"""Two views of a trajectory: numbers about the movement, and a picture.

A trajectory has the shape (1, points, 3): seconds, metres east and metres north of each point, in order of time. A
shorter one repeats its last point.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_da.errors import ConfigError, check_range
from lightning_da.networks.backbones import Backbone, LeNet

BANDS = (0.7, 2.5, 5.0, 8.0, 11.0)
"""Bounds of speed in m/s; what is below the first is standing."""
SLOWEST, FASTEST = 0.05, 350.0
"""Bounds of the median speed of a domain in m/s."""
MOVEMENT = (
    *("length in km", "mean speed", "deviation of speed", "mean acceleration"),
    *("share of the time that is spent standing", "at up to 2.5 m/s", "at up to 5 m/s", "at up to 8 m/s"),
    *("at up to 11 m/s", "faster", "stops per km", "mean length of a stop in s", "turning in radians per km"),
    *("distance from the first to the last point, as a share of the length",),
)
"""The values of `Movement`, in order."""


def _check(network: str, shape: tuple[int, ...], instead: str) -> None:
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 2 or shape[2] != 3:
        raise ConfigError(
            f"{network} reads trajectories of shape (1, points, 3), the seconds and metres east and north of each of "
            f"two points or more, not {shape}; for other samples use {instead}"
        )


def _steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Seconds (B, n) and metres (B, n, 2) between the points of trajectories (B, 1, n + 1, 3)."""
    steps = x[:, 0].float().diff(dim=1)
    return steps[..., 0], steps[..., 1:]


class _ReadsTrajectories(Backbone):
    """A network for trajectories, which looks at the units of the training samples."""

    reads_units = True

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> None:
        """Checks times and speeds of the training samples.

        Raises:
            ConfigError: If a time is before the one before it, or the median speed of a domain is none in m/s.
        """
        for role in ("source", "target"):
            speeds = []
            for x in samples(role):
                seconds, metres = _steps(x)
                if (seconds < 0).any():
                    raise ConfigError(
                        f"a trajectory of the {role} has a time before that of the point before it; a point is "
                        "(seconds, metres east, metres north), in order of time"
                    )
                there = seconds.sum(dim=1) > 0
                speeds.append((metres.norm(dim=2).sum(dim=1) / seconds.sum(dim=1))[there])
            speed = torch.cat(speeds).nanmedian().item()
            if not SLOWEST <= speed <= FASTEST:
                raise ConfigError(
                    f"the median speed of the trajectories of the {role} is {speed:.3g} m/s; a point is (seconds, "
                    "metres east, metres north), and no degrees, kilometres or milliseconds"
                )


class Movement(_ReadsTrajectories):
    """Numbers about the movement, which mean the same in every city (`MOVEMENT`).

    Args:
        input_shape: (1, points, 3).

    Raises:
        ConfigError: If the samples are no trajectories.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        _check("Movement", input_shape, "Raw")
        self.layers, self.num_features = [], len(MOVEMENT)

    def forward(self, x: Tensor) -> Tensor:
        """Computes (B, 14) values of trajectories (B, 1, points, 3)."""
        seconds, metres = _steps(x)
        there = seconds > 0
        distance = metres.norm(dim=2)
        speed = distance / torch.where(there, seconds, 1)
        time, length = seconds.sum(dim=1).clamp(min=1), distance.sum(dim=1)
        mean = length / time
        deviation = ((speed - mean[:, None]).square() * seconds).sum(dim=1).div(time).sqrt()
        change = (speed.diff(dim=1).abs() * there[:, 1:]).sum(dim=1) / time
        band = torch.bucketize(speed, speed.new_tensor(BANDS))
        shares = [((band == number) * seconds).sum(dim=1) / time for number in range(len(BANDS) + 1)]
        moving = there & (band > 0)
        stops = (moving[:, :-1] & there[:, 1:] & ~moving[:, 1:]).sum(dim=1)
        angle = torch.atan2(metres[..., 1], metres[..., 0])
        turn = torch.remainder(angle.diff(dim=1) + torch.pi, 2 * torch.pi) - torch.pi
        turning = (turn.abs() * (moving[:, 1:] & moving[:, :-1])).sum(dim=1)
        km = length.clamp(min=1) / 1000
        straight = metres.sum(dim=1).norm(dim=1) / length.clamp(min=1)
        stop = shares[0] * time / stops.clamp(min=1)
        return torch.stack([km, mean, deviation, change, *shares, stops / km, stop, turning / km, straight], dim=1)


class TrajectoryLeNet(_ReadsTrajectories, LeNet):
    """`LeNet` on two maps of a trajectory, whose brightness says how long each cell is visited.

    The first map is as large as the trajectory and shows its form, the second has a fixed size and shows distances.
    Their north is at the top, in training a random direction, and the middle of the trajectory is in the centre. With s
    the seconds in a cell, a pixel has log(1 + s / 10). What is outside of the second map is left out.

    Args:
        input_shape: (1, points, 3).
        side: Number of cells along a side of a map, at least 16.
        size: Metres along a side of the second map.
        batch_norm: As for `LeNet`.
        dropout: As for `LeNet`.

    Raises:
        ConfigError: If the samples are no trajectories, or a number is out of range.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        side: int = 24,
        size: float = 2400.0,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        _check("TrajectoryLeNet", input_shape, "LeNet or FeedForward")
        check_range("size", size, above=0)
        super().__init__((2, side, side), batch_norm, dropout)
        self._side, self._size = side, size

    def draw(self, x: Tensor) -> Tensor:
        """The maps (B, 2, side, side) of trajectories (B, 1, points, 3)."""
        seconds, metres = _steps(x)
        points = x[:, 0, :, 1:].float()
        low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
        places = points[:, :-1] + metres / 2 - (low + high) / 2
        own = (high - low).amax(dim=2, keepdim=True).clamp(min=1)
        return torch.stack([self._map(seconds, places / size) for size in (own, self._size)], dim=1)

    def _map(self, seconds: Tensor, places: Tensor) -> Tensor:
        """A map (B, side, side) of places (B, n, 2), whose bounds are -1/2 and 1/2."""
        inside = (places.abs() <= 0.5).all(dim=2)
        cell = (places.clamp(-0.5, 0.5) * (self._side - 1) + self._side / 2).long()
        spent = seconds.new_zeros((seconds.shape[0], self._side**2))
        spent = spent.scatter_add(1, (self._side - 1 - cell[..., 1]) * self._side + cell[..., 0], seconds * inside)
        return (spent / 10).log1p().view(-1, self._side, self._side)

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, 100) of trajectories (B, 1, points, 3)."""
        maps = self.draw(_turned(x) if self.training else x)
        return super().forward(maps.to(next(self.parameters()).dtype))


def _turned(x: Tensor) -> Tensor:
    """Trajectories (B, 1, points, 3), each turned by a random angle."""
    turn = 2 * torch.pi * torch.rand(len(x), 1, 1, device=x.device)
    seconds, east, north = x.unbind(dim=3)
    return torch.stack([seconds, turn.cos() * east - turn.sin() * north, turn.sin() * east + turn.cos() * north], dim=3)
