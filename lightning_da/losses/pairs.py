"""All pairs of N samples: a tile of them in memory at a time, and each process a part of the tiles."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_da.gather import share, total, world_size

_DIGIT = 16
"""Bits of the median that one pass over the distances finds."""


class Tile(NamedTuple):
    """The pairs of the samples of two blocks, or of one block with itself.

    Attributes:
        rows: The first block.
        columns: The second block.

    Example:
        >>> Tile(slice(0, 2), slice(2, 4)).times, Tile(slice(0, 2), slice(0, 2)).times
        (2, 1)
    """

    rows: slice
    columns: slice

    @property
    def diagonal(self) -> bool:
        """Whether it is one block with itself."""
        return self.rows == self.columns

    @property
    def times(self) -> int:
        """How often its pairs are in the symmetric matrix of all pairs."""
        return 1 if self.diagonal else 2


def tiles_of(n: int, shared: bool, fewest: int = 128, most: int = 512) -> list[Tile]:
    """Tiles that have each pair of n samples once.

    Args:
        n: The number of samples.
        shared: Whether all processes have these samples. Each then gets every W-th tile, W the number of processes.
        fewest: The number of rows below which a tile costs more to start than it saves.
        most: The largest number of rows.

    Example:
        >>> len(tiles_of(512, shared=False)), len(tiles_of(8192, shared=False))
        (10, 136)
    """
    size = math.ceil(n / max(n // fewest, 1)) if n < 4 * fewest else min(max(math.ceil(n / 4), fewest), most)
    blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    tiles = [Tile(*pair) for pair in combinations_with_replacement(blocks, 2)]
    return share(tiles) if shared else tiles


def centred(samples: Tensor) -> Tensor:
    """Samples (N, d) about an origin near their mean, for `squared_distances` with small rounding errors.

    Example:
        >>> centred(torch.tensor([[1.0], [1.0], [4.0]])).tolist()
        [[-1.0], [-1.0], [2.0]]
    """
    with torch.no_grad():
        origin = samples[0] + (samples - samples[0]).mean(dim=0)  # equal samples are then exactly 0
    return samples - origin


def squared_distances(x: Tensor, y: Tensor, same: bool) -> Tensor:
    """Squared distances (n, m) between samples x (n, d) and y (m, d).

    Args:
        x: `centred`, floating point.
        y: `centred` about the same origin.
        same: Whether x and y have the same values; the diagonal is then exactly 0.

    Example:
        >>> squared_distances(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0]]), same=False)
        tensor([[9.],
                [1.]])
    """
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    distances = torch.addmm(squares, x, y.T, alpha=-2).clamp(min=0)
    return distances.fill_diagonal_(0) if same else distances


def typical(distances: Tensor) -> Tensor:
    """The median, or a thousandth of the mean if that is larger, as for samples that are mostly equal.

    Args:
        distances: Any shape, floating point.

    Returns:
        A scalar without gradient.

    Example:
        >>> typical(torch.tensor([0.0, 0.0, 2000.0]))
        tensor(0.6667)
    """
    known = distances.detach()
    return torch.maximum(known.median(), 1e-3 * known.mean())


def typical_of_pairs(z: Tensor, tiles: Sequence[Tile], shared: bool) -> Tensor:
    """`typical` of the squared distances of all pairs of different samples.

    The median is found digit by digit, each in a pass over the distances: numbers that are not negative have the order
    of their bits.

    Args:
        z: `centred` samples, shape (N, d), float32 or float64, N at least 2.
        tiles: From `tiles_of`.
        shared: As for `tiles_of`.

    Example:
        >>> typical_of_pairs(torch.tensor([[-3.0], [-1.0], [4.0]]), tiles_of(3, False), shared=False)
        tensor(25.)
    """
    z = z.detach()
    n = len(z)
    mean = (z.square().sum(dim=1).mean() - z.mean(dim=0).square().sum()) * 2 * n / (n - 1)
    if not mean.isfinite():
        return mean
    word = torch.int32 if z.dtype == torch.float32 else torch.int64
    place = n + (n * (n - 1) - 1) // 2  # in the matrix of distances: its n smallest are the zeros of the diagonal
    found = 0
    for shift in reversed(range(0, 8 * z.element_size(), _DIGIT)):
        counts = torch.zeros(2**_DIGIT, dtype=torch.long, device=z.device)
        for tile in tiles:
            bits = squared_distances(z[tile.rows], z[tile.columns], tile.diagonal).view(word).flatten() >> shift
            if found:
                bits = bits[bits >> _DIGIT == found]
            counts += tile.times * torch.bincount(bits & 2**_DIGIT - 1, minlength=2**_DIGIT)
        up_to = (total(counts) if shared else counts).cumsum(dim=0)
        digit = int((up_to <= place).sum())
        place -= int(up_to[digit - 1]) if digit else 0
        found = found * 2**_DIGIT + digit
    return torch.maximum(torch.tensor(found, dtype=word, device=z.device).view(z.dtype), 1e-3 * mean)


class _SumOverPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Any, tiles: Sequence[Tile], shared: bool, p: int, *samples: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        value, gradients = samples[0].new_zeros(p), [torch.zeros_like(z) for z in samples]
        for tile in tiles:
            ends = [z[block].detach().requires_grad_(wanted) for block in tile for z in samples]
            with torch.set_grad_enabled(wanted):
                found = part(tile, ends[: len(samples)], ends[len(samples) :])
            value = value + tile.times * found.detach()
            if wanted:
                slopes = torch.autograd.grad(found, ends, torch.full_like(found, tile.times))
                for end, slope in enumerate(slopes):
                    gradients[end % len(samples)][tile[end // len(samples)]] += slope
        if shared:
            value, gradients = total(value), [gradient.mul_(world_size()) for gradient in gradients]
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, None, None, *(gradients[0] * gradient for gradient in ctx.saved_tensors)


def sum_over_pairs(
    part: Callable[[Tile, Sequence[Tensor], Sequence[Tensor]], Tensor],
    samples: Sequence[Tensor],
    tiles: Sequence[Tile],
    shared: bool,
    p: int,
) -> Tensor:
    """The sum of a function over the tiles of all pairs, with gradient.

    The gradient is computed together with the value, so that nothing of a tile is kept.
    """
    value: Tensor = _SumOverPairs.apply(part, tiles, shared, p, *samples)
    return value
