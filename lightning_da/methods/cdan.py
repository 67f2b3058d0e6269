from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.errors import check_range
from lightning_da.losses.adversarial import domain_classification, scale_gradient
from lightning_da.losses.confusion import certainty
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.discriminators import discriminators, watch_discriminators


class MultilinearMap(nn.Module):
    """The outer product of features and class probabilities, or a random projection of it where it is large.

    The projection is `(R_f f) * (R_g g) / sqrt(width)`, with random numbers of variance 1 in R_f and R_g, which stay as
    they are and are kept in a checkpoint. Its inner products are, in the mean, those of the outer products.

    Source: Long et al., NeurIPS 2018, equations 4 to 6.
    https://arxiv.org/abs/1705.10667

    Args:
        features: Number of features.
        classes: Number of classes.
        largest: The largest outer product that is not projected.
        width: Width of the projection.
    """

    def __init__(self, features: int, classes: int, largest: int = 4096, width: int = 1024) -> None:
        super().__init__()
        self.projected = features * classes > largest
        self.num_features = width if self.projected else features * classes
        for name, size in (("features", features), ("classes", classes)) if self.projected else ():
            self.register_buffer(name, torch.randn(size, width))

    def forward(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Maps features (n, d) and class probabilities (n, classes) to (n, num_features)."""
        if not self.projected:
            return (probabilities[:, :, None] * features[:, None, :]).flatten(1)
        f, g = features @ self.get_buffer("features"), probabilities @ self.get_buffer("classes")
        projected: Tensor = f * g / self.num_features**0.5
        return projected


class CDAN(AdaptationModule):
    """Conditional adversarial adaptation: the discriminator reads features together with the predicted classes.

    With entropy weights it is CDAN+E: certain predictions weigh up to twice as much as uncertain ones. The
    gradient goes to the features alone; the predictions in the product and in the weights have none. (In the authors'
    code the weights have one.)

    Source: Long et al., "Conditional adversarial domain adaptation", NeurIPS 2018, equations 3, 6 and 9.
    https://arxiv.org/abs/1705.10667

    Args:
        discriminator: Widths of the hidden layers in the domain discriminators; each adapted layer has its own.
        discriminator_batch_norm: Whether the hidden layers of the discriminators have batch normalisation.
        entropy_weights: Whether samples are weighted by the certainty of their prediction (CDAN+E).
        largest_product: The largest product of features and classes that is not projected at random.
        projection: Width of the random projection.
        **kwargs: Arguments of `AdaptationModule`.

    Raises:
        ConfigError: If `projection` is less than 1.
    """

    def __init__(
        self,
        discriminator: tuple[int, ...] = (100,),
        discriminator_batch_norm: bool = False,
        entropy_weights: bool = True,
        largest_product: int = 4096,
        projection: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("projection", projection, 1)
        maps = [MultilinearMap(d, self.num_classes, largest_product, projection) for d in self.adapted_widths()]
        self.maps = nn.ModuleList(maps)
        self.discriminators = discriminators([m.num_features for m in maps], discriminator, discriminator_batch_norm)
        self._entropy_weights = entropy_weights

    def conditioned(self, batch: DomainBatch, factor: float = 1) -> list[Tensor]:
        """Features of each layer times class probabilities, (n, num_features of the map); `factor` of the gradient."""
        p = batch.logits.detach().softmax(dim=1)
        return [product(scale_gradient(x, factor), p) for product, x in zip(self.maps, batch.layers, strict=True)]

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        weights = [certainty(batch.logits) if self._entropy_weights else None for batch in (source, target)]
        pairs = zip(self.conditioned(source, -1), self.conditioned(target, -1), self.discriminators, strict=True)
        return torch.stack([domain_classification(s, t, network, *weights) for s, t, network in pairs]).sum()

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        conditioned = self.conditioned(source), self.conditioned(target)
        return super().watched(source, target) | watch_discriminators(*conditioned, self.discriminators)
