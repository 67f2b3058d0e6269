from typing import Any, Literal

from lightning_da.errors import ConfigError
from lightning_da.methods.base import TransferModule
from lightning_da.networks.layers import module_depths


class FineTune(TransferModule):
    """Supervised training, starting from random weights, pretrained weights or an earlier run.

    Trained on the source it is the lower bound for adaptation methods (source-only), on the target the upper bound.

    Args:
        init_layers: Number of backbone layers, counted from the input, copied from the run `init_from`. With a number,
            all other layers are new, including the bottleneck; `all` copies backbone and bottleneck.
        keep_head: Whether to copy the head of the run `init_from` too; otherwise the head is new.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If `keep_head` or `init_layers` is set without `init_from`, both are set, or `init_layers` is not
            between 1 and the number of layers.
    """

    def __init__(
        self,
        init_layers: int | Literal["all"] = "all",
        keep_head: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if keep_head and not self.starts_from:
            raise ConfigError("keep_head: it needs the run to copy the head from; set --model.init_from")
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
        """Names of the parameters and buffers in the first layers of the backbone."""
        depths = dict(module_depths(self.backbone, self.backbone.layers))
        return tuple(
            ".".join(filter(None, ("backbone", name, own)))
            for name, module in self.backbone.named_modules()
            if depths[module] < number
            for own in (*module._parameters, *module._buffers)
        )
