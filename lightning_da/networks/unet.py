"""The two halves of a U-Net: an encoder, and a decoder for the feature maps of any backbone."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lightning_da.errors import ConfigError, check_range
from lightning_da.networks.backbones import Backbone
from lightning_da.networks.layers import capture


def _convolutions(channels: int, width: int, number: int, batch_norm: bool = False) -> nn.Sequential:
    """Convolutions of 3 x 3, each with batch or instance normalisation and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise([channels] + number * [width]):
        norm = nn.BatchNorm2d(after) if batch_norm else nn.GroupNorm(after, after)
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers)


class UNetEncoder(Backbone):
    """The contracting half of a U-Net; as a classifier's backbone its last feature map is averaged over positions.

    Each stage has two convolutions, and each but the first halves height and width before them.

    Source: Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI
    2015, figure 1, with borders, instance normalisation and fewer feature maps. https://arxiv.org/abs/1505.04597

    Args:
        input_shape: (channels, height, width).
        widths: Number of feature maps of each stage.
        batch_norm: Whether convolutions have batch normalisation in place of instance normalisation. A classifier needs
            it: an average over positions is what instance normalisation takes away. With instance normalisation no
            image depends on another.

    Raises:
        ConfigError: If `input_shape` is not an image shape, the image is too small for so many stages, or there is no
            stage.
    """

    def __init__(
        self, input_shape: tuple[int, ...], widths: tuple[int, ...] = (8, 16, 32, 32), batch_norm: bool = False
    ) -> None:
        super().__init__()
        check_range("widths", widths, 1)
        if not widths:
            raise ConfigError("widths: the list is empty; give the number of feature maps of each stage")
        if len(input_shape) != 3 or min(input_shape[1:]) < 2 ** len(widths):
            raise ConfigError(
                "UNetEncoder reads images of shape (channels, height, width), at least 2 x 2 pixels in its last stage "
                f"of {len(widths)}, not {input_shape}"
            )
        self.layers = [f"stage{place}" for place in range(1, len(widths) + 1)]
        for layer, channels, width in zip(self.layers, (input_shape[0], *widths), widths, strict=False):
            halved = [] if layer == "stage1" else [nn.MaxPool2d(2)]
            self.add_module(layer, nn.Sequential(*halved, _convolutions(channels, width, 2, batch_norm)))
        self.num_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, widths[-1]) of images (B, C, H, W)."""
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
        return x.mean(dim=(2, 3))


def feature_maps(backbone: Backbone, x: Tensor) -> list[Tensor]:
    """The output of each layer of a backbone, (B, C, H, W), in order of depth.

    Args:
        backbone: The network.
        x: Images, shape (B, C, H, W).

    Raises:
        ConfigError: If a layer has no feature maps.
    """
    with capture(backbone, backbone.layers) as outputs:
        backbone(x)
    for layer in backbone.layers:
        if (found := outputs.get(layer)) is None or found.ndim != 4:
            shape = "no output" if found is None else f"shape {tuple(found.shape[1:])}"
            raise ConfigError(
                f"masks need feature maps of each layer of the backbone, and {layer!r} has {shape}; set "
                "--model.backbone lightning_da.networks.UNetEncoder, or a convolutional TimmBackbone; if the data have "
                "no masks, take another method"
            )
    maps = [outputs[layer] for layer in backbone.layers]
    return [found.movedim(-1, 1) for found in maps] if backbone.channels_last else maps


class Decoder(nn.Module):
    """The expanding half of a U-Net: from an image and the feature maps of a backbone to one map of the image's size.

    A step scales the map so far to the next larger one, puts both side by side, and has a convolution; the last step
    has the image beside it.

    Args:
        backbone: The network whose feature maps it reads.
        input_shape: (channels, height, width) of an image.
        width: Feature maps of the last step; the steps before have twice as many each, at most eight times.

    Attributes:
        num_features: Number of channels of the output.
    """

    def __init__(self, backbone: Backbone, input_shape: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        check_range("decoder", width, 1)
        training = backbone.training
        with torch.no_grad():
            maps = feature_maps(backbone.eval(), torch.zeros(1, *input_shape))
        backbone.train(training)
        below, steps = maps[-1].shape[1], []
        for place, channels in reversed(list(enumerate([input_shape[0], *(part.shape[1] for part in maps[:-1])]))):
            own = width * 2 ** min(place, 3)
            steps.append(_convolutions(below + channels, own, 1))
            below = own
        self.steps, self.num_features = nn.ModuleList(steps), width

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Computes (B, num_features, H, W) of images (B, C, H, W) and the feature maps of the backbone."""
        found = maps[-1]
        for step, beside in zip(self.steps, [*reversed(maps[:-1]), x], strict=True):
            found = step(torch.cat([interpolate(found, beside.shape[2:]), beside], dim=1))
        return found
