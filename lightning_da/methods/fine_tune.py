from typing import Any, Literal

from lightning_da.errors import ConfigError
from lightning_da.methods.base import TransferModule
from lightning_da.networks.layers import module_depths


class FineTune(TransferModule):
    """Supervised training, from random weights, from pretrained ones or from an earlier run.

    On the source it is the lower bound of every adaptation method (source-only), on a labelled target the upper bound.

    Args:
        init_layers: How many of the earlier run's backbone layers, counted from the input, the fit starts from; the
            rest of the network is then new, the bottleneck included.
        keep_head: Whether to start from the earlier run's head as well; otherwise the head is new.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If `keep_head` or `init_layers` is set without `init_from`, if `init_layers` exceeds the number of
            layers, or if a head is to be kept on layers that are new.
    """

    def __init__(
        self,
        init_layers: int | Literal["all"] = "all",
        keep_head: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if keep_head and not self.starts_from:
            raise ConfigError("keep_head: there is no head to keep without init_from")
        copied = self.initialised
        if init_layers != "all":
            depth = len(self.backbone.layers)
            if not self.starts_from or keep_head or not 1 <= init_layers <= depth:
                raise ConfigError(
                    f"init_layers: {init_layers} needs init_from, 1 to {depth} layers, and a new head (keep_head false)"
                )
            copied = self._first_layers(init_layers)
        self.initialised = (*copied, "head.") if keep_head else copied

    def _first_layers(self, number: int) -> tuple[str, ...]:
        """Names of the parameters and buffers of the backbone's first layers."""
        depths = dict(module_depths(self.backbone, self.backbone.layers))
        return tuple(
            ".".join(filter(None, ("backbone", name, own)))
            for name, module in self.backbone.named_modules()
            if depths[module] < number
            for own in (*module._parameters, *module._buffers)
        )
