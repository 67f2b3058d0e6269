"""Transfer learning and unsupervised domain adaptation with PyTorch Lightning, tracked with MLflow."""
