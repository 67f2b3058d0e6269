from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_da.data.base import DOMAINS, DomainPairDataModule
from lightning_da.methods.base import TransferModule


class OwnClasses(TransferModule):
    """The base of the methods whose domains have classes of their own: each domain chooses among its own.

    Args:
        **kwargs: Arguments of `TransferModule`.
    """

    tasks_differ = True
    """Whether source and target may have different classes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.own: Tensor
        self.register_buffer("own", torch.ones(len(DOMAINS), self.num_classes, dtype=torch.bool))
        self._domain = "target"

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        """Takes the classes of each domain too."""
        super().fit_inputs(data)
        for own, role in zip(self.own, DOMAINS, strict=True):
            names = data.classes_in(role)
            own.copy_(torch.tensor([name in names for name in data.classes]))

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        super().set_domain(domain)
        names = [domain] if isinstance(domain, str) else list(domain)
        if len(names) == 1:
            self._domain = names[0]

    def own_classes(self, domain: str) -> Tensor:
        return self.own[DOMAINS.index(domain)]

    def among_own(self, logits: Tensor) -> Tensor:
        """Logits (B, num_classes), the smallest number there is for the classes that the domain does not have."""
        return logits.masked_fill(~self.own_classes(self._domain), torch.finfo(logits.dtype).min)
