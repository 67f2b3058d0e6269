import torch
from torch import Tensor

from lightning_da.losses.precision import full_precision


@full_precision
def absolute_error(logits: Tensor, y: Tensor) -> Tensor:
    """Absolute difference between the class probabilities of each pixel and its class, the mean over classes.

    It is bounded, so that a wrong mask costs less than with the cross-entropy: 2 (1 - p_y) / C with C classes.

    Source: the L_mae of adversarial segmentation with transferred encoders, `1/N sum ||F(x_i) - Y_i||`; Ghosh et al.,
    "Robust loss functions under label noise for deep neural networks", AAAI 2017, for its bound.
    https://arxiv.org/abs/1712.09482

    Args:
        logits: Shape (B, C, ...), floating point.
        y: Labels, shape (B, ...), int64, -1 where the class is not known.

    Returns:
        Shape (B, ...), float32 or better, in [0, 2 / C], 0 where the class is not known.

    Examples:
        >>> logits = torch.tensor([[[0.0, 100.0, 0.0], [0.0, 0.0, 0.0]]])
        >>> absolute_error(logits, torch.tensor([[0, 0, -1]])).tolist()
        [[0.5, 0.0, 0.0]]
    """
    right = logits.softmax(dim=1).gather(1, y.clamp(min=0)[:, None])[:, 0]
    return torch.where(y < 0, 0, 2 * (1 - right) / logits.shape[1])
