"""How batches are read: the order of samples, the share of each process, and what depends on the training step."""

import functools
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from lightning_da.data.datasets import TensorDomain
from lightning_da.data.several import Mixture


def seed_of_run() -> int:
    """The seed of the run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def permutation(number: int, seed: int) -> Tensor:
    """A random order of so many samples, shape (number,), int64; the global random state does not change."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))


class Shuffle(DistributedSampler[Any]):
    """This process's share of an endless stream of orders of the samples, continued from the current training step.

    The samples of a step depend on the step number only: not on the epoch length, which the other domain may set, and
    not on resuming from a checkpoint. An epoch has `length` batches; None means one permutation. Sample i in pass p is
    p * n + i, as `Drawn` reads it.

    Args:
        dataset: The samples.
        world: Number of processes.
        rank: The number of this process.
        seed: Of all orders.
        batch_size: Samples in a batch of this process.
        batches_read: Gives the number of batches that were read before, when an epoch begins.
        length: Batches in an epoch; None means one permutation.
        order: From the seed of a pass to its order, shape (n,); None means a random permutation.
    """

    def __init__(
        self,
        dataset: Any,
        world: int,
        rank: int,
        seed: int,
        batch_size: int,
        batches_read: Callable[[], int],
        length: int | None = None,
        order: Callable[[int], Tensor] | None = None,
    ) -> None:
        super().__init__(dataset, world, rank, seed=seed, drop_last=True)
        self.batch_size, self.batches_read = batch_size, batches_read
        self.order = order or functools.partial(permutation, len(dataset))
        self._batches = self.num_samples // batch_size
        self.length = length or self._batches

    def __iter__(self) -> Iterator[int]:
        read = self.batches_read()
        end = (read // self.length + 1) * self.length
        while read < end:
            passes, place = divmod(read, self._batches)
            read += min(self._batches - place, end - read)
            seed = np.random.SeedSequence([self.seed, passes]).generate_state(1)[0]
            share = self.order(int(seed))[self.rank : self.total_size : self.num_replicas] + passes * len(self.dataset)  # type: ignore[arg-type]
            yield from share[place * self.batch_size : (read - passes * self._batches) * self.batch_size].tolist()

    def __len__(self) -> int:
        return self.length * self.batch_size


class Mixed(Shuffle):
    """This process's share of the batches of a mixture (see `Mixture`), continued from the current training step.

    Args:
        mixture: The batches of all processes together.
        *arguments: Those of `Shuffle`.
    """

    def __init__(self, mixture: Mixture, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mixture = mixture

    def __iter__(self) -> Iterator[int]:
        read = self.batches_read()
        for number in range(read, (read // self.length + 1) * self.length):
            yield from self.mixture.batch(number)[self.rank :: self.num_replicas].tolist()


class Drawn(Dataset[Any]):
    """A training split that is read again and again: index p * n + i is sample i of n in pass p.

    What its transforms draw depends on the seeds, the sample and the pass, and not on the process that reads it.

    Args:
        dataset: The split.
        *seeds: Equal seeds give equal draws.
    """

    def __init__(self, dataset: Any, *seeds: int) -> None:
        self.dataset, self.seeds = dataset, seeds
        whole = dataset
        while isinstance(whole, Subset):
            whole = whole.dataset
        self._drawn = not isinstance(whole, TensorDomain)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> Any:
        if self._drawn:
            return [self[index] for index in indices]
        return self.dataset.__getitems__([index % len(self.dataset) for index in indices])

    def __getitem__(self, index: int) -> Any:
        passes, sample = divmod(index, len(self.dataset))
        # a process that loads samples draws for nothing else
        with isolate_rng() if get_worker_info() is None else nullcontext():
            own = np.random.SeedSequence([*self.seeds, passes, sample]).generate_state(1)
            random.seed(int(own[0]))
            np.random.seed(own)
            torch.default_generator.manual_seed(int(own[0]))
            return self.dataset[sample]


class StatelessLoader(DataLoader[Any]):
    """A loader whose place follows from the training step (see `Shuffle`), so that it has no state to keep."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Share(DistributedSampler[Any]):
    """This process's samples in order; each sample belongs to one process."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def collate(batch: Any, labels: bool) -> Any:
    """Samples to a batch: (x, y) with `labels`, and x alone without. A tuple is a batch already."""
    parts = batch if isinstance(batch, tuple) else tuple(default_collate(batch))
    return parts if labels else parts[0]


def in_chunks(dataset: Any, indices: range) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples (b, ...) and labels (b,) of a dataset, at most a thousand at a time."""
    fetch = getattr(dataset, "__getitems__", lambda wanted: [dataset[i] for i in wanted])
    for place in range(0, len(indices), 1000):
        yield collate(fetch(list(indices[place : place + 1000])), labels=True)


def even_batch(size: int, world: int, batch_size: int) -> int:
    """The nearest batch size with which every process has the same number of batches, so that none has to wait."""
    shares = {len(range(rank, size, world)) for rank in range(world)}
    near = (batch_size + sign * distance for distance in itertools.count() for sign in (-1, 1))
    return next(b for b in near if b > 0 and len({math.ceil(share / b) for share in shares}) == 1)
