from lightning_da.methods.base import AdaptationModule, TransferModule
from lightning_da.methods.dann import DANN
from lightning_da.methods.deep_coral import DeepCORAL
from lightning_da.methods.fine_tune import FineTune

__all__ = ["DANN", "AdaptationModule", "DeepCORAL", "FineTune", "TransferModule"]
