from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS
from lightning_da.errors import check_range
from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.losses.mmd import GaussianKernel, joint_mmd
from lightning_da.losses.separation import difference, scale_invariant_mse
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.discriminators import discriminators, watch_discriminators
from lightning_da.methods.reconstruction import ReconstructionModule
from lightning_da.networks.backbones import BackboneCallable


class DSN(ReconstructionModule):
    """Domain separation network: what the domains share is classified, what is private to each is kept apart from it.

    Each domain has a private encoder, of the kind of backbone and bottleneck and with weights of its own. The domain
    loss is `alpha L_recon + beta L_difference + gamma L_similarity`: a decoder reconstructs each sample from the sum of
    its shared and private features, both kinds of features are made orthogonal, and the shared features of the domains
    similar. Private encoders and decoder have no part in predictions.

    Source: Bousmalis et al., "Domain separation networks", NeurIPS 2016, equations 1 to 8; the terms are means over
    samples, and for `difference` also over entries, as in the authors' code. https://arxiv.org/abs/1608.06019

    Args:
        backbone: As for `TransferModule`.
        bottleneck: As for `TransferModule`.
        similarity: Of the shared features: `dann` (a domain discriminator with gradient reversal) or `mmd`.
        reconstruction_weight: alpha.
        difference_weight: beta.
        similarity_weight: gamma.
        discriminator: Widths of the hidden layers in the domain discriminator of `dann`.
        **kwargs: Arguments of `ReconstructionModule`.

    Raises:
        ConfigError: If a weight is negative.
    """

    fewest_for_domain_loss = 2

    def __init__(
        self,
        backbone: BackboneCallable,
        bottleneck: BackboneCallable | None = None,
        similarity: Literal["dann", "mmd"] = "dann",
        reconstruction_weight: float = 1.0,
        difference_weight: float = 0.075,
        similarity_weight: float = 0.25,
        discriminator: tuple[int, ...] = (100,),
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone=backbone, bottleneck=bottleneck, **kwargs)
        weights = {
            "reconstruction": reconstruction_weight, "difference": difference_weight, "similarity": similarity_weight,
        }  # fmt: skip
        for name, weight in weights.items():
            check_range(f"{name}_weight", weight, 0)
        self._weights = weights
        with torch.random.fork_rng(devices=[]):  # dropout draws as it does without them
            self.private = nn.ModuleDict()
            for domain in DOMAINS:
                encoder = backbone(self.input_shape)
                layers = [bottleneck((encoder.num_features,))] if bottleneck else []
                self.private[domain] = nn.Sequential(encoder, *layers)
            widths = [self.head.in_features] if similarity == "dann" else []
            self.discriminators = discriminators(widths, discriminator)
        self.kernel = GaussianKernel()

    def initialise(self) -> None:
        super().initialise()
        for encoder in self.private.values():
            encoder[0].load_pretrained()  # type: ignore[index]

    def further_layers(self, x: Tensor, domain: str) -> list[Tensor]:
        return [self.private[domain](self.standardize(x)), *super().further_layers(x, domain)]

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        parts = [batch.layers for batch in (source, target)]
        s, t = source.layers[0], target.layers[0]
        if self.discriminators:
            similarity = domain_classification(scale_gradient(s, -1), scale_gradient(t, -1), self.discriminators[0])
        else:
            similarity = joint_mmd([s], [t], [self.kernel], shared=True)
        errors = [scale_invariant_mse(self.decoder(shared + own), x) for shared, own, x in parts]
        losses = {
            "reconstruction": torch.stack(errors).sum(),
            "difference": torch.stack([difference(shared, own) for shared, own, _ in parts]).sum(),
            "similarity": similarity,
        }
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})
        return torch.stack([self._weights[name] * loss for name, loss in losses.items()]).sum()

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        number = len(self.discriminators)
        return super().watched(source, target) | (
            watch_discriminators(source.layers[:number], target.layers[:number], self.discriminators) if number else {}
        )

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        self.set_domain(domain)
        shared, (private, read) = self.features(x), self.further_layers(x, domain)
        self.set_domain("target")
        decoded = {"both parts": shared + private, "shared part": shared, "private part": private}
        return {"samples": read.view(x.shape)} | {
            name: self.decoder(features).view(x.shape) for name, features in decoded.items()
        }
