from typing import Any, Literal

from lightning_da.errors import ConfigError
from lightning_da.layers import module_depths
from lightning_da.methods.base import TransferModule
from lightning_da.tracking import load_weights


class FineTune(TransferModule):
    """Supervised training, from random weights, from pretrained ones or from an earlier run.

    On the source it is the lower bound of every adaptation method (source-only), on a labelled target the upper bound.

    Args:
        train_on: The domains whose labels are read.
        init_from: An earlier run whose backbone and bottleneck the fit starts from: its checkpoint file, or its
            MLflow run id or name. It is read when a fit begins: a checkpoint of this run does not need it.
        init_layers: How many of that run's backbone layers, counted from the input, the fit starts from; the rest of
            the network is then new, the bottleneck included.
        keep_head: Whether to start from the earlier run's head as well; otherwise the head is new.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If `keep_head` or `init_layers` is set without `init_from`, if `init_layers` exceeds the number of
            layers, or if a head is to be kept on layers that are new.
    """

    def __init__(
        self,
        train_on: Literal["source", "target", "both"] = "source",
        init_from: str | None = None,
        init_layers: int | Literal["all"] = "all",
        keep_head: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if keep_head and init_from is None:
            raise ConfigError("keep_head: there is no head to keep without init_from")
        copied: tuple[str, ...] = ("backbone.", "bottleneck.")
        if init_layers != "all":
            depth = len(self.backbone.layers)
            if init_from is None or keep_head or not 1 <= init_layers <= depth:
                raise ConfigError(
                    f"init_layers: {init_layers} needs init_from, 1 to {depth} layers, and a new head (keep_head false)"
                )
            copied = self._first_layers(init_layers)
        self.supervised = ("source", "target") if train_on == "both" else (train_on,)
        self.init_from = init_from
        self._initialised = (*copied, "head.") if keep_head else copied

    def _first_layers(self, number: int) -> tuple[str, ...]:
        """Names of the parameters and buffers of the backbone's first layers."""
        depths = dict(module_depths(self.backbone, self.backbone.layers))
        return tuple(
            ".".join(filter(None, ("backbone", name, own)))
            for name, module in self.backbone.named_modules()
            if depths[module] < number
            for own in (*module._parameters, *module._buffers)
        )

    def starts_random(self) -> bool:
        return self.init_from is None and super().starts_random()

    def initialise(self) -> None:
        super().initialise()
        if self.init_from is not None:
            load_weights(self, self.init_from, self._initialised)
