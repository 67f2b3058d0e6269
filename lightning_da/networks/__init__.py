from lightning_da.networks.backbones import Backbone, BackboneCallable, FeedForward, LeNet, TimmBackbone
from lightning_da.networks.codes import PrincipalComponents, Raw, SparseCoding
from lightning_da.networks.lstm import LSTM
from lightning_da.networks.memory import MemoryNetwork
from lightning_da.networks.trajectories import Movement, TrajectoryLeNet
from lightning_da.networks.unet import UNetEncoder

__all__ = [
    "LSTM",
    "Backbone",
    "BackboneCallable",
    "FeedForward",
    "LeNet",
    "MemoryNetwork",
    "Movement",
    "PrincipalComponents",
    "Raw",
    "SparseCoding",
    "TimmBackbone",
    "TrajectoryLeNet",
    "UNetEncoder",
]
