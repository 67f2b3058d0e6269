"""Networks that compute pictures, from noise or from pictures of another domain, and that judge parts of them."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
            f"this method makes pictures of shape (channels, height, width), with sides that are multiples of {STEP}, "
            f"not {shape}; for other samples use --config method/dann.yaml"
        )


class Between(nn.Module):
    """Brings values between the smallest and the largest one of the samples, by the logistic function; 0 is their mean.

    Args:
        shape: Shape of one sample; each place has a mean of its own.
    """

    low: Tensor
    high: Tensor
    mean: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        for name, value in {
            "low": torch.tensor(0.0),
            "high": torch.tensor(1.0),
            "mean": torch.full(shape, 0.5),
        }.items():
            self.register_buffer(name, value)

    def fit(self, samples: Iterable[Tensor]) -> None:
        """Takes smallest, largest and mean values of samples, in chunks of shape (n, *shape)."""
        ends, sums, number = [], torch.zeros_like(self.mean), 0
        for x in samples:
            ends.append(torch.stack(x.aminmax()))
            sums, number = sums + x.sum(dim=0), number + len(x)
        self.low.copy_(torch.stack(ends)[:, 0].min())
        self.high.copy_(torch.stack(ends)[:, 1].max())
        self.mean.copy_(sums / number)

    def forward(self, x: Tensor) -> Tensor:
        span = (self.high - self.low).clamp(min=1e-12)
        return self.low + span * (x + ((self.mean - self.low) / span).logit(eps=0.01)).sigmoid()


def generator(noise: int, shape: tuple[int, ...], width: int = 8) -> nn.Sequential:
    """A generator (n, noise) -> (n, *shape) of pictures: `first`, `middle` and `last` layers, then `Between`.

    Source: Radford et al., "Unsupervised representation learning with deep convolutional generative adversarial
    networks", ICLR 2016, figure 1, with group normalisation, so that no picture depends on another.
    https://arxiv.org/abs/1511.06434

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
        grown = [nn.Upsample(scale_factor=2), nn.Conv2d(width, width // 2, 3, padding=1)]
        return [*grown, nn.GroupNorm(1, width // 2), nn.ReLU()]

    first = [nn.Linear(noise, 4 * width * height * side), nn.Unflatten(1, (4 * width, height, side)), nn.ReLU()]
    return nn.Sequential(
        OrderedDict(
            first=nn.Sequential(*first),
            middle=nn.Sequential(*doubled(4 * width)),
            last=nn.Sequential(*doubled(2 * width), nn.Conv2d(width, channels, 3, padding=1)),
            between=Between(shape),
        )
    )


class Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        added = x
        for layer in self:
            added = layer(added)
        return x + added


def translator(shape: tuple[int, ...], width: int = 16, blocks: int = 2) -> Residual:
    """A translator (n, *shape) -> (n, *shape) of pictures into another style; at first it changes nothing.

    Squares of 2 x 2 pixels become feature maps of half the height and width, on which residual blocks compute what is
    added to the picture.

    Source: Zhu et al., "Unpaired image-to-image translation using cycle-consistent adversarial networks", ICCV 2017,
    section 4, with fewer and smaller blocks, and the picture added to the output. https://arxiv.org/abs/1703.10593

    Args:
        shape: Shape of one picture, (channels, height, width).
        width: Number of feature maps.
        blocks: Number of residual blocks, of two convolutions each.

    Raises:
        ConfigError: If `shape` is not that of pictures (see `check_pictures`).
    """
    check_pictures(shape)

    def conv(channels: int, out: int) -> nn.Conv2d:
        return nn.Conv2d(channels, out, 3, padding=1)

    def block() -> Residual:
        return Residual(conv(width, width), nn.GroupNorm(1, width), nn.ReLU(), conv(width, width))

    last = conv(width, 4 * shape[0])
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    first = [nn.PixelUnshuffle(2), conv(4 * shape[0], width), nn.GroupNorm(1, width), nn.ReLU()]
    return Residual(*first, *(block() for _ in range(blocks)), last, nn.PixelShuffle(2))


def patch_discriminator(shape: tuple[int, ...], width: int = 16) -> nn.Sequential:
    """A discriminator (n, *shape) -> (n, 1, height // 4, width // 4) of pictures: one answer for each part of one.

    A part has 18 x 18 pixels.

    Source: Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017, section 3.2.2.
    https://arxiv.org/abs/1611.07004

    Args:
        shape: Shape of one picture, (channels, height, width).
        width: Number of feature maps after the first layer.

    Raises:
        ConfigError: If a side has fewer than 4 pixels.
    """
    if min(shape[1:]) < STEP:
        raise ConfigError(f"a discriminator reads at least {STEP} x {STEP} pixels, not {shape}")
    return nn.Sequential(
        *(nn.Conv2d(shape[0], width, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(1, 2 * width), nn.LeakyReLU(0.2)),
        nn.Conv2d(2 * width, 1, 3, padding=1),
    )
