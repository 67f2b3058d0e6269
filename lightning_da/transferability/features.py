"""From a network to features: the activations of its layers on a fixed sample of both domains."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal
from weakref import WeakSet

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_da.data.base import UNKNOWN, DomainPairDataModule
from lightning_da.errors import ConfigError, list_choices
from lightning_da.gather import gather
from lightning_da.methods import TransferModule
from lightning_da.transferability.depth import FEWEST, Features

_warned: WeakSet[L.Trainer] = WeakSet()
"""Trainers for which it is said that there are too few samples."""

WIDTH = 256
"""Wider features are projected to so many dimensions."""


@cache
def _projection(width: int) -> Tensor:
    return torch.randn(width, WIDTH, generator=torch.Generator().manual_seed(width)).div_(WIDTH**0.5)


def project(features: Tensor) -> Tensor:
    """Features of more than 256 dimensions brought to 256 by a fixed random map, which keeps distances.

    Squared distances are kept in the mean, with a relative deviation of sqrt(2 / 256) = 9 %.

    Source: Johnson and Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984.

    Args:
        features: Shape (n, d), floating point.

    Returns:
        Shape (n, min(d, 256)), float32 on the CPU.
    """
    kept = features.float().cpu()
    return kept if kept.shape[1] <= WIDTH else torch.mm(kept, _projection(kept.shape[1]))


def check_layers(module: TransferModule, layers: Sequence[str] | Literal["auto"]) -> list[str]:
    """The layers to look at, `bottleneck` and `head` included.

    Raises:
        ConfigError: If the backbone has no submodule of such a name.
    """
    if layers == "auto":
        return module.depths
    known = [*dict(module.backbone.named_modules()), *module.depths]
    for layer in layers:
        if layer not in known:
            raise ConfigError(f"layers: the network has no layer {layer!r}; {list_choices(layer, module.depths)}")
        if list(layers).count(layer) > 1:
            raise ConfigError(f"layers: {layer!r} is there twice; keep one")
    return list(layers)


@torch.no_grad()
def collect(
    trainer: L.Trainer, module: TransferModule, data: DomainPairDataModule, layers: Iterable[str], samples: int
) -> dict[str, Features]:
    """Passes a fixed sample of both validation splits through a network, once.

    The network is left as it was found: weights, gradients, statistics, modes, and the random state as well. Every
    process passes its share and returns the whole.

    Args:
        trainer: Its precision and device are used.
        module: The network, on the device.
        data: The two domains.
        layers: Names of layers.
        samples: How many of each domain at most.

    Returns:
        Pooled and projected activations of each layer, on the CPU; if there is one domain, it is source and target.
        Nothing if a domain has fewer validation samples than can be measured.

    Raises:
        ConfigError: If `samples` are too few.
    """
    layers, fewest = list(layers), max(FEWEST, trainer.world_size)
    if samples < fewest:
        raise ConfigError(f"samples: {samples} of each domain are too few; give {fewest} or more")
    if min(len(data.names(domain, "val")) for domain in data.domains) < fewest:
        if trainer not in _warned:
            rank_zero_warn(
                f"no transferability curves and no scores: a domain has fewer than {fewest} validation samples; give "
                "it a larger validation split, data.val_share for example"
            )
        _warned.add(trainer)
        return {}
    modes = [(part, part.training) for part in module.modules()]
    parts: dict[str, list[Tensor]] = {}
    labels = {}
    with isolate_rng():
        module.eval()
        try:
            for domain in data.domains:
                rows: list[list[Tensor]] = [[] for _ in layers]
                seen = []
                for x, y in data.sample_dataloader(domain, "val", samples):
                    with trainer.precision_plugin.forward_context():
                        moved = trainer.precision_plugin.convert_input(x.to(module.device))
                        _, activations = module.activations(moved, domain, layers)
                    for kept, layer, activation in zip(rows, layers, activations, strict=True):
                        kept.append(activation.float().cpu() if layer == "head" else project(activation))
                    seen.append(torch.full((len(y),), UNKNOWN) if data.regression or data.masks else y)
                labels[domain] = gather(torch.cat(seen).to(module.device)).cpu()
                for layer, kept in zip(layers, rows, strict=True):
                    parts.setdefault(layer, []).append(gather(torch.cat(kept).to(module.device)).cpu())
        finally:
            for part, mode in modes:
                part.training = mode
    return {
        layer: Features(both[0], both[-1], labels[data.domains[0]], labels["target"]) for layer, both in parts.items()
    }
