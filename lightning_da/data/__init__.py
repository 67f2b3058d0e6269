from lightning_da.data.base import DataError, DomainPairDataModule, TensorDomain
from lightning_da.data.digits import Digits

__all__ = ["DataError", "Digits", "DomainPairDataModule", "TensorDomain"]
