from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Makes a loss compute in float32 or better: half-precision tensors are cast, autocast is off inside.

    In half precision a squared distance overflows (float16) or a difference of means is lost (bfloat16).

    Args:
        loss: A function whose positional arguments include tensors.

    Returns:
        The same function, its result float32 or float64.
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        halves = (torch.float16, torch.bfloat16)
        cast = [arg.float() if isinstance(arg, Tensor) and arg.dtype in halves else arg for arg in args]
        with torch.autocast(device_type=device, enabled=False):
            return loss(*cast, **kwargs)  # type: ignore[arg-type]  # a list in the place of P.args

    return wrapped
