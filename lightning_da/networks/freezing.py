"""Frozen layers of a backbone, and gradual unfreezing."""

from typing import Literal

from torch import nn

from lightning_da.errors import ConfigError
from lightning_da.networks.backbones import Backbone
from lightning_da.networks.layers import module_depths


class Freezing:
    """The frozen layers of a backbone, counted from the input.

    Source: gradual unfreezing, Howard and Ruder, "Universal language model fine-tuning", ACL 2018, section 3.3.
    https://arxiv.org/abs/1801.06146

    Args:
        backbone: The network.
        freeze: Number of frozen layers; `all` also freezes modules after the last named layer.
        unfreeze_by: Fraction of training after which all layers are unfrozen; None keeps them frozen.

    Raises:
        ConfigError: If `freeze` is not between 0 and the number of layers, `unfreeze_by` is not in (0, 1], or
            `unfreeze_by` is set without frozen layers.
    """

    def __init__(self, backbone: Backbone, freeze: int | Literal["all"], unfreeze_by: float | None) -> None:
        depth = len(backbone.layers)
        if freeze != "all" and not 0 <= freeze <= depth:
            raise ConfigError(f"freeze: {freeze} of the backbone's {depth} layers; give 0 to {depth}, or all")
        if unfreeze_by is not None and not (freeze and 0 < unfreeze_by <= 1):
            raise ConfigError(
                f"unfreeze_by: {unfreeze_by} must be in (0, 1] and needs frozen layers; set --model.freeze"
            )
        self._backbone, self._unfreeze_by = backbone, unfreeze_by
        self._first = depth + 1 if freeze == "all" else freeze
        self._frozen = self._first
        if unfreeze_by is None:
            for parameter in self._parameters():
                parameter.requires_grad_(False)

    @property
    def any(self) -> bool:
        """Whether any layer is frozen at the start of training."""
        return self._first > 0

    @property
    def gradual(self) -> bool:
        """Whether the frozen layers are unfrozen during training."""
        return self._unfreeze_by is not None

    def _parameters(self) -> list[nn.Parameter]:
        return [
            parameter
            for module, depth in module_depths(self._backbone, self._backbone.layers)
            if depth < self._frozen
            for parameter in module.parameters(recurse=False)
        ]

    def keep_in_eval_mode(self) -> None:
        """Puts the frozen layers into evaluation mode, so that their batch-norm statistics do not change."""
        depths = dict(module_depths(self._backbone, self._backbone.layers))
        for module in depths:
            if all(depths[part] < self._frozen for part in module.modules()):
                module.training = False

    def release(self, progress: float) -> bool:
        """Unfreezes the layers that are due, the deepest first.

        Args:
            progress: The progress of training in [0, 1].

        Returns:
            Whether the frozen layers changed.
        """
        if self._unfreeze_by is None:
            return False
        before = self._frozen
        self._frozen = max(0, self._first - int(self._first * progress / self._unfreeze_by))
        return self._frozen != before

    def drop_gradients(self) -> None:
        """Removes the gradients of the layers that will be unfrozen later.

        These layers are part of the graph, because DistributedDataParallel needs them from the start. Without a
        gradient, the optimizer does not change a parameter, not even through weight decay or momentum.
        """
        if self._unfreeze_by is not None:
            for parameter in self._parameters():
                parameter.grad = None
