"""Parts of a network that treat the domains apart: batch normalisation with statistics of each domain."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_da.networks.standardize import Standardize


class PerDomainNorm(nn.Module):
    """A batch-norm layer with separate statistics for each domain, and shared weight and bias.

    Source: Li et al., "Adaptive batch normalization for practical domain adaptation", Pattern Recognition 2018.
    https://arxiv.org/abs/1603.04779

    Args:
        norm: The batch-norm layer to replace.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.source, self.target = norm, copy.deepcopy(norm)
        self.target.weight, self.target.bias = norm.weight, norm.bias
        self._domain = "target"

    def set_domain(self, domain: str) -> None:
        """Sets the domain of the next samples, `source` or `target`."""
        self._domain = domain

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # weights of a network with ordinary batch norm, for example pretrained weights, are copied to both domains
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if prefix + part in state_dict:
                value = state_dict.pop(prefix + part)
                state_dict |= {f"{prefix}{domain}.{part}": value for domain in ("source", "target")}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.get_submodule(self._domain)(x)
        return normalised


def split_norms(network: nn.Module) -> None:
    """Replaces every batch-norm layer in a network with a `PerDomainNorm`."""
    for name, child in list(network.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(network, name, PerDomainNorm(child))
        else:
            split_norms(child)


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


def set_domain(network: nn.Module, domain: str | Mapping[str, int]) -> None:
    """Sets the domain of the next samples in every part of a network that treats the domains apart.

    Args:
        network: The network. With a `PerDomainNorm` it reads one domain at a time.
        domain: `source` or `target`; for a batch of both, the number of samples of each, in order.
    """
    for module in network.modules():
        if isinstance(module, Standardize):
            module.set_domain(domain)
        elif isinstance(module, PerDomainNorm):
            module.set_domain(cast(str, domain))
