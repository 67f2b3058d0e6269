"""Backbones: networks that compute one feature vector per sample, with a list of their layers in order of depth."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.errors import ConfigError, check_range, list_choices, one_line
from lightning_da.networks.layers import find_layers
from lightning_da.networks.weights import not_finite


class Backbone(nn.Module):
    """A network `x -> (B, num_features)`.

    The first argument of a subclass is `input_shape`, the shape of one sample.

    Attributes:
        num_features: Width of the output.
        layers: Names of the submodules that can be adapted, frozen and measured, in order of depth.
            `lightning_da.networks.layers.find_layers` finds them in an `nn.Sequential` or a timm model.
        channels_last: Whether feature maps of the layers are (B, H, W, C) instead of (B, C, H, W).
        pretrained: Whether `load_pretrained` has weights to load.
        reads_words: Whether samples are sentences (see `lightning_da.data.Sentences`).
        reads_units: Whether the values of samples have units, which `standardize` would take from them.
    """

    num_features: int
    layers: list[str]
    channels_last = False
    pretrained = False
    reads_words = False
    reads_units = False

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> None:
        """Takes what the network needs to know of the training samples, without their labels: a vocabulary for example.

        Called when a fit begins, but not when a checkpoint is loaded.

        Args:
            samples: From `source` or `target` to chunks of samples as the network reads them, each of shape (b,
                *input_shape).
        """

    def load_pretrained(self) -> None:
        """Loads pretrained weights. Called when a fit begins, but not when a checkpoint is loaded."""


PATIENCE = 10.0
"""Seconds in which a server of weights has to answer."""
BackboneCallable = Callable[[tuple[int, ...]], Backbone]
"""Function from the shape of one sample to a backbone: a subclass of Backbone, possibly with some arguments fixed."""


class LeNet(Backbone):
    """The MNIST network of the DANN paper (Ganin et al., JMLR 2016, figure 4a), without its output layer.

    conv 5x5-32, ReLU, max-pool, conv 5x5-48, ReLU, max-pool, fc-100, ReLU, fc-100, ReLU.

    Source: https://arxiv.org/abs/1505.07818

    Args:
        input_shape: (channels, height, width), height and width at least 16.
        batch_norm: Whether to add batch normalisation after each convolution and hidden layer; the paper has none.
        dropout: Dropout rate of whole channels after the second convolution; the paper has none.

    Raises:
        ConfigError: If `input_shape` is not an image shape, or smaller than 16 x 16.
    """

    def __init__(self, input_shape: tuple[int, ...], batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 16:
            raise ConfigError(
                "LeNet reads images of shape (channels, height, width) with at least 16 x 16 pixels, "
                f"not {input_shape}; for vectors use FeedForward"
            )
        check_range("dropout", dropout, 0, 1)
        channels, height, width = input_shape
        pooled = [((side - 4) // 2 - 4) // 2 for side in (height, width)]

        def norm(features: int, kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]) -> list[nn.Module]:
            return [kind(features)] if batch_norm else []

        self.conv1 = nn.Sequential(nn.Conv2d(channels, 32, 5), *norm(32, nn.BatchNorm2d), nn.ReLU(), nn.MaxPool2d(2))
        channels_off = [nn.Dropout2d(dropout)] if dropout else []
        self.conv2 = nn.Sequential(
            nn.Conv2d(32, 48, 5), *norm(48, nn.BatchNorm2d), *channels_off, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.fc1 = nn.Sequential(nn.Linear(48 * pooled[0] * pooled[1], 100), *norm(100, nn.BatchNorm1d), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(100, 100), *norm(100, nn.BatchNorm1d), nn.ReLU())
        self.layers = ["conv1", "conv2", "fc1", "fc2"]
        self.num_features = 100

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, 100) of images (B, C, H, W)."""
        features: Tensor = self.fc2(self.fc1(self.conv2(self.conv1(x))))
        return features


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class FeedForward(Backbone):
    """Fully connected layers, as a backbone for vectors or as a bottleneck.

    Args:
        input_shape: Shape of one sample, which is flattened.
        hidden: Width of each hidden layer.
        activation: Activation function of every layer.
        dropout: Dropout rate after each hidden layer; a list has one rate per layer.
        batch_norm: Whether to add batch normalisation after each linear layer.
        orthogonal: Whether weights start orthogonal and biases at 0, so that a linear layer that is not narrower than
            its input keeps all distances at first; otherwise as torch draws them.

    Raises:
        ConfigError: If `hidden` is empty, or the length of `dropout` differs from the length of `hidden`.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        hidden: list[int],
        activation: Literal["relu", "sigmoid", "tanh"] = "relu",
        dropout: float | list[float] = 0.0,
        batch_norm: bool = False,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        rates = dropout if isinstance(dropout, list) else [dropout] * len(hidden)
        if not hidden or len(rates) != len(hidden):
            raise ConfigError(f"FeedForward needs a hidden layer and one dropout rate per layer: {hidden=}, {dropout=}")
        check_range("hidden", hidden, 1)
        check_range("dropout", rates, 0, 1)
        width = 1
        for side in input_shape:
            width *= side
        self.layers = [f"fc{i}" for i in range(1, len(hidden) + 1)]
        for layer, out, rate in zip(self.layers, hidden, rates, strict=True):
            linear = nn.Linear(width, out)
            if orthogonal:
                nn.init.orthogonal_(linear.weight)
                nn.init.zeros_(linear.bias)
            parts: list[nn.Module] = [linear]
            if batch_norm:
                parts.append(nn.BatchNorm1d(out))
            parts.append(ACTIVATIONS[activation]())
            if rate:
                parts.append(nn.Dropout(rate))
            self.add_module(layer, nn.Sequential(*parts))
            width = out
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, hidden[-1]) of samples (B, *input_shape)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
        return x


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    Args:
        input_shape: (channels, height, width).
        model: Name of the model in timm, for example `resnet50`.
        weights: `random`, `pretrained` (downloaded by timm), or the path of a weight file (.pth, .safetensors).
            They are read when a fit begins; a checkpoint of the run does not need them.
        flatten: Whether the features are the flattened last feature map, instead of the input of the classifier.
        model_args: Further arguments of the model's constructor.

    Raises:
        ConfigError: If timm has no such model, `input_shape` is not an image shape, or the weight file is missing
            when a fit begins.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        model: str = "resnet18",
        weights: str = "random",
        flatten: bool = False,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ConfigError(f"{model} reads images of shape (channels, height, width), not {input_shape}")
        import timm  # noqa: PLC0415  # slow to import, and only this backbone needs it

        if not timm.is_model(model):
            raise ConfigError(f"timm has no model {model!r}; {list_choices(model, timm.list_models())}")
        self.name, self._weights = model, weights
        self._args = {"in_chans": input_shape[0], **(model_args or {})}
        self._args |= {"features_only": True, "out_indices": [-1]} if flatten else {"num_classes": 0}
        self._flatten = flatten
        self.pretrained = weights != "random"
        self.model = timm.create_model(model, pretrained=False, **self._args)
        self.channels_last = getattr(self.model, "output_fmt", None) == "NHWC"
        if flatten:
            with torch.no_grad():
                self.num_features = self.eval()(torch.zeros(1, *input_shape)).shape[1]
            self.train()
        else:
            network: Any = self.model
            self.num_features = getattr(network, "head_hidden_size", None) or network.num_features
        self.layers = [f"model.{name}" for name in find_layers(self.model)]

    def load_pretrained(self) -> None:
        """Loads `weights` from timm's download or from a file."""
        if self._weights == "random":
            return
        import timm  # noqa: PLC0415

        overlay = None
        if self._weights != "pretrained":
            if not Path(self._weights).is_file():
                raise ConfigError(
                    f"backbone weights: no file {self._weights!r}; give a path, or `pretrained` to download them"
                )
            overlay = {"file": self._weights}
        with torch.random.fork_rng(devices=[]):
            fresh = timm.create_model(self.name, pretrained=False, **self._args).state_dict()
        try:
            if overlay is None and (repository := timm.get_pretrained_cfg_value(self.name, "hf_hub_id")):
                _check_server(repository)
            donor = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **self._args)
        except Exception as error:  # a broken file raises exceptions of many kinds
            cause = f"({type(error).__name__}: {one_line(error)})"
            if overlay is None:
                raise ConfigError(
                    f"backbone weights: those of {self.name} cannot be downloaded {cause}; without a network, give a "
                    "file (--model.backbone.weights FILE) or `random`"
                ) from error
            raise ConfigError(
                f"backbone weights {self._weights!r}: the file is cut off, or has no weights of {self.name} {cause}"
            ) from error
        self._check_loaded(fresh, donor.state_dict())
        self.model.load_state_dict(donor.state_dict())

    def _check_loaded(self, fresh: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
        """Refuses weights that leave a part of the network random, or that are not finite.

        Args:
            fresh: Parameters and buffers of the network with the same random weights, before the weights are loaded.
            loaded: The same afterwards.
        """
        drawn = [name for name, value in fresh.items() if value.ndim > 1]
        left = [name for name in drawn if torch.equal(fresh[name], loaded[name])]
        if left:
            raise ConfigError(
                f"backbone weights {self._weights!r}: {len(drawn) - len(left)} of the {len(drawn)} weight tensors of "
                f"{self.name} are in the file; the first missing one is {left[0]}; give weights of the same model"
            )
        if broken := not_finite(loaded, fresh):
            raise ConfigError(f"backbone weights {self._weights!r}: {broken[0]} holds NaN or infinite values")

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, num_features) of images (B, C, H, W)."""
        features: Tensor = self.model(x)[-1].flatten(1) if self._flatten else self.model(x)
        return features


def _check_server(repository: str) -> None:
    """Asks the server of weights once, if they are not on this machine: a download without a network tries for minutes.

    Args:
        repository: Name of the weights on the server.

    Raises:
        Exception: If the server does not answer within `PATIENCE`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        snapshot_download(repository, local_files_only=True)
    except LocalEntryNotFoundError:
        with suppress(HfHubHTTPError):  # it has answered; the download says more
            get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=PATIENCE)
