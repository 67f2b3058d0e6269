"""Methods on vectors, in scikit-learn's manner: they learn from the rows of both domains in seconds."""

from lightning_da.classical.base import Adapter
from lightning_da.classical.classifiers import ARTL, DTMKL, MEDA
from lightning_da.classical.manifolds import CTC, DIP, DME, StatisticalManifold
from lightning_da.classical.open_sets import ATI
from lightning_da.classical.projections import ACA, BDA, DJPMMD, JDA, JGSA, TCA, TJM, VDA, Projection
from lightning_da.classical.selection import FSSL, FSSP, SCL
from lightning_da.classical.source_only import SourceOnly
from lightning_da.classical.subspaces import CORAL, GFK, SA, SDA, SGF
from lightning_da.classical.tensors import TAISL
from lightning_da.classical.tradaboost import TrAdaBoost, TrAdaBoostR2
from lightning_da.classical.transport import JDOT, OptimalTransport
from lightning_da.classical.weights import KLIEP, KMM, InstanceWeighting, Weighted

__all__ = [
    "ACA",
    "ARTL",
    "ATI",
    "BDA",
    "CORAL",
    "CTC",
    "DIP",
    "DJPMMD",
    "DME",
    "DTMKL",
    "FSSL",
    "FSSP",
    "GFK",
    "JDA",
    "JDOT",
    "JGSA",
    "KLIEP",
    "KMM",
    "MEDA",
    "SA",
    "SCL",
    "SDA",
    "SGF",
    "TAISL",
    "TCA",
    "TJM",
    "VDA",
    "Adapter",
    "InstanceWeighting",
    "OptimalTransport",
    "Projection",
    "SourceOnly",
    "StatisticalManifold",
    "TrAdaBoost",
    "TrAdaBoostR2",
    "Weighted",
]
