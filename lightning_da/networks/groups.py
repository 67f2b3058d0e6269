"""Parameter groups with different learning rates."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_da.networks.backbones import Backbone
from lightning_da.networks.layers import module_depths


def parameter_groups(
    network: nn.Module,
    backbone: Backbone,
    new: Iterable[nn.Module],
    backbone_scale: float = 1.0,
    layer_decay: float = 1.0,
    new_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """The trainable parameters of a network as optimizer groups.

    Args:
        network: The whole network; parameters outside the parts below form the group `domain`, with factor 1.
        backbone: The backbone, which forms the group `backbone`; with `layer_decay`, the groups `backbone-0`,
            `backbone-1`, ... from the last layer to the first.
        new: Modules with new weights, which form the group `head`.
        backbone_scale: Factor of the learning rate for the backbone.
        layer_decay: Additional factor per backbone layer, from the last layer to the first.
        new_scale: Factor of the learning rate for the new modules.

    Returns:
        Groups with the keys `name`, `lr_scale` and `params`.
    """
    depth = len(backbone.layers)
    scales: dict[nn.Parameter, tuple[str, float]] = {}
    for module, at in module_depths(backbone, backbone.layers):
        below_last = max(depth - 1 - at, 0)
        for parameter in module.parameters(recurse=False):
            name = "backbone" if layer_decay == 1 else f"backbone-{below_last}"
            scales[parameter] = (name, backbone_scale * layer_decay**below_last)
    for part in new:
        scales |= dict.fromkeys(part.parameters(), ("head", new_scale))
    groups: dict[str, dict[str, Any]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            name, scale = scales.get(parameter, ("domain", 1.0))
            groups.setdefault(name, {"name": name, "lr_scale": scale, "params": []})["params"].append(parameter)
    return list(groups.values())
