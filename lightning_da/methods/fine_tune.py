from typing import Any, Literal

from lightning_da.errors import ConfigError
from lightning_da.methods.base import TransferModule
from lightning_da.tracking import load_weights


class FineTune(TransferModule):
    """Supervised training, from random weights, from pretrained ones or from an earlier run.

    On the source it is the lower bound of every adaptation method (source-only), on a labelled target the upper bound.

    Args:
        train_on: The domains whose labels are read.
        init_from: An earlier run whose backbone and bottleneck the fit starts from: its checkpoint file, or its
            MLflow run id or name. It is read when a fit begins: a checkpoint of this run does not need it.
        keep_head: Whether to start from the earlier run's head as well; otherwise the head is new.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If `keep_head` is set without `init_from`.
    """

    def __init__(
        self,
        train_on: Literal["source", "target", "both"] = "source",
        init_from: str | None = None,
        keep_head: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if keep_head and init_from is None:
            raise ConfigError("keep_head: there is no head to keep without init_from")
        self.supervised = ("source", "target") if train_on == "both" else (train_on,)
        self.init_from = init_from
        self._initialised = ("backbone.", "bottleneck.", "head.") if keep_head else ("backbone.", "bottleneck.")

    def starts_random(self) -> bool:
        return self.init_from is None and super().starts_random()

    def initialise(self) -> None:
        super().initialise()
        if self.init_from is not None:
            load_weights(self, self.init_from, self._initialised)
