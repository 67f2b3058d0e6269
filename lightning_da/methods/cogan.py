from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS
from lightning_da.errors import check_range
from lightning_da.losses.adversarial import domain_classification, inverted_labels, scale_gradient
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import watch_pictures
from lightning_da.methods.pictures import GeneratesPictures
from lightning_da.networks.backbones import BackboneCallable
from lightning_da.networks.norms import PerDomain, keep_statistics, split_layers


class CoGAN(GeneratesPictures, AdaptationModule):
    """Coupled generative adversarial networks: two GANs that share what pictures of both domains have in common.

    The generators compute a pair of pictures from the same noise, and have all but their last layers in common. The
    discriminators, which tell them from samples of their domain, have all but their first layers in common: these are
    the backbone and the bottleneck, below the head that classifies the source. The domain loss is the sum of the losses
    of both GANs; generators learn to be taken for real (the non-saturating loss), in the same step as discriminators.

    Source: Liu and Tuzel, "Coupled generative adversarial networks", NeurIPS 2016, equation 2 and section 4.
    https://arxiv.org/abs/1606.07536

    Args:
        backbone: As for `TransferModule`.
        own_layers: Number of the backbone's first layers that each domain has for itself.
        pictures: Number of pairs that are made in a step.
        batch_norm: As for `AdaptationModule`.
        **kwargs: Arguments of `GeneratesPictures` and `AdaptationModule`.

    Raises:
        ConfigError: If samples are no pictures, or a number is out of range.
    """

    def __init__(
        self,
        backbone: BackboneCallable,
        own_layers: int = 1,
        pictures: int = 32,
        batch_norm: Literal["separate", "per_domain"] = "per_domain",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone=lambda shape: split_layers(backbone(shape), own_layers),
            layers=("bottleneck",),
            batch_norm=batch_norm,
            **kwargs,
        )
        check_range("pictures", pictures, 1)
        self._pictures = pictures
        self.generator.last = PerDomain(self.generator.get_submodule("last"))
        self.discriminator = nn.Linear(self.head.in_features, 1)

    def further_layers(self, x: Tensor, domain: str) -> list[Tensor]:  # noqa: ARG002
        return [self.standardize(x).flatten(1)]

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        noise = torch.randn(self._pictures, self._noise)
        below = nn.Sequential(self.backbone, self.bottleneck)
        losses: dict[str, list[Tensor]] = {"discriminator": [], "generator": []}
        for domain, real in zip(DOMAINS, (source, target), strict=True):
            self.set_domain(domain)
            made = self.made(noise)
            with keep_statistics(below):
                features = scale_gradient(below(made.detach()), self.domain_weight)
                losses["generator"].append(inverted_labels(made, nn.Sequential(below, self.discriminator)))
            losses["discriminator"].append(domain_classification(real.layers[0], features, self.discriminator))
        self.set_domain("target")
        sums = {name: torch.stack(parts).sum() for name, parts in losses.items()}
        self.log_dict({f"train/{name}_loss": loss for name, loss in sums.items()})
        return sums["discriminator"] + sums["generator"]

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        games = []
        for domain, real in zip(DOMAINS, (source, target), strict=True):
            self.set_domain(domain)
            made = self.made(self.fixed_noise(len(real.logits)))
            with keep_statistics(self):
                features = self.bottleneck(self.backbone(made))
            answers = [self.discriminator(part) for part in (real.layers[0], features)]
            games.append((*answers, real.layers[1], made.flatten(1)))
        self.set_domain("target")
        return super().watched(source, target) | watch_pictures(games)

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        self.set_domain(domain)
        found = {"samples": self.standardize(x), "made from noise": self.made(self.fixed_noise(len(x)))}
        self.set_domain("target")
        return found
