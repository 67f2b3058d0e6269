from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_da.methods.autoencoder import Autoencoder


class SelfTaught(Autoencoder):
    """Self-taught learning: features of unlabelled samples of other classes, and a classifier of few labels on them.

    The samples of the source, without labels, shape the features: the backbone is fitted to them (`SparseCoding`,
    `PrincipalComponents`), or it is the encoder of an autoencoder of them. The labels of the target train the head
    alone.

    Source: Raina et al., "Self-taught learning: transfer learning from unlabeled data", ICML 2007, section 3.

    Args:
        **kwargs: Arguments of `Autoencoder`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(train_on="target", read_unlabelled="source", **kwargs)
