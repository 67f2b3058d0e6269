import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError
from lightning_da.gather import gather
from lightning_da.losses.adversarial import domain_classification, inverted_labels
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.dann import discriminators
from lightning_da.networks.weights import load_weights
from lightning_da.schedules import constant

LOGGED_STEPS = 3
"""Number of logged steps over which the signs of collapse are averaged."""


class ADDA(AdaptationModule):
    """Adversarial training of a separate target network, initialised from a trained, frozen source network.

    Source: Tzeng et al., "Adversarial discriminative domain adaptation", CVPR 2017, equation 9. `backbone` and
    `bottleneck` belong to the target network; the frozen copies for the source are in `source`. No labels are read.

    Args:
        init_from: The supervised source run to start from: its checkpoint file, MLflow run id or run name. It is read
            when a fit begins; a checkpoint of this run does not need it.
        layers: Names of the adapted layers; each has its own domain discriminator.
        discriminator: Widths of the hidden layers in each domain discriminator.
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
        self.supervised, self.unlabelled = (), DOMAINS
        self.discriminators = discriminators(self.adapted_widths(), discriminator)
        parts = OrderedDict(backbone=copy.deepcopy(self.backbone), bottleneck=copy.deepcopy(self.bottleneck))
        self.source = nn.Sequential(parts).requires_grad_(False)
        self.head.requires_grad_(False)
        self.train()
        self._domain = "target"
        self._recent: deque[Tensor] = deque(maxlen=LOGGED_STEPS)
        self._warned: set[str] = set()

    def starts_random(self) -> bool:
        return False

    def initialise(self) -> None:
        if not self.starts_from:
            raise ConfigError(
                "ADDA starts from a supervised run of the source; set --model.init_from to its checkpoint file, run id "
                "or run name, or train it first with --after source_only"
            )
        (start,) = self.starts_from
        settings = load_weights(self, start, ("backbone.", "bottleneck.", "head."))
        if settings.get("train_on", "source") != "source":
            raise ConfigError(
                f"init_from {start!r} has read labels of the target (train_on: {settings['train_on']}); ADDA "
                "starts from a run on source labels only"
            )
        for part in ("backbone", "bottleneck"):
            self.source.get_submodule(part).load_state_dict(self.get_submodule(part).state_dict())

    def set_domain(self, domain: str) -> None:
        self._domain = domain

    def module_name(self, layer: str, domain: str) -> str:
        name = super().module_name(layer, domain)
        return f"source.{name}" if domain == "source" and layer != "head" else name

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.source(self.standardize(x)) if self._domain == "source" else super().features(x)
        return features

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        source, target = self.domain_batches(batch)
        if self.logs_now:
            self._watch([gather(s) for s in source.layers], [gather(t) for t in target.layers], gather(target.logits))
        return self.weighted_domain_loss(source, target)

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        pairs = list(zip(source.layers, target.layers, self.discriminators, strict=True))
        discriminator_loss = torch.stack([domain_classification(s.detach(), t.detach(), d) for s, t, d in pairs]).sum()
        mapping_loss = torch.stack([inverted_labels(t, d) for _, t, d in pairs]).sum()
        self.log_dict({"train/discriminator_loss": discriminator_loss, "train/mapping_loss": mapping_loss})
        return discriminator_loss + mapping_loss

    @torch.no_grad()
    def _watch(self, source: list[Tensor], target: list[Tensor], logits: Tensor) -> None:
        """Logs signs of collapse; warns once about each sign that holds on average over `LOGGED_STEPS`."""
        right = [
            torch.cat([discriminator(s) > 0, discriminator(t) <= 0])
            for s, t, discriminator in zip(source, target, self.discriminators, strict=True)
        ]
        accuracy = torch.cat(right).float().mean()
        share = logits.argmax(dim=1).bincount().max() / len(logits)
        self.log_dict({"train/discriminator_acc": accuracy, "train/target_top_class": share})
        self._recent.append(torch.stack([accuracy, share]))
        if len(self._recent) < LOGGED_STEPS:
            return
        accuracy, share = torch.stack(list(self._recent)).mean(dim=0)
        signs = {
            "the discriminator is at 100 % accuracy and gives no useful gradient: train the target network faster "
            "(--model.backbone_lr_scale), or use a smaller discriminator": accuracy > 0.995,
            "the discriminator is at 50 % accuracy: the domains are aligned, which is the goal. If the target accuracy "
            "is still that of source-only, the discriminator does not learn: raise the learning rate": (
                abs(accuracy - 0.5) < 0.05
            ),
            "one class is predicted for nearly all of the target samples, so the target network has collapsed: lower "
            "the learning rate or --model.domain_weight": share > 0.95,
        }
        for sign, holds in signs.items():
            if holds and sign not in self._warned:
                self._warned.add(sign)
                rank_zero_warn(f"ADDA, step {self.trainer.global_step + 1}: {sign}")
