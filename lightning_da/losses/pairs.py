"""All pairs of N samples: a tile of them in memory at a time, and a part of the tiles for each process."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_da.gather import share, total, world_size

KEPT = 1024
"""The most samples whose distances are kept. Those of more samples are computed again in each pass over them."""


class Tile(NamedTuple):
    """The pairs of the samples of two blocks, or of one block with itself.

    Attributes:
        rows: The first block.
        columns: The second block.

    Examples:
        >>> Tile(slice(0, 2), slice(0, 2)).diagonal
        True
    """

    rows: slice
    columns: slice

    @property
    def diagonal(self) -> bool:
        """Whether it is one block with itself."""
        return self.rows == self.columns

    @property
    def times(self) -> int:
        """How often it is in the symmetric matrix of all pairs."""
        return 1 if self.diagonal else 2


class Pairs:
    """Squared distances of all pairs of N samples, in tiles.

    Args:
        samples: Shape (N, d), float32 or float64, N at least 2. They get no gradient from here.
        shared: Whether all processes have these samples. Each then has a part of the tiles, if there are several.
        rows: The most rows of a tile. The values of a tile of 256 stay in the cache of a CPU.

    Attributes:
        tiles: Those of this process; of all processes, they have each pair once.
        shared: Whether the tiles are dealt to the processes.
        z: The samples about an origin near their mean.
        squares: Their squared lengths, shape (N,).

    Examples:
        >>> pairs = Pairs(torch.tensor([[0.0], [1.0], [3.0]]))
        >>> [distances.tolist() for distances in pairs]
        [[[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]]]
        >>> pairs.typical()
        tensor(4.)
    """

    def __init__(self, samples: Tensor, shared: bool = False, rows: int = 256) -> None:
        samples = samples.detach()
        # The origin changes the rounding errors of the distances. With this one equal samples are exactly 0.
        self.z = samples - (samples[0] + (samples - samples[0]).mean(dim=0))
        self.squares = self.z.square().sum(dim=1)
        blocks = [slice(start, start + rows) for start in range(0, len(samples), rows)]
        tiles = [Tile(*pair) for pair in combinations_with_replacement(blocks, 2)]
        self.shared = shared and len(tiles) > 1
        self.tiles = share(tiles) if self.shared else tiles
        self._kept = [self._distances(tile) for tile in self.tiles] if len(samples) <= KEPT else None

    def _distances(self, tile: Tile) -> Tensor:
        squares = self.squares[tile.rows, None] + self.squares[tile.columns]
        distances = torch.addmm(squares, self.z[tile.rows], self.z[tile.columns].T, alpha=-2).clamp_(min=0)
        return distances.fill_diagonal_(0) if tile.diagonal else distances

    def __iter__(self) -> Iterator[Tensor]:
        """The distances of each of the tiles."""
        return map(self._distances, self.tiles) if self._kept is None else iter(self._kept)

    def typical(self) -> Tensor:
        """As `typical` of the distances of all pairs of different samples, in all processes.

        The median is found digit by digit, each in a pass over the distances: the order of numbers that are not
        negative is that of their bits.
        """
        n = len(self.z)
        if len(self.tiles) == 1 and not self.shared:
            (distances,) = self
            return typical(distances.flatten()[1:].view(n - 1, n + 1)[:, :-1])  # off the diagonal
        mean = (self.squares.mean() - self.z.mean(dim=0).square().sum()) * (2 * n / (n - 1))
        if not mean.isfinite():
            return mean
        word, length = (torch.int32, 32) if self.z.dtype == torch.float32 else (torch.int64, 64)
        digit = 16 if self._kept is None else 8  # few passes where a pass has its price
        place = n + (n * (n - 1) - 1) // 2  # in the matrix of distances, whose first n are the zeros of its diagonal
        median = 0
        for shift in range(length - digit, -1, -digit):
            counts = torch.zeros(2**digit, dtype=torch.long, device=self.z.device)
            for tile, distances in zip(self.tiles, self, strict=True):
                bits = distances.view(word).flatten() >> shift
                if shift < length - digit:
                    bits = bits[bits >> digit == median]
                counts += tile.times * torch.bincount(bits & (2**digit - 1), minlength=2**digit)
            counts = total(counts) if self.shared else counts
            value = int((counts.cumsum(dim=0) <= place).sum())
            place -= int(counts[:value].sum())
            median = median * 2**digit + value
        return torch.maximum(torch.tensor(median, dtype=word, device=mean.device).view(mean.dtype), 1e-3 * mean)


def typical(distances: Tensor) -> Tensor:
    """The median, or a thousandth of the mean if that is larger, as for samples that are mostly equal.

    Args:
        distances: Any shape, floating point.

    Returns:
        A scalar without gradient.

    Examples:
        >>> typical(torch.tensor([0.0, 0.0, 3000.0]))
        tensor(1.)
    """
    known = distances.detach()
    return torch.maximum(known.median(), 1e-3 * known.mean())


Part = Callable[[Tile, Sequence[Tensor]], Tensor]
"""From a tile and each layer's distances in it, (n, m), to what these pairs add to p values, (p,)."""


class _SumOverPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, layers: Sequence[Pairs], p: int, *samples: Tensor) -> Tensor:
        wanted = p == 1 and any(ctx.needs_input_grad)
        value, gradients = samples[0].new_zeros(p), [torch.zeros_like(x) for x in samples if wanted]
        weights = [torch.zeros_like(layer.squares) for layer in layers]
        for tile, *distances in zip(layers[0].tiles, *layers, strict=True):
            ends = [each.detach().requires_grad_(wanted) for each in distances]
            with torch.set_grad_enabled(wanted):
                found = tile.times * part(tile, ends)
            value += found.detach()
            if wanted:
                slopes = torch.autograd.grad(found, ends)
                for layer, slope, gradient, weight in zip(layers, slopes, gradients, weights, strict=True):
                    # A sample's distance from itself does not change.
                    pull = slope.clone().fill_diagonal_(0) if tile.diagonal else slope
                    # Half the gradient of (pull * distances).sum(), at both ends of each pair.
                    for one, other, towards in ((*tile, pull), (tile.columns, tile.rows, pull.T)):
                        weight[one] += towards.sum(dim=1)
                        gradient[one].addmm_(towards, layer.z[other], alpha=-1)
        if wanted:
            for layer, gradient, weight in zip(layers, gradients, weights, strict=True):
                gradient.addcmul_(weight[:, None], layer.z).mul_(2 * world_size() if layer.shared else 2)
        ctx.save_for_backward(*gradients)
        return total(value) if layers[0].shared else value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, None, *(gradients[0] * gradient for gradient in ctx.saved_tensors)


def sum_over_pairs(part: Part, samples: Sequence[Tensor], layers: Sequence[Pairs], p: int = 1) -> Tensor:
    """The sums of a function over all pairs of samples, with the gradient of a single one.

    The gradient is computed together with the value, so that nothing of a tile is kept for the backward pass. It goes
    to the samples alone. Where the processes share the pairs, the value is the whole in each; the gradient in a process
    is that of its part times the number of processes, as the averaging of gradients expects it after `gather`.

    Args:
        part: Function of a tile; the sum has it twice where the tile is off the diagonal.
        samples: Of each layer, shape (N, width).
        layers: Their pairs.
        p: The number of sums. If there are several, they have no gradient.

    Returns:
        Shape (p,), the dtype of the samples.

    Examples:
        >>> samples = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
        >>> found = sum_over_pairs(lambda tile, layers: layers[0].sum()[None], [samples], [Pairs(samples)])
        >>> found.backward()
        >>> found.item(), samples.grad.tolist()
        (28.0, [[-16.0], [-4.0], [20.0]])
    """
    value: Tensor = _SumOverPairs.apply(part, layers, p, *samples)
    return value
