"""Persons or things to be told apart, whose identities are disjoint in training, validation and test."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor

from lightning_da.data.base import SPLITS, UNKNOWN, DataError, Roles, TensorDomain
from lightning_da.data.class_sets import listed
from lightning_da.data.features import FeatureTables
from lightning_da.data.sketches import LIGHTS, draw_faces
from lightning_da.data.splits import Indices, split_indices
from lightning_da.errors import check_metric_learning, check_range
from lightning_da.names import Names

FEWEST = 3
"""Identities with two samples that a split needs: of fewer there are no pairs to verify in two folds."""


class Identities(FeatureTables):
    """Samples of identities, for verification and retrieval; each identity is in one split only.

    Files are those of `FeatureTables`; a label is an identity. Source and target have identities of their own. The
    domains `indoors` and `outdoors` are drawn faces, for which no file is needed.

    A training batch of a domain with labels has several samples of each of its identities, drawn by
    pytorch-metric-learning.

    Args:
        source: File of the domain with identities, or `indoors` or `outdoors`.
        target: File of the domain to transfer to, or `indoors` or `outdoors`.
        batch_size: Samples per batch and domain, on each process.
        samples_per_identity: Samples of an identity in a batch; they are drawn again where an identity has fewer.
        seed: Seed of the splits.
        val_share: Fraction of identities for validation; if a file has only a training and a test split, a fraction of
            its training identities.
        test_share: Fraction of identities for test.
        **kwargs: Arguments of `FeatureTables`.

    Raises:
        ConfigError: If pytorch-metric-learning is not installed.
        DataError: If there are several sources or targets, `batch_size` is no multiple of `samples_per_identity`, or
            `protocol` is `all`. When a file is read: if an identity is in two predefined splits, or a split has fewer
            than three identities with two samples.
    """

    disjoint_classes = True

    def __init__(
        self,
        source: Names | None = None,
        target: Names | None = None,
        batch_size: int = 64,
        samples_per_identity: int = 4,
        seed: int = 0,
        val_share: float = 0.2,
        test_share: float = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, seed=seed, val_share=val_share, test_share=test_share, **kwargs)
        check_metric_learning("data.Identities")
        for role, domains in self.named.items():
            if len(domains) > 1:
                raise DataError(
                    f"data.{role}: name one domain, not {len(domains)}: an identity of {domains[0]!r} would be that of "
                    f"the same name in {domains[1]!r}; join the files, with names of their own"
                )
        check_range("data.samples_per_identity", samples_per_identity, 2)
        if batch_size % samples_per_identity:
            raise DataError(
                f"data.batch_size: {batch_size} is no multiple of data.samples_per_identity, {samples_per_identity}"
            )
        if self.protocol == "all":
            raise DataError("data.protocol: with `all` the identities of the test are trained on; set it to split")
        self.samples_per_identity = samples_per_identity

    def _read(self, domain: str) -> dict[str, TensorDomain]:
        if domain not in LIGHTS or self._path(domain)[0].exists():
            return super()._read(domain)
        if domain not in self._domains:
            x, names = draw_faces(domain)
            classes, y = np.unique(names, return_inverse=True)
            self._domains[domain] = {
                split: TensorDomain(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]), classes.tolist())
                for split, rows in self.split(domain, y, None).items()
            }
        return self._domains[domain]

    def split(self, domain: str, y: Indices, given: NDArray[np.str_] | None) -> dict[str, Indices]:
        """Splits the identities; samples of unknown identity are for training, unless none is known."""
        identities = np.unique(y[y != UNKNOWN])
        if not len(identities):
            return super().split(domain, y, given)
        of_identity = None
        if given is not None:
            of_identity = np.array([given[y == identity][0] for identity in identities])
            for identity, split in zip(identities, of_identity, strict=True):
                if (given[y == identity] != split).any():
                    raise DataError(
                        f"domain {domain!r}: identity {identity}, counted from 0 in sorted order, is in "
                        f"{str(split)!r} and in another split; give each identity one"
                    )
        shares = (self.seed, self.val_share, self.test_share)
        parts = split_indices(np.zeros(len(identities), dtype=np.int64), *shares, of_identity)
        rows = {split: np.flatnonzero(np.isin(y, identities[part])) for split, part in parts.items()}
        for split in SPLITS:
            pairs = int((np.unique(y[rows[split]], return_counts=True)[1] > 1).sum())
            if pairs < FEWEST:
                raise DataError(
                    f"domain {domain!r}: the {split} split has {pairs} identities with two samples or more; it needs "
                    f"{FEWEST}, so give more identities, or other data.val_share and data.test_share"
                )
        rows["train"] = np.sort(np.concatenate([rows["train"], np.flatnonzero(y == UNKNOWN)]))
        return rows

    def check(self, roles: Roles = Roles()) -> None:  # noqa: B008  # a NamedTuple does not change
        super().check(roles)
        shared = sorted(set(self.classes_in("source")) & set(self.classes_in("target")))
        if len(self.domains) > 1 and shared:
            rank_zero_warn(
                f"{self.source!r} and {self.target!r} both have {len(shared)} identities with the same names, "
                f"{listed(shared)}; if these are the same persons or things, some are in the training of one and in "
                "the test of the other: take them out of one file"
            )

    def _warn_of_missing_classes(self, domain: str) -> None:
        """Warns of nothing: an identity is in one split by design."""

    def reading_order(self, y: Tensor, seed: int) -> Tensor:
        """Groups of samples of one identity, in random order; without labels a permutation."""
        if (y == UNKNOWN).all():
            return super().reading_order(y, seed)
        from pytorch_metric_learning.samplers import MPerClassSampler  # noqa: PLC0415  # an extra

        once = self.samples_per_identity * len(y.unique())
        with isolate_rng():  # the sampler reads numpy's global random state
            np.random.seed(seed)
            drawn = list(MPerClassSampler(y, self.samples_per_identity, None, -(-len(y) // once) * once))
        return torch.tensor(drawn[: len(y)])
