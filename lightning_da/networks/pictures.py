"""Networks that compute pictures: a generator from noise."""

from collections import OrderedDict

from torch import nn

from lightning_da.errors import ConfigError

STEP = 4
"""How many times as high and wide a picture is than the smallest feature maps."""


def check_pictures(shape: tuple[int, ...]) -> None:
    """Checks that samples are pictures that the networks of this file compute.

    Args:
        shape: Shape of one sample.

    Raises:
        ConfigError: If it is not (channels, height, width), with sides that are multiples of 4.
    """
    if len(shape) != 3 or any(side % STEP for side in shape[1:]):
        raise ConfigError(
            f"it makes pictures of shape (channels, height, width) with sides that are multiples of {STEP}, not "
            f"{shape}; for other samples use --config method/dann.yaml"
        )


def generator(noise: int, shape: tuple[int, ...], width: int = 16) -> nn.Sequential:
    """A generator (n, noise) -> (n, *shape) of pictures: `first`, `middle` and `last` layers, without batch statistics.

    Source: Radford et al., "Unsupervised representation learning with deep convolutional generative adversarial
    networks", ICLR 2016, figure 1, with group normalisation. https://arxiv.org/abs/1511.06434

    Args:
        noise: Number of random values of a picture.
        shape: Shape of one picture, (channels, height, width).
        width: Number of feature maps before the last layer.

    Raises:
        ConfigError: If `shape` is not that of pictures (see `check_pictures`).
    """
    check_pictures(shape)
    channels, height, side = shape[0], shape[1] // STEP, shape[2] // STEP

    def doubled(width: int) -> list[nn.Module]:
        """Half as many feature maps, twice as high and wide."""
        return [nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.GroupNorm(1, width // 2), nn.ReLU()]

    first = [nn.Linear(noise, 4 * width * height * side), nn.Unflatten(1, (4 * width, height, side)), nn.ReLU()]
    return nn.Sequential(
        OrderedDict(
            first=nn.Sequential(*first),
            middle=nn.Sequential(*doubled(4 * width)),
            last=nn.Sequential(*doubled(2 * width), nn.Conv2d(width, channels, 3, padding=1)),
        )
    )
