"""The decoders of methods that reconstruct samples."""

from math import prod

import torch
from torch import nn

from lightning_da.networks.backbones import FeedForward


def decoder(width: int, hidden: tuple[int, ...], input_shape: tuple[int, ...]) -> nn.Sequential:
    """A decoder (n, width) -> (n, prod(input_shape)). The global random state does not change: dropout draws as before.

    Args:
        width: Width of the features.
        hidden: Width of each hidden layer.
        input_shape: Shape of one sample.
    """
    with torch.random.fork_rng(devices=[]):
        layers = FeedForward((width,), list(hidden))
        return nn.Sequential(layers, nn.Linear(layers.num_features, prod(input_shape)))
