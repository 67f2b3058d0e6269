"""Numbers as labels: their scale, and the scores of a regression."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score, SumMetric


class LabelScale(nn.Module):
    """Brings labels to zero mean and unit variance, so that a loss has the same size in all units."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def fit(self, y: Tensor) -> None:
        """Takes mean and deviation of labels (n,), floating point, NaN where the label is not known."""
        known = y[~y.isnan()].double()
        deviation = known.std(correction=0)
        self.mean.copy_(known.mean())
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, y: Tensor) -> Tensor:
        """Labels of any shape in the scale of the network."""
        return (y - self.mean) / self.deviation

    def inverse(self, outputs: Tensor) -> Tensor:
        """Outputs of the network, of any shape, in the unit of the labels."""
        return outputs.float() * self.deviation + self.mean


class RegressionScores(nn.Module):
    """Counts the answers of a regression for a domain: root mean squared error, mean absolute error and R2."""

    def __init__(self) -> None:
        super().__init__()
        self.samples, self.r2 = SumMetric(), R2Score()
        self.rmse, self.mae = MeanSquaredError(squared=False), MeanAbsoluteError()

    def update(self, outputs: Tensor, y: Tensor) -> None:
        """Adds answers (n,) and labels (n,), both scaled; NaN where the label is not known."""
        known = ~y.isnan()
        self.samples.update(known.sum())
        for metric in (self.rmse, self.mae, self.r2):
            metric.update(outputs[known].float(), y[known])

    def compute(self, deviation: Tensor) -> dict[str, Tensor]:
        """`rmse` and `mae` in the unit of the labels, and `r2`; none with fewer than two known labels.

        Args:
            deviation: That of the `LabelScale`, a scalar.
        """
        if self.samples.compute() < 2:
            return {}
        errors = {"rmse": self.rmse.compute(), "mae": self.mae.compute()}
        return {name: error * deviation for name, error in errors.items()} | {"r2": self.r2.compute()}

    def reset(self) -> None:
        """Forgets what was counted."""
        for metric in (self.samples, self.rmse, self.mae, self.r2):
            metric.reset()
