from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError, check_range
from lightning_da.gather import mean_over_processes
from lightning_da.losses.masks import absolute_error
from lightning_da.methods.base import TransferModule
from lightning_da.methods.masks import SCORES, MaskScores
from lightning_da.networks.layers import as_vectors
from lightning_da.networks.unet import Decoder, feature_maps


class Segmentation(TransferModule):
    """A class for each pixel: a U-Net whose encoder is the backbone, and whose decoder is in the place of a bottleneck.

    The task loss is `cross-entropy + mae_weight L_mae`, means over the pixels with a class. An earlier run `init_from`,
    that of a classifier too, gives the backbone; decoder and head are new. `freeze` and `unfreeze_by` fine-tune the
    backbone layer by layer.

    After each validation or test epoch it logs `dice`, `jaccard` and `sensitivity` for source and target: means over
    the classes without the first one, the background, and for each of them over images (see `MaskScores`).

    Source: Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015. https://arxiv.org/abs/1505.04597

    Args:
        decoder: Number of feature maps in the last step of the decoder (see `Decoder`).
        mae_weight: Weight of the mean absolute error.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If the backbone has no feature maps, or a number is out of range.
    """

    segments = True
    initialised = ("backbone.",)

    def __init__(self, decoder: int = 8, mae_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(bottleneck=None, **kwargs)
        check_range("mae_weight", mae_weight, 0)
        self._mae_weight = mae_weight
        layers = Decoder(self.backbone, self.input_shape, decoder)
        self.bottleneck = layers
        self.head = nn.Conv2d(layers.num_features, self.num_classes, 1)  # type: ignore[assignment]

    def features(self, x: Tensor) -> Tensor:
        """Images (B, *input_shape) to the input of the head (B, decoder, height, width)."""
        x = self.standardize(x)
        found: Tensor = self.bottleneck(x, feature_maps(self.backbone, x))
        return found

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features (B, decoder), means over pixels, and logits (B, num_classes, height, width) of images."""
        features = self.features(x)
        return as_vectors(features), self.head(features)

    def task_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy and mean absolute error, the mean over the pixels of all processes with a known class.

        Args:
            logits: Shape (B, num_classes, height, width).
            y: Masks, shape (B, height, width), int64, `UNKNOWN` where the class is not known.
        """
        loss = super().task_loss(logits, y)
        if not self._mae_weight:
            return loss
        error = mean_over_processes(absolute_error(logits, y).sum(), (y != UNKNOWN).sum())
        return loss + self._mae_weight * error

    def new_metric(self) -> nn.Module:
        return MaskScores(self.num_classes)

    def count(self, stage: str, domain: str, logits: Tensor, y: Tensor) -> None:
        self.counted(stage, domain).update(logits.argmax(dim=1), y)

    def scores_of(self, stage: str, domain: str) -> dict[str, Tensor]:
        found = self.counted(stage, domain).compute()
        means = {name: found[name][1:].nanmean() for name in SCORES}
        return {name: mean for name, mean in means.items() if not mean.isnan()}

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # noqa: ARG002
        """Masks (B, height, width), uint8, of target images.

        Raises:
            ConfigError: If an output of the network is not finite.
        """
        self.set_domain("target")
        logits: Tensor = self(batch[0])
        if not logits.isfinite().all():
            raise ConfigError("the network gives no finite answer: it has diverged; fit again with a smaller rate")
        return logits.argmax(dim=1).to(torch.uint8)
