"""Layers of a backbone that keep their weights, for the whole training or for its beginning."""

from typing import Literal

from torch import nn

from lightning_da.errors import ConfigError
from lightning_da.networks.backbones import Backbone
from lightning_da.networks.layers import module_depths


class Freezing:
    """The frozen layers of a backbone, counted from the input.

    Source: gradual unfreezing, Howard and Ruder, "Universal language model fine-tuning", ACL 2018, section 3.3.

    Args:
        backbone: The network.
        freeze: Number of frozen layers; `all` includes what follows the last named layer.
        unfreeze_by: The fraction of training after which no layer is frozen any more; None keeps all of them frozen.

    Raises:
        ConfigError: If `freeze` exceeds the number of layers, or `unfreeze_by` has nothing to release.
    """

    def __init__(self, backbone: Backbone, freeze: int | Literal["all"], unfreeze_by: float | None) -> None:
        depth = len(backbone.layers)
        if freeze != "all" and not 0 <= freeze <= depth:
            raise ConfigError(f"freeze: {freeze} of the backbone's {depth} layers; give 0 to {depth}, or all")
        if unfreeze_by is not None and not (freeze and 0 < unfreeze_by <= 1):
            raise ConfigError(f"unfreeze_by: {unfreeze_by} needs layers to release (freeze) and a value in (0, 1]")
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
        """Whether the frozen layers are released in the course of training."""
        return self._unfreeze_by is not None

    def _parameters(self) -> list[nn.Parameter]:
        return [
            parameter
            for module, depth in module_depths(self._backbone, self._backbone.layers)
            if depth < self._frozen
            for parameter in module.parameters(recurse=False)
        ]

    def keep_in_eval_mode(self) -> None:
        """Puts the frozen layers into evaluation mode, in which batch-norm statistics do not move."""
        depths = dict(module_depths(self._backbone, self._backbone.layers))
        for module in depths:
            if all(depths[part] < self._frozen for part in module.modules()):
                module.training = False

    def release(self, progress: float) -> bool:
        """Releases the layers that are due, the deepest first.

        Args:
            progress: The progress of training in [0, 1].

        Returns:
            Whether the frozen layers are others than before.
        """
        if self._unfreeze_by is None:
            return False
        before = self._frozen
        self._frozen = max(0, self._first - int(self._first * progress / self._unfreeze_by))
        return self._frozen != before

    def drop_gradients(self) -> None:
        """Takes the gradients of the layers that are still to be released.

        They take part in the graph, since DistributedDataParallel must know them from the start. An optimizer leaves a
        parameter without a gradient as it is, weight decay and momentum included.
        """
        if self._unfreeze_by is not None:
            for parameter in self._parameters():
                parameter.grad = None
