"""Functions of training progress.

Each takes the progress p in [0, 1] and returns a factor. A config names one by its import path, for a learning rate
or for the weight of a domain loss, and a function of one's own is named in the same way.
"""

import math
from collections.abc import Callable

from lightning_da.errors import ConfigError, check_range, one_line


def check_schedule(name: str, schedule: Callable[[float], float]) -> None:
    """Checks a function of progress at the start and the end of training.

    Args:
        name: Name of the option in the error message.
        schedule: The function.

    Raises:
        ConfigError: If it does not take a number, or does not return a finite number of at least 0.
    """
    for p in (0.0, 1.0):
        try:
            factor = float(schedule(p))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}: no function of the progress of training ({one_line(error)})") from error
        check_range(f"{name} at progress {p:.0f}", factor, 0)


def constant(p: float) -> float:  # noqa: ARG001
    """1 throughout."""
    return 1.0


def ramp(p: float) -> float:
    """From 0 to (nearly) 1: 2 / (1 + exp(-10 p)) - 1.

    Source: Ganin et al., "Domain-adversarial training of neural networks", JMLR 2016, section 5.2.2.
    https://arxiv.org/abs/1505.07818
    """
    return 2 / (1 + math.exp(-10 * p)) - 1


def inverse_decay(p: float) -> float:
    """From 1 to 0.17: (1 + 10 p)^-0.75.

    Source: Ganin et al., JMLR 2016, section 5.2.2.
    https://arxiv.org/abs/1505.07818
    """
    return float((1 + 10 * p) ** -0.75)


def cosine(p: float) -> float:
    """From 1 to 0 along half a cosine: (1 + cos(pi p)) / 2.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5.
    https://arxiv.org/abs/1608.03983
    """
    return (1 + math.cos(math.pi * p)) / 2
