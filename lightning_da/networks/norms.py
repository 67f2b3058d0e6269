"""Parts of a network that treat the domains apart: layers, and batch normalisation with statistics, of each domain."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_da.errors import ConfigError
from lightning_da.networks.backbones import Backbone
from lightning_da.networks.layers import module_depths
from lightning_da.networks.standardize import Standardize


class PerDomain(nn.Module):
    """A layer of which each domain has its own, with weights that are equal at first.

    Args:
        layer: The layer to replace.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.source, self.target = layer, copy.deepcopy(layer)
        self._domain = "target"

    def set_domain(self, domain: str) -> None:
        """Sets the domain of the next samples, `source` or `target`."""
        self._domain = domain

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # weights of a network whose layer serves both domains, for example pretrained weights, are copied to both
        own = {f"{prefix}{domain}." for domain in ("source", "target")}
        for key in [key for key in state_dict if key.startswith(prefix) and not key.startswith(tuple(own))]:
            value = state_dict.pop(key)
            state_dict |= {place + key.removeprefix(prefix): value for place in own}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.get_submodule(self._domain)(x)
        return found


class PerDomainNorm(PerDomain):
    """A batch-norm layer with separate statistics for each domain, and shared weight and bias.

    Source: Li et al., "Adaptive batch normalization for practical domain adaptation", Pattern Recognition 2018.
    https://arxiv.org/abs/1603.04779

    Args:
        norm: The batch-norm layer to replace.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm)
        self.target.weight, self.target.bias = norm.weight, norm.bias


def split_norms(network: nn.Module) -> None:
    """Replaces every batch-norm layer in a network with a `PerDomainNorm`."""
    for name, child in list(network.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(network, name, PerDomainNorm(child))
        else:
            split_norms(child)


def split_layers(backbone: Backbone, number: int) -> Backbone:
    """Gives each domain its own first layers of a backbone; the layers after them serve both domains.

    Args:
        backbone: The backbone, which is changed.
        number: Number of its `layers` that each domain has for itself.

    Returns:
        The backbone.

    Raises:
        ConfigError: If `number` exceeds the number of layers.
    """
    if not 0 <= number <= len(backbone.layers):
        raise ConfigError(
            f"own_layers: {number} of the backbone's {len(backbone.layers)} layers; give 0 to that number"
        )
    depths = dict(module_depths(backbone, backbone.layers))

    def split(network: nn.Module) -> None:
        for name, child in list(network.named_children()):
            if all(depths[part] < number for part in child.modules()):
                setattr(network, name, PerDomain(child))
            elif any(depths[part] < number for part in child.modules()):
                split(child)

    split(backbone)
    return backbone


@contextmanager
def keep_statistics(network: nn.Module) -> Iterator[None]:
    """Within it, a pass through the network does not change the running statistics of batch norm.

    Args:
        network: The network, in training mode.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, copy.deepcopy(norm.num_batches_tracked)) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, number) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and number is not None:
                norm.num_batches_tracked.copy_(number)


@contextmanager
def with_running_statistics(network: nn.Module) -> Iterator[None]:
    """Within it, batch norm uses its running statistics, also in training, and does not change them.

    Args:
        network: The network.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    try:
        for norm in norms:
            norm.eval()
        yield
    finally:
        for norm in norms:
            norm.train()


def set_domain(network: nn.Module, domain: str | Mapping[str, int]) -> None:
    """Sets the domain of the next samples in every part of a network that treats the domains apart.

    Args:
        network: The network. With a `PerDomain` layer it reads one domain at a time.
        domain: `source` or `target`; for a batch of both, the number of samples of each, in order.
    """
    for module in network.modules():
        if isinstance(module, Standardize):
            module.set_domain(domain)
        elif isinstance(module, PerDomain):
            module.set_domain(cast(str, domain))
