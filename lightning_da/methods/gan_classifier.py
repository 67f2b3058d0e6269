from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.gather import gather, share, total
from lightning_da.losses.games import discriminator_loss, feature_matching, one_more_class, with_fixed_weights
from lightning_da.methods.discriminators import watch_pictures
from lightning_da.methods.pictures import GeneratesPictures
from lightning_da.methods.semi_supervised import SemiSupervised
from lightning_da.methods.watched import WatchedModule
from lightning_da.networks.norms import with_running_statistics
from lightning_da.schedules import constant


class GANClassifier(GeneratesPictures, WatchedModule, SemiSupervised):
    """A classifier that also tells pictures without a label from made ones, which are a class of their own.

    The logit of this class is fixed at 0: with Z the sum of the exponentials of the logits, a picture is real with the
    probability Z / (Z + 1). The generator matches the mean features of real pictures, at the input of the head. Batch
    norm treats made pictures as real ones, by its running statistics: by their own, their means would always match.

    Source: Salimans et al., "Improved techniques for training GANs", NeurIPS 2016, section 5 and, for the generator,
    3.1. https://arxiv.org/abs/1606.03498

    Args:
        unlabelled_schedule: As for `SemiSupervised`.
        **kwargs: Arguments of `GeneratesPictures` and `SemiSupervised`.

    Raises:
        ConfigError: If samples are no pictures, or a number is out of range.
    """

    def __init__(self, unlabelled_schedule: Callable[[float], float] = constant, **kwargs: Any) -> None:
        super().__init__(unlabelled_schedule=unlabelled_schedule, **kwargs)

    def unlabelled_loss(self, x: Tensor) -> Tensor:
        """The game and the matched features; for the shapes see `SemiSupervised.unlabelled_loss`."""
        features, logits = self.classify(x)
        number = int(total(torch.tensor(len(x), device=x.device)))
        made = self.made(share(torch.randn(number, self._noise)))
        below = nn.Sequential(self.backbone, self.bottleneck)
        with with_running_statistics(below):
            made_logits = self.head(below(made.detach()))
            made_features = with_fixed_weights(below, made)
        real_answers, made_answers = (gather(one_more_class(part)) for part in (logits, made_logits))
        losses = {
            "discriminator": discriminator_loss(real_answers, made_answers),
            "generator": feature_matching(gather(features.detach()), gather(made_features)),
        }
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})
        if self.logs_now:
            values = self.standardize(x).flatten(1), made.flatten(1)
            self._watched = watch_pictures([(real_answers, made_answers, *values)])
        return losses["discriminator"] + losses["generator"]

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        return {"samples": self.read(x, domain), "made from noise": self.made(self.fixed_noise(len(x)))}
