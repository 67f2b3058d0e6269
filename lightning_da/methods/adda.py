import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS
from lightning_da.losses.adversarial import domain_classification, inverted_labels
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import discriminators, watch_discriminators
from lightning_da.schedules import constant


class ADDA(AdaptationModule):
    """Adversarial training of a separate target network, initialised from a trained, frozen source network.

    Source: Tzeng et al., "Adversarial discriminative domain adaptation", CVPR 2017, equation 9. `backbone` and
    `bottleneck` belong to the target network; the frozen copies for the source are in `source`. Labels of the source
    are read in the first stage alone.
    https://arxiv.org/abs/1702.05464

    Args:
        init_from: The supervised source run to start from: its checkpoint file, MLflow run id or run name. It is read
            when a fit begins; a checkpoint of this run does not need it.
        layers: Names of the adapted layers; each has its own domain discriminator.
        discriminator: Widths of the hidden layers in each domain discriminator.
        train_on: `source` reads no label of the target; with `both` the target network also learns the labels that the
            target has.
        domain_schedule: Function from the progress of training in [0, 1] to a factor of the gradient that the target
            network receives.
        **kwargs: Arguments of `AdaptationModule`.
    """

    always_eval = ("source", "head")

    def __init__(
        self,
        init_from: str | None = None,
        layers: tuple[str, ...] = ("bottleneck",),
        discriminator: tuple[int, ...] = (500, 500),
        train_on: Literal["source", "both"] = "source",
        domain_schedule: Callable[[float], float] = constant,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            init_from=init_from,
            layers=layers,
            domain_schedule=domain_schedule,
            train_on="source",
            batch_norm="separate",
            label_smoothing=0.0,
            **kwargs,
        )
        self.supervised, self.unlabelled = ((), DOMAINS) if train_on == "source" else (("target",), ("source",))
        self.discriminators = discriminators(self.adapted_widths(), discriminator)
        parts = OrderedDict(backbone=copy.deepcopy(self.backbone), bottleneck=copy.deepcopy(self.bottleneck))
        self.source = nn.Sequential(parts).requires_grad_(False)
        self.head.requires_grad_(False)
        self.train()
        self._domain: str | Mapping[str, int] = "target"

    def starts_random(self) -> bool:
        return False

    def initialise(self) -> None:
        self.start_from_source_run(("backbone.", "bottleneck.", "head."))
        for part in ("backbone", "bottleneck"):
            self.source.get_submodule(part).load_state_dict(self.get_submodule(part).state_dict())

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        super().set_domain(domain)
        self._domain = domain

    def module_name(self, layer: str, domain: str) -> str:
        name = super().module_name(layer, domain)
        return f"source.{name}" if domain == "source" and layer != "head" else name

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.source(self.standardize(x)) if self._domain == "source" else super().features(x)
        return features

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        source, target, labelled = self.domain_batches(batch)
        loss = self.weighted_domain_loss(source, target)
        if self.supervised:
            part = labelled or target
            task_loss = self.task_loss(part.logits, part.labels)
            self.log("train/task_loss", task_loss)
            loss = loss + task_loss
        return loss

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        pairs = list(zip(source.layers, target.layers, self.discriminators, strict=True))
        discriminator_loss = torch.stack([domain_classification(s.detach(), t.detach(), d) for s, t, d in pairs]).sum()
        mapping_loss = torch.stack([inverted_labels(t, d) for _, t, d in pairs]).sum()
        self.log_dict({"train/discriminator_loss": discriminator_loss, "train/mapping_loss": mapping_loss})
        return discriminator_loss + mapping_loss

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        return super().watched(source, target) | watch_discriminators(source.layers, target.layers, self.discriminators)
