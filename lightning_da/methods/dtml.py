from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError, check_metric_learning, check_range
from lightning_da.gather import gather
from lightning_da.losses.mmd import linear_kernel, mmd
from lightning_da.losses.precision import full_precision
from lightning_da.losses.scatter import MarginalFisher
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.verification import Verification


class DTML(AdaptationModule):
    """Deep transfer metric learning: an embedding whose distances tell identities apart, also those of the target.

    The output of the network is the embedding: there is no head. The loss of a layer is a metric loss of the labelled
    source samples, and the domain loss is the squared distance of the domain means. The last of `layers` is the top of
    the network. Losses of the others, the hidden layers, are hinged:
    `J = J_top + hidden_weight * sum_m max(J_m - hidden_threshold, 0)`, with
    `J_m = loss_m + domain_weight * ||mean_s - mean_t||^2` (DSTML). The weight decay of the papers is that of the
    optimizer.

    With `MarginalFisher` this is DTML, with one layer STML, with hidden layers in `layers` DSTML. With a loss of pairs
    and `domain_weight` 0 it is DDML.

    Sources: Hu, Lu and Tan, "Deep transfer metric learning", CVPR 2015, equations 10 and 19, and "Discriminative deep
    metric learning for face verification in the wild", CVPR 2014 (DDML).
    https://openaccess.thecvf.com/content_cvpr_2015/papers/Hu_Deep_Transfer_Metric_2015_CVPR_paper.pdf,
    https://openaccess.thecvf.com/content_cvpr_2014/html/Hu_Discriminative_Deep_Metric_2014_CVPR_paper.html

    Args:
        loss: From embeddings (n, d) and identities (n,) to a scalar: a `MarginalFisher`, which is the default, or a
            loss of pytorch-metric-learning.
        miner: A miner of pytorch-metric-learning, which chooses the pairs or triplets that such a loss reads.
        hidden_weight: Weight of the losses of hidden layers.
        hidden_threshold: The losses of hidden layers count as far as they are larger.
        **kwargs: Arguments of `AdaptationModule`; `train_on` is `source`.

    Raises:
        ConfigError: If pytorch-metric-learning is not installed, a weight is negative, or there is a miner without a
            loss of pytorch-metric-learning.
    """

    tasks_differ = True
    embeds = True

    def __init__(
        self,
        loss: nn.Module | None = None,
        miner: nn.Module | None = None,
        hidden_weight: float = 1.0,
        hidden_threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_metric_learning("metric learning")
        super().__init__(train_on="source", **kwargs)
        check_range("hidden_weight", hidden_weight, 0)
        self.head = nn.Identity()  # type: ignore[assignment]
        self.loss, self.miner = loss or MarginalFisher(), miner
        if miner is not None and isinstance(self.loss, MarginalFisher):
            raise ConfigError(
                "miner: it chooses pairs for a loss of pytorch-metric-learning; the scatter of loss reads the nearest "
                "neighbours of its own; leave out the miner, or set --model.loss, as method/ddml.yaml does"
            )
        self._hidden = (hidden_weight, hidden_threshold)

    def metric_losses(self, batch: DomainBatch) -> Tensor:
        """The loss of each adapted layer, shape (layers,), from the samples of all processes."""
        known = batch.labels != UNKNOWN
        loss = full_precision(self._metric_loss)
        return torch.stack([loss(x[known], batch.labels[known]) for x in batch.layers])

    def _metric_loss(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.loss(x, y) if self.miner is None else self.loss(x, y, self.miner(x, y))
        return loss

    def mean_distances(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        """The squared distance of the domain means in each adapted layer, shape (layers,)."""
        pairs = zip(source.layers, target.layers, strict=True)
        return torch.stack([mmd(s, t, linear_kernel, "biased") for s, t in pairs])

    @torch.no_grad()
    def layer_weights(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        """The derivative of the objective with respect to the J of each layer, shape (layers,).

        It is 1 for the top, and for a hidden layer `hidden_weight` where the hinge is open, 0 where it is closed.
        """
        weight, threshold = self._hidden
        if len(self.adapted) == 1:
            return torch.ones(1, device=source.labels.device)
        objectives = self.metric_losses(source) + self.domain_weight * self.mean_distances(source, target)
        return torch.cat([weight * (objectives[:-1] > threshold).to(objectives), objectives.new_ones(1)])

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return (self.layer_weights(source, target) * self.mean_distances(source, target)).sum()

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:  # noqa: ARG002
        return {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        joint = self._batch_norm == "joint" and self.domain_weight != 0
        source, target, _ = self.domain_batches(batch, joint)
        every_source, every_target = (
            DomainBatch([gather(x) for x in part.layers], part.logits, gather(part.labels)) for part in (source, target)
        )
        loss = (self.layer_weights(every_source, every_target) * self.metric_losses(every_source)).sum()
        self.log("train/task_loss", loss)
        return loss + self.weighted_domain_loss(source, target)

    # ---------------------------------------------------------------- validation and test

    def new_metric(self) -> Metric:
        return Verification()

    def count(self, stage: str, domain: str, logits: Tensor, y: Tensor) -> None:
        self.counted(stage, domain).update(logits, y)

    def scores_of(self, stage: str, domain: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.counted(stage, domain).compute()
        return found
