from functools import partial
from typing import Any, Literal

from lightning_da.backbones import FeedForward
from lightning_da.methods.fine_tune import FineTune


class SpeechFFN(FineTune):
    """A sigmoid network on standardised utterance features; it learns speakers or genders first, then emotions.

    Source: Huang et al., CCPR 2016. The first stage reads the labels of the source (`train_on: source`); the second
    starts from it (`init_from`) with a new output layer, and trains all layers on the target. Without `init_from` the
    second stage is the paper's baseline. With a domain loss beside it the second stage is any other method on the
    network of conf/backbone/speech_ffn.yaml.

    Args:
        hidden: Widths of the hidden layers, the paper's 1024:1024 and 2048:2048.
        train_on: The domains whose labels are read.
        **kwargs: Arguments of `FineTune`.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (1024, 1024),
        train_on: Literal["source", "target", "both"] = "target",
        **kwargs: Any,
    ) -> None:
        backbone = partial(FeedForward, hidden=list(hidden), activation="sigmoid")
        super().__init__(backbone=backbone, standardize=True, train_on=train_on, **kwargs)
