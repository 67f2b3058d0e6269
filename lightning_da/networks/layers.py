"""The layers of a network: which there are, what they return, and what lies at which depth."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_da.errors import ConfigError


def find_layers(network: nn.Module) -> list[str]:
    """Names of submodules at which to look at a network, in the order of depth.

    Of a timm model they are the stages or blocks that its `feature_info` names. Of any other network they are its
    children, each with the activation, norm and pooling that follow it: the name is that of the last of them, whose
    output is what the next layer reads. What has no weights before the first layer belongs to it.

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
    """Records what the named submodules return while the block runs.

    Args:
        module: Any network.
        names: Names of its submodules, as in `named_modules()`.
        keep: What is kept of an output, a smaller tensor say.

    Yields:
        A dictionary from name to the output of the latest call, gradient attached.

    Raises:
        AttributeError: If the network has no submodule of such a name.
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
    """One vector a sample: feature maps (B, C, H, W) and tokens (B, N, C) are averaged over positions.

    What comes out is a tensor of its own: the network may go on in place, as `nn.ReLU(inplace=True)` does.

    Args:
        activation: Shape (B, d), (B, N, C) or (B, C, H, W). The maps (B, C, N) of a one-dimensional convolution cannot
            be told from tokens: let the layer return (B, N, C).
        channels_last: Whether feature maps are (B, H, W, C).

    Returns:
        Shape (B, d) or (B, C).

    Raises:
        ConfigError: If it is no tensor of such a shape.
    """
    if not isinstance(activation, Tensor) or activation.ndim not in (2, 3, 4):
        found = f"shape {tuple(activation.shape)}" if isinstance(activation, Tensor) else type(activation).__name__
        raise ConfigError(f"a layer returns {found}, not (B, d), (B, N, C) or (B, C, H, W); name other layers")
    if activation.ndim == 4:
        return activation.mean(dim=(1, 2) if channels_last else (2, 3))
    return activation.mean(dim=1) if activation.ndim == 3 else activation.clone()


def module_depths(network: nn.Module, layers: list[str]) -> list[tuple[nn.Module, int]]:
    """The depth of every submodule, counted in `layers`.

    What is registered before the end of layer i, and after the end of the layer before it, has depth i: a stem
    belongs to the first layer. What follows the last layer (a final norm, say) has depth `len(layers)`.

    Args:
        network: A network whose submodules are registered in the order of depth.
        layers: Names of submodules in the order of depth.

    Returns:
        Pairs of submodule and depth, the network itself first.
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
