from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


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


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Makes a loss compute in float32 or better: it casts half-precision tensors and turns autocast off.

    A squared distance overflows in float16. A difference of means is lost in bfloat16.

    Args:
        loss: A function whose positional arguments include tensors, or lists of them.

    Returns:
        The same function, computed in float32 or float64.

    Examples:
        >>> @full_precision
        ... def total(x):
        ...     return x.sum()
        >>> total(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).dtype
        torch.float32
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(device_type=next(_tensors(args)).device.type, enabled=False):
            return loss(*_cast(args), **kwargs)

    return wrapped
