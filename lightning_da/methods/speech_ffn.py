from typing import Any, Literal

from lightning_da.methods.fine_tune import FineTune


class SpeechFFN(FineTune):
    """A feed-forward network on utterance features learns speakers or genders first, then emotions.

    Source: Huang et al., CCPR 2016, with sigmoid layers of 1024:1024 and 2048:2048 as backbone. The first stage reads
    the labels of the source (`train_on: source`); the second starts from it (`init_from`) with a new output layer, and
    trains all layers on the target. Without `init_from` the second stage is the paper's baseline. With a domain loss
    beside it the second stage is any other method, with the same three arguments.

    Args:
        train_on: The domains whose labels are read.
        standardize: Whether the network standardises the features (see `TransferModule`).
        **kwargs: Arguments of `FineTune`.
    """

    def __init__(
        self,
        train_on: Literal["source", "target", "both"] = "target",
        standardize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_on=train_on, standardize=standardize, **kwargs)
