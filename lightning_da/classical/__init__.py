"""Methods on vectors, in scikit-learn's manner: they learn from the rows of both domains in seconds."""

from lightning_da.classical.base import Adapter
from lightning_da.classical.source_only import SourceOnly
from lightning_da.classical.tradaboost import TrAdaBoost, TrAdaBoostR2
from lightning_da.classical.transport import JDOT, OptimalTransport
from lightning_da.classical.weights import KLIEP, KMM, InstanceWeighting, Weighted

__all__ = [
    "JDOT",
    "KLIEP",
    "KMM",
    "Adapter",
    "InstanceWeighting",
    "OptimalTransport",
    "SourceOnly",
    "TrAdaBoost",
    "TrAdaBoostR2",
    "Weighted",
]
