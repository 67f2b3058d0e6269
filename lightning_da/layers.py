"""Reading the output of a network's layers, and what lies at which depth."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def capture(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Records what the named submodules return while the block runs.

    Args:
        module: Any network.
        names: Names of its submodules, as in `named_modules()`.

    Yields:
        A dictionary from name to the output of the latest call, gradient attached.

    Raises:
        AttributeError: If the network has no submodule of such a name.
    """
    outputs: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: outputs.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def as_vectors(activation: Tensor) -> Tensor:
    """One vector a sample: feature maps (B, C, H, W) and tokens (B, N, C) are averaged over positions.

    Args:
        activation: Shape (B, d), (B, N, C) or (B, C, H, W).

    Returns:
        Shape (B, d) or (B, C).
    """
    if activation.ndim == 4:
        return activation.mean(dim=(2, 3))
    if activation.ndim == 3:
        return activation.mean(dim=1)
    return activation


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
