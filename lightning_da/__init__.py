"""Transfer learning and unsupervised domain adaptation with PyTorch Lightning, tracked with MLflow."""

__version__ = "0.1.0"
