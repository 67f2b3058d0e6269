"""Reads sound files."""

import math
import os
import struct
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
        SoundError: If the file is missing, unreadable or cut off, has no samples, or has NaN or infinite samples.
    """
    if not path.is_file():
        raise SoundError(f"no sound file {str(path)!r}; correct the path")
    try:
        channels, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise SoundError(f"{path}: not a readable sound file ({error}); replace or remove it") from error
    if _is_cut_off(path):
        raise SoundError(f"{path}: the file is shorter than its header says, so it is cut off; replace or remove it")
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


def _is_cut_off(path: Path) -> bool:
    """Whether a WAV file ends before its samples do; libsndfile reads what is left. A stream names no length."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return False
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                return size not in (0, 2**32 - 1) and file.tell() + size > path.stat().st_size
            file.seek(size + size % 2, os.SEEK_CUR)
    return False
