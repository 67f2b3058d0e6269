"""Reads sound files."""

import math
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from lightning_da.errors import ConfigError

SUFFIXES = (".wav", ".flac")


class SoundError(ConfigError):
    """An unusable sound file; the message names the file and the remedy."""


def read_sound(path: Path, rate: int) -> NDArray[np.float32]:
    """Reads a WAV or FLAC file as mono (the mean over channels), resampled, with full scale 1.

    Args:
        path: File with any sampling rate, and integer (8 to 32 bits) or floating-point samples.
        rate: Sampling rate of the result, in Hz.

    Returns:
        Shape (n,), n at least 1. Silent, clipped and very short sounds are allowed.

    Raises:
        SoundError: If the file is missing or unreadable, has no samples, or has NaN or infinite samples.
    """
    if not path.is_file():
        raise SoundError(f"no sound file {str(path)!r}; correct the path")
    try:
        channels, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise SoundError(f"{path}: not a readable sound file ({error}); replace or remove it") from error
    if not len(channels):
        raise SoundError(f"{path}: holds no samples; replace or remove it")
    sound = channels.mean(axis=1)
    if not np.isfinite(sound).all():
        raise SoundError(f"{path}: some samples are NaN or infinite; replace or remove it")
    if own_rate != rate:
        from scipy.signal import resample_poly  # noqa: PLC0415  # slow to import

        shared = math.gcd(own_rate, rate)
        sound = resample_poly(sound, rate // shared, own_rate // shared)
    return np.asarray(sound, dtype=np.float32)
