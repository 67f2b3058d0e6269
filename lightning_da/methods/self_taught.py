from typing import Any

import torch
from torch import Tensor

from lightning_da.methods.autoencoder import Autoencoder
from lightning_da.methods.own_classes import OwnClasses


class SelfTaught(OwnClasses, Autoencoder):
    """Self-taught learning: features of unlabelled samples of other classes, and a classifier of few labels on them.

    The samples of the source, without labels, shape the features: the backbone is fitted to them (`SparseCoding`,
    `PrincipalComponents`), or it is the encoder of an autoencoder of them. The labels of the target train the head
    alone.

    Source: Raina et al., "Self-taught learning: transfer learning from unlabeled data", ICML 2007, section 3.
    https://doi.org/10.1145/1273496.1273592

    Args:
        **kwargs: Arguments of `Autoencoder`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(train_on="target", read_unlabelled="source", label_smoothing=0.0, **kwargs)
        if not any(p.requires_grad for part in (self.backbone, self.bottleneck) for p in part.parameters()):
            self.without_labels = self.unlabelled = ()
            del self.decoder

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = self.features(x)
        return features, self.among_own(self.head(features))
