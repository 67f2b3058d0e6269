from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lightning_da.data.base import UNKNOWN, DomainPairDataModule
from lightning_da.errors import check_range
from lightning_da.gather import total
from lightning_da.losses.centroids import nearest_centroid
from lightning_da.losses.confusion import information_loss
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.hooks import essential
from lightning_da.schedules import constant


class SHOT(AdaptationModule):
    """Source hypothesis transfer: the network of a source run moves to the target without a sample of the source.

    The head, the hypothesis about the source, stays as it is. The layers before it learn certain and varied predictions
    (`information_loss`) and, with `pseudo_weight`, the class of the nearest centroid. The centroids of the classes are
    computed anew when a pass over the target begins: first with the predictions as weights, then from the samples that
    are nearest to these. A sample takes the nearest one in each step; in the paper it keeps that of the pass's start.

    No label is read, and training reads no sample of the source: mean and deviation of the inputs are those of the
    source run. With one domain in the data (`--data.source null`) there is no source at all.

    Source: Liang et al., "Do we really need to access the source data? Source hypothesis transfer for unsupervised
    domain adaptation", ICML 2020, equations 2 to 7.
    https://arxiv.org/abs/2002.08546

    Args:
        init_from: The supervised source run to start from: its checkpoint file, MLflow run id or run name. It is read
            when a fit begins; a checkpoint of this run does not need it.
        pseudo_weight: Weight of the pseudo-labels (beta); 0 is information maximisation alone, without centroids.
        domain_schedule: Function from the progress of training in [0, 1] to a factor of the gradient.
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If `pseudo_weight` is negative.
    """

    always_eval = ("head",)
    centroids: Tensor
    """Centroid of the features of each class, shape (num_classes, width); 0 where it is not known."""

    def __init__(
        self,
        init_from: str | None = None,
        pseudo_weight: float = 0.3,
        domain_schedule: Callable[[float], float] = constant,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            init_from=init_from,
            layers=("bottleneck",),
            domain_schedule=domain_schedule,
            train_on="source",
            batch_norm="separate",
            label_smoothing=0.0,
            **kwargs,
        )
        check_range("pseudo_weight", pseudo_weight, 0)
        self._pseudo_weight = pseudo_weight
        self.supervised, self.unlabelled = (), ("target",)
        self.head.requires_grad_(False)
        self.register_buffer("centroids", torch.zeros(self.num_classes, self.head.in_features))
        self.train()

    def starts_random(self) -> bool:
        return False

    def initialise(self) -> None:
        self.start_from_source_run(("standardize.", "backbone.", "bottleneck.", "head."))

    def training_samples(self, data: DomainPairDataModule, role: str) -> Iterator[Tensor]:  # noqa: ARG002
        return super().training_samples(data, "target")

    @essential
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0 and self._pseudo_weight > 0:
            self.learn_centroids()

    @torch.no_grad()
    def learn_centroids(self) -> None:
        """Computes the centroids from all training samples of the target, without labels."""
        self.eval()
        self.set_domain("target")
        loader = self.trainer.datamodule.unlabelled_dataloader("target")  # type: ignore[attr-defined]
        found = [self.classify(self.moved(x)) for x in loader]
        features, logits = (torch.cat(parts).float() for parts in zip(*found, strict=True))
        self.train()
        weights = logits.softmax(dim=1)
        for _ in range(2):
            sums, sizes = total(weights.T @ features), total(weights.sum(dim=0))
            centroids = sums / sizes.clamp(min=1e-8)[:, None]
            weights = one_hot(nearest_centroid(features, centroids), self.num_classes).to(features)
        self.centroids.copy_(centroids)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        logits, features = self._pass({"target": batch["target"]})["target"]
        unknown = torch.full((len(logits),), UNKNOWN, device=logits.device)
        source, target = (DomainBatch([features[:n]], logits[:n], unknown[:n]) for n in (0, len(logits)))
        return self.weighted_domain_loss(source, target)

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:  # noqa: ARG002
        loss = information_loss(target.logits)
        self.log("train/information_loss", loss)
        if self._pseudo_weight == 0:
            return loss
        labels = nearest_centroid(target.layers[0], self.centroids)
        pseudo_loss = cross_entropy(target.logits, labels, ignore_index=UNKNOWN, reduction="sum") / len(labels)
        self.log("train/pseudo_loss", pseudo_loss)
        return loss + self._pseudo_weight * pseudo_loss
