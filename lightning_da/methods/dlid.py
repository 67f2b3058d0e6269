from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError, check_range
from lightning_da.gather import share, world_size
from lightning_da.methods.base import TransferModule, samples_of
from lightning_da.methods.decoders import decoder as new_decoder
from lightning_da.networks.backbones import BackboneCallable
from lightning_da.networks.side_by_side import SideBySide


class DLID(TransferModule):
    """Deep learning by interpolating between domains: features of a path from source to target, and a classifier.

    Each point of the path has an autoencoder of its own, for samples of both domains with a share of the target that
    grows from 0 to 1. The features of all points are joined. The labels train the head (and a `bottleneck`, if there is
    one) on these features, and leave the autoencoders as they are.

    Source: Chopra et al., "DLID: Deep learning for domain adaptation by interpolating between domains", ICML workshop
    on challenges in representation learning 2013; written from descriptions of the paper. Its features are sparse codes
    with a network that predicts them; those of all points are learnt before the classifier, here at the same time.

    Args:
        backbone: From the shape of one sample to the encoder of a point.
        points: Number of points, source and target among them.
        decoder: Width of each hidden layer of a decoder.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If there are fewer than two points, or the samples are sentences.
    """

    reads_unlabelled = True
    can_regress = True

    def __init__(
        self, backbone: BackboneCallable, points: int = 5, decoder: tuple[int, ...] = (256,), **kwargs: Any
    ) -> None:
        check_range("points", points, 2)
        super().__init__(backbone=partial(SideBySide, backbone=backbone, number=points), **kwargs)
        if self.reads_words:
            raise ConfigError("an autoencoder computes numbers, not words; use --config method/dann.yaml")
        self.unlabelled = tuple(domain for domain in DOMAINS if domain not in self.supervised)
        self.shares = torch.linspace(0, 1, points).tolist()
        width = self.backbone.num_features // points
        self.decoders = nn.ModuleList(new_decoder(width, decoder, self.input_shape) for _ in range(points))

    def features(self, x: Tensor) -> Tensor:
        """The input of the head, (B, width); batch norm in the encoders has the statistics of their own samples."""
        training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad():
            found = self.backbone(self.standardize(x))
        self.backbone.train(training)
        features: Tensor = self.bottleneck(found)
        return features

    def path_losses(self, source: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the reconstruction at each point, (points,).

        Args:
            source: Samples as the encoders read them, (n, *input_shape).
            target: As many of the target. A point with the share s reads the first s n of these, and the last
                (1 - s) n of the source.
        """
        losses = []
        networks: Any = self.backbone.networks
        for part, encoder, decoder in zip(self.shares, networks, self.decoders, strict=True):
            number = len(share([None] * round(part * len(target) * world_size())))  # of all processes, dealt in turn
            x = torch.cat([target[:number], source[number:]])
            losses.append(mse_loss(decoder(encoder(x)), x.flatten(1)))
        return torch.stack(losses)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        read = []
        for domain in DOMAINS:
            self.set_domain(domain)
            read.append(self.standardize(samples_of(batch[domain])))
        self.set_domain("target")
        number = min(len(x) for x in read)
        losses = self.path_losses(*(x[:number] for x in read))
        self.log_dict({f"train/reconstruction_{i}": part for i, part in enumerate(losses, start=1)})
        return loss + losses.sum()
