"""Layers of the backbone that are compiled for training."""

from typing import Any

import lightning as L
import torch

from lightning_da.errors import ConfigError, list_choices

VARIANTS = 8
"""The most versions of a layer that are compiled."""


class CompileLayers(L.Callback):
    """Compiles each of the backbone's `layers` with `torch.compile`, from the start of a fit to its end.

    The names of the weights stay the same, so a checkpoint serves with and without this callback. Compiling takes up to
    minutes as a fit begins, so it pays in a long fit alone. Values differ from those of a fit without it by rounding.

    Args:
        backend: A backend of `torch.compile`; `inductor` needs a C++ compiler on a CPU.

    Raises:
        ConfigError: If there is no such backend.
    """

    def __init__(self, backend: str = "inductor") -> None:
        there = torch.compiler.list_backends(None)
        if backend not in there:
            raise ConfigError(f"backend: torch.compile has no backend {backend!r}; {list_choices(backend, there)}")
        self.backend = backend

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        layers = _layers(pl_module)
        # layers of one class share the count, and each is compiled for training, evaluation and a smaller last batch
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, VARIANTS * len(layers))
        for layer in layers:
            layer.forward = torch.compile(layer.forward, backend=self.backend)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        for layer in _layers(pl_module):
            vars(layer).pop("forward", None)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        self.on_fit_end(trainer, pl_module)


def _layers(module: Any) -> list[Any]:
    return [module.backbone.get_submodule(name) for name in module.backbone.layers]
