from lightning_da.networks.backbones import Backbone, BackboneCallable, FeedForward, LeNet, TimmBackbone

__all__ = ["Backbone", "BackboneCallable", "FeedForward", "LeNet", "TimmBackbone"]
