"""Reading sound files."""

import math
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from lightning_da.errors import ConfigError

SUFFIXES = (".wav", ".flac")


class SoundError(ConfigError):
    """A sound file that cannot be used; the message names it and says what to do."""


def read_sound(path: Path, rate: int) -> NDArray[np.float32]:
    """The samples of a WAV or FLAC file at one rate, full scale being 1; several channels become their mean.

    Args:
        path: File of any rate, with integer samples of 8 to 32 bits or floating-point ones.
        rate: Samples a second of what is returned.

    Returns:
        Shape (n,), n at least 1. Silent, clipped and very short sounds are sounds like others.

    Raises:
        SoundError: If the file is missing, cannot be read, holds no samples, or samples that are NaN or infinite.
    """
    if not path.is_file():
        raise SoundError(f"no sound file {str(path)!r}; correct the path")
    try:
        channels, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise SoundError(f"{path}: not a readable sound file ({error}); write it anew, or remove it") from error
    if not len(channels):
        raise SoundError(f"{path}: holds no samples; record it anew, or remove it")
    sound = channels.mean(axis=1)
    if not np.isfinite(sound).all():
        raise SoundError(f"{path}: some samples are NaN or infinite; write it anew, or remove it")
    if own_rate != rate:
        from scipy.signal import resample_poly  # noqa: PLC0415  # most of the time that a process needs to start

        shared = math.gcd(own_rate, rate)
        sound = resample_poly(sound, rate // shared, own_rate // shared)
    return np.asarray(sound, dtype=np.float32)
