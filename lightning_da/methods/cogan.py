from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS
from lightning_da.errors import check_range
from lightning_da.losses.adversarial import domain_classification, inverted_labels, scale_gradient
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import watch_pictures
from lightning_da.methods.reconstruction import DrawsPictures
from lightning_da.networks.backbones import BackboneCallable
from lightning_da.networks.norms import PerDomain, keep_statistics, split_layers
from lightning_da.networks.pictures import generator as new_generator


class CoGAN(DrawsPictures, AdaptationModule):
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
        noise: Number of random values that a pair of pictures is computed from.
        generator: Number of feature maps before the last layer of the generators.
        pictures: Number of pairs that are made in a step.
        batch_norm: As for `AdaptationModule`.
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If samples are no pictures, or a number is out of range.
    """

    def __init__(
        self,
        backbone: BackboneCallable,
        own_layers: int = 1,
        noise: int = 64,
        generator: int = 16,
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
        for name, value in {"noise": noise, "generator": generator, "pictures": pictures}.items():
            check_range(name, value, 2)
        self._noise, self._pictures = noise, pictures
        self.generator = new_generator(noise, self.input_shape, generator)
        self.generator.last = PerDomain(self.generator.last)
        self.discriminator = nn.Linear(self.head.in_features, 1)

    def further_layers(self, x: Tensor, domain: str) -> list[Tensor]:  # noqa: ARG002
        return [self.standardize(x).flatten(1)]

    def made(self, noise: Tensor, domain: str) -> Tensor:
        """Pictures of a domain (n, *input_shape), as the backbone reads them, from noise (n, `noise`)."""
        self.set_domain(domain)
        pictures: Tensor = self.generator(noise.to(self.discriminator.weight))
        return pictures

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        noise = torch.randn(self._pictures, self._noise)
        below = nn.Sequential(self.backbone, self.bottleneck)
        losses: dict[str, list[Tensor]] = {"discriminator": [], "generator": []}
        for domain, real in zip(DOMAINS, (source, target), strict=True):
            made = self.made(noise, domain)
            with keep_statistics(self):
                features = scale_gradient(below(made.detach()), self.domain_weight)
                losses["generator"].append(inverted_labels(made, nn.Sequential(below, self.discriminator)))
            losses["discriminator"].append(domain_classification(real.layers[0], features, self.discriminator))
        self.set_domain("target")
        sums = {name: torch.stack(parts).sum() for name, parts in losses.items()}
        self.log_dict({f"train/{name}_loss": loss for name, loss in sums.items()})
        return sums["discriminator"] + sums["generator"]

    def _fixed_noise(self, number: int) -> Tensor:
        return torch.randn(number, self._noise, generator=torch.Generator().manual_seed(0))

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        games = []
        for domain, real in zip(DOMAINS, (source, target), strict=True):
            made = self.made(self._fixed_noise(len(real.logits)), domain)
            with keep_statistics(self):
                features = self.bottleneck(self.backbone(made))
            games.append((real.layers[0], features, real.layers[1], made.flatten(1)))
        self.set_domain("target")
        return super().watched(source, target) | watch_pictures(games, self.discriminator)

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        made = self.made(self._fixed_noise(len(x)), domain)
        found = {"samples": self.standardize(x), "made from noise": made}
        self.set_domain("target")
        return found
