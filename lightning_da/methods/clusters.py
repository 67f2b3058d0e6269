from collections.abc import Callable
from math import prod
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import ConfigError, check_range
from lightning_da.methods.semi_supervised import SemiSupervised
from lightning_da.schedules import constant

SAMPLES = 10_000
"""The largest number of samples that are clustered, evenly over the training samples."""


class Clusters(SemiSupervised):
    """Clustering as an auxiliary task: a second head learns which cluster a sample without a label is in.

    k-means finds the clusters when a fit begins, in the training samples as the backbone reads them; they stay as they
    are. A cluster is a label that costs nothing: what tells clusters apart may tell classes apart.

    Source: the auxiliary task of Caron et al., "Deep clustering for unsupervised learning of visual features", ECCV
    2018, equation 2, with clusters of the samples that are found once, and not of the features again and again.
    https://arxiv.org/abs/1807.05520

    Args:
        per_class: Number of clusters for each class.
        unlabelled_schedule: As for `SemiSupervised`.
        **kwargs: Arguments of `SemiSupervised`.

    Raises:
        ConfigError: If `per_class` is less than 1, the samples are sentences, or there are fewer of them than clusters.
    """

    centroids: Tensor

    def __init__(
        self, per_class: int = 3, unlabelled_schedule: Callable[[float], float] = constant, **kwargs: Any
    ) -> None:
        super().__init__(unlabelled_schedule=unlabelled_schedule, **kwargs)
        check_range("per_class", per_class, 1)
        if self.reads_words:
            raise ConfigError("k-means reads numbers, not words; use --config method/pseudo_labels.yaml")
        number = per_class * self.num_classes
        self.register_buffer("centroids", torch.zeros(number, prod(self.input_shape)))
        with torch.random.fork_rng(devices=[]):  # dropout draws as it does without them
            self.cluster_head = nn.Linear(self.head.in_features, number)

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        """Finds the clusters too."""
        super().fit_inputs(data)
        number = sum(len(data.training_labels(domain)) for domain in self.without_labels)
        taken = torch.zeros(number, dtype=torch.bool)
        taken[torch.linspace(0, number - 1, min(number, SAMPLES)).long()] = True
        parts, start = [], 0
        for domain in self.without_labels:
            self.set_domain(domain)
            for x in self.training_samples(data, domain):
                parts.append(self.standardize(x[taken[start : start + len(x)]]).flatten(1).float())
                start += len(x)
        self.set_domain("target")
        x = torch.cat(parts)
        if len(x) < len(self.centroids):
            raise ConfigError(f"per_class: {len(self.centroids)} clusters are more than the {len(x)} training samples")
        found = KMeans(len(self.centroids), n_init=3, random_state=0).fit(x.numpy())
        self.centroids.copy_(torch.from_numpy(found.cluster_centers_))

    def clusters(self, x: Tensor) -> Tensor:
        """The cluster of each sample, shape (n,), int64, for samples of the domain that is set (n, *input_shape)."""
        return torch.cdist(self.standardize(x).flatten(1).float(), self.centroids.float()).argmin(dim=1)

    def unlabelled_loss(self, x: Tensor) -> Tensor:
        """Cross-entropy of the clusters; for the shapes see `SemiSupervised.unlabelled_loss`."""
        logits, clusters = self.cluster_head(self.features(x)), self.clusters(x)
        self.log("train/cluster_acc", (logits.argmax(dim=1) == clusters).float().mean())
        return self.loss_of_made_labels(logits, clusters)
