from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _cast(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_cast(part) for part in value]
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Makes a loss compute in float32 or better: half-precision tensors are cast, autocast is off inside.

    In half precision a squared distance overflows (float16) or a difference of means is lost (bfloat16).

    Args:
        loss: A function whose positional arguments include tensors, or lists of them.

    Returns:
        The same function, its result float32 or float64.
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(device_type=next(_tensors(args)).device.type, enabled=False):
            return loss(*_cast(args), **kwargs)

    return wrapped
