"""The scatter of identities among their nearest neighbours, as in marginal Fisher analysis."""

import torch
from torch import Tensor, nn

from lightning_da.losses.precision import full_precision


@full_precision
def scatters(x: Tensor, y: Tensor, within: int, between: int) -> tuple[Tensor, Tensor]:
    """Within-class and between-class scatter: mean squared distances to the nearest neighbours.

    `S_c = sum_ij P_ij ||x_i - x_j||^2 / (N k1)` with `P_ij = 1` if x_j is among the k1 nearest samples of the class of
    x_i, and `S_b = sum_ij Q_ij ||x_i - x_j||^2 / (N k2)` with `Q_ij = 1` if x_j is among the k2 nearest samples of
    other classes. Neighbours are those of `x` itself. Where there are fewer, those that are there are summed.

    Source: Hu, Lu and Tan, "Deep transfer metric learning", CVPR 2015, equations 6 and 7.
    https://openaccess.thecvf.com/content_cvpr_2015/papers/Hu_Deep_Transfer_Metric_2015_CVPR_paper.pdf

    Args:
        x: Samples, shape (N, d), floating point.
        y: Classes, shape (N,), integers.
        within: k1, neighbours of the same class.
        between: k2, neighbours of other classes.

    Returns:
        S_c and S_b, scalars, float32 or better; 0 if there is no such neighbour.

    Examples:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> scatters(x, torch.tensor([0, 0, 1]), within=1, between=1)
        (tensor(0.6667), tensor(5.6667))
    """
    with torch.no_grad():
        distances, same = torch.cdist(x, x), y[:, None] == y
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)

    def scatter(pairs: Tensor, number: int) -> Tensor:
        found, places = distances.masked_fill(~pairs, torch.inf).topk(min(number, len(x)), dim=1, largest=False)
        rows, columns = found.isfinite().nonzero(as_tuple=True)
        return (x[rows] - x[places[rows, columns]]).square().sum() / max(len(x) * number, 1)

    return scatter(same & ~itself, within), scatter(~same, between)


class MarginalFisher(nn.Module):
    """The within-class scatter minus `alpha` times the between-class scatter; see `scatters`.

    Args:
        alpha: Weight of the between-class scatter.
        within: Neighbours of the same class (k1).
        between: Neighbours of other classes (k2).

    Examples:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> MarginalFisher(alpha=0.5, within=1, between=1)(x, torch.tensor([0, 0, 1]))
        tensor(-2.1667)
    """

    def __init__(self, alpha: float = 0.1, within: int = 5, between: int = 10) -> None:
        super().__init__()
        self.alpha, self.within, self.between = alpha, within, between

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes the loss, a scalar, of samples (N, d) and their classes (N,)."""
        compact, apart = scatters(x, y, self.within, self.between)
        return compact - self.alpha * apart
