"""Feature sets: from the samples of a sound to its feature vector."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_da.errors import ConfigError, list_choices
from lightning_da.speech import functionals

OPENSMILE_WIDTHS = {
    "IS09": 384,
    "IS10": 1582,
    "IS11": 4368,
    "IS12": 6125,
    "IS13": 6373,
    "ComParE_2016": 6373,
    "eGeMAPSv02": 88,
    "emobase": 988,
}
FEATURE_SETS: tuple[str, ...] = ("functionals", *OPENSMILE_WIDTHS)
OPENSMILE_SHORTEST = 0.1  # seconds: enough frames for every openSMILE set

Array = NDArray[np.float32]


def width(features: str) -> int:
    """Number of values in a feature set.

    Raises:
        ConfigError: If the feature set is unknown.
    """
    if features not in FEATURE_SETS:
        raise ConfigError(f"no feature set {features!r}; {list_choices(features, FEATURE_SETS)}")
    return OPENSMILE_WIDTHS.get(features, len(functionals.NAMES))


def describe(sound: Array, features: str, rate: int) -> Array:
    """The feature vector of one sound.

    For openSMILE sets, a sound shorter than 0.1 s is padded with silence, and NaN or infinite values are set to 0.

    Args:
        sound: Shape (n,), n at least 1.
        features: One of `FEATURE_SETS`.
        rate: Samples per second.

    Returns:
        Shape (width(features),), all finite.
    """
    if features == "functionals":
        return functionals.functionals(sound, rate)
    padded = np.pad(sound, (0, max(0, round(OPENSMILE_SHORTEST * rate) - len(sound))))
    row: Array = _opensmile(features).process_signal(padded, rate).to_numpy(dtype=np.float32)[0]
    return np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0)


@lru_cache
def _opensmile(features: str) -> Any:
    import opensmile  # noqa: PLC0415  # an extra, and slow to import

    return opensmile.Smile(opensmile.FeatureSet[features], opensmile.FeatureLevel.Functionals)
