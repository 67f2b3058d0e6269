"""The layers of a network: their names, activations and depths."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_da.errors import ConfigError


def find_layers(network: nn.Module) -> list[str]:
    """Names of the submodules that are the layers of a network, in order of depth.

    A timm model has the stages or blocks in its `feature_info`. In any other network, each child with weights is a
    layer, together with the activation, norm and pooling after it; its name is the name of the last of these modules,
    whose output is the input of the next layer. Modules without weights before the first layer belong to that layer.

    Args:
        network: A timm model, an `nn.Sequential`, or a network that calls its children in the order of registration.
    """
    stages = [stage["module"] for stage in getattr(network, "feature_info", [])]
    if stages and set(stages) <= dict(network.named_modules()).keys():
        return list(dict.fromkeys(stages))
    layers: list[str] = []
    begun = False
    for name, child in network.named_children():
        weighted = any(parameter.ndim > 1 for parameter in child.parameters())
        if layers and not (weighted and begun):
            layers[-1] = name
        else:
            layers.append(name)
        begun |= weighted
    return layers


@contextmanager
def capture(
    module: nn.Module, names: Iterable[str], keep: Callable[[Tensor], Tensor] = lambda output: output
) -> Iterator[dict[str, Tensor]]:
    """Records the outputs of submodules inside a `with` block.

    Args:
        module: Any network.
        names: Names of its submodules, as in `named_modules()`.
        keep: Function applied to each output before it is stored.

    Yields:
        A dictionary from name to the output of the latest call, with gradient.

    Raises:
        AttributeError: If the network has no submodule with one of the names.
    """
    outputs: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: outputs.__setitem__(name, keep(output))
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def as_vectors(activation: Tensor, channels_last: bool = False) -> Tensor:
    """One vector per sample: feature maps (B, C, H, W) and tokens (B, N, C) are averaged over positions.

    The result shares no memory with the activation, so in-place operations such as `nn.ReLU(inplace=True)` are safe.

    Args:
        activation: Shape (B, d), (B, N, C) or (B, C, H, W). The output (B, C, N) of a one-dimensional convolution
            looks like tokens: let the layer return (B, N, C).
        channels_last: Whether feature maps are (B, H, W, C).

    Returns:
        Shape (B, d) or (B, C).

    Raises:
        ConfigError: If `activation` is not a tensor with 2, 3 or 4 dimensions.
    """
    if not isinstance(activation, Tensor) or activation.ndim not in (2, 3, 4):
        found = f"shape {tuple(activation.shape)}" if isinstance(activation, Tensor) else type(activation).__name__
        raise ConfigError(f"a layer returns {found}, not (B, d), (B, N, C) or (B, C, H, W); choose other layers")
    if activation.ndim == 4:
        return activation.mean(dim=(1, 2) if channels_last else (2, 3))
    return activation.mean(dim=1) if activation.ndim == 3 else activation.clone()


def module_depths(network: nn.Module, layers: list[str]) -> list[tuple[nn.Module, int]]:
    """The depth of every submodule: the index of its layer in `layers`.

    A module between two layers has the depth of the later layer, so a stem belongs to the first layer. A module after
    the last layer, for example a final norm, has depth `len(layers)`.

    Args:
        network: A network whose submodules are registered in order of depth.
        layers: Names of submodules in order of depth.

    Returns:
        Pairs of submodule and depth; the first pair is the network itself.
    """
    depths: list[tuple[nn.Module, int]] = []
    depth, inside = 0, False
    for name, module in network.named_modules():
        if inside and not f"{name}.".startswith(f"{layers[depth]}."):
            depth, inside = depth + 1, False
        if depth < len(layers) and name == layers[depth]:
            inside = True
        depths.append((module, depth))
    return depths
