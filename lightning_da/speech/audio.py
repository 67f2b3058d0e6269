"""Reads sound files."""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from lightning_da.errors import ConfigError

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
BLOCK = 1 << 20  # samples that are read at a time
OGG_PAGE, LAST_PAGE = 1 << 16, 4  # the largest page of an OGG file in bytes, and the mark of its last page


class SoundError(ConfigError):
    """An unusable sound file; the message names the file and the remedy."""


def read_sound(path: Path, rate: int) -> NDArray[np.float32]:
    """Reads a sound file as mono (the mean over channels), resampled, with full scale 1.

    Args:
        path: WAV, FLAC, MP3 or OGG file with any sampling rate, and integer (8 to 32 bits) or floating-point samples.
        rate: Sampling rate of the result, in Hz.

    Returns:
        Shape (n,), n at least 1. Silent, clipped and very short sounds are allowed.

    Raises:
        SoundError: If the file is missing, unreadable or cut off, has no samples, or has NaN or infinite samples.
    """
    return np.concatenate(list(sound_blocks(path, rate)))


def sound_blocks(path: Path, rate: int) -> Iterator[NDArray[np.float32]]:
    """The sound of `read_sound` in pieces of some seconds, of which the whole file needs not be in memory."""
    if not path.is_file():
        link = f", a link to the missing {str(path.readlink())!r}" if path.is_symlink() else ""
        raise SoundError(f"no sound file {str(path)!r}{link}; correct the path")
    try:
        with soundfile.SoundFile(path) as file:
            shared = math.gcd(file.samplerate, rate)
            yield from _resampled(_mono(file, path), rate // shared, file.samplerate // shared)
            read, named = file.tell(), file.frames
    except (soundfile.SoundFileError, OSError) as error:
        raise SoundError(f"{path}: not a readable sound file ({error}); replace or remove it") from error
    if _is_cut_off(path) or (_has_frame_count(path) and read < named):
        raise SoundError(f"{path}: the file ends before its sound does, so it is cut off; replace or remove it")
    if not read:
        raise SoundError(f"{path}: holds no samples; replace or remove it")


def _mono(file: soundfile.SoundFile, path: Path) -> Iterator[NDArray[np.float32]]:
    while len(channels := file.read(BLOCK, dtype="float32", always_2d=True)):
        sound = channels.mean(axis=1)
        if not np.isfinite(sound).all():
            raise SoundError(f"{path}: some samples are NaN or infinite; replace or remove it")
        yield sound


def _resampled(parts: Iterator[NDArray[np.float32]], up: int, down: int) -> Iterator[NDArray[np.float32]]:
    """The parts of a sound with `up` samples for each `down`, as if they were one."""
    if up == down:
        yield from parts
        return
    from scipy.signal import resample_poly  # noqa: PLC0415  # slow to import

    reach = 10 * max(up, down) // up + 1  # samples to each side that the filter of `resample_poly` sees
    margin, before = down * math.ceil(reach / down), 0
    sound = np.zeros(0, dtype=np.float32)
    for part in parts:
        sound = np.concatenate([sound, part])
        end = (len(sound) - margin) // down * down
        if end > before:
            yield resample_poly(sound, up, down)[before * up // down : end * up // down].astype(np.float32)
            start = max(end - margin, 0)
            sound, before = sound[start:], end - start
    if len(sound) > before:
        yield resample_poly(sound, up, down)[before * up // down :].astype(np.float32)


def _is_cut_off(path: Path) -> bool:
    """Whether a WAV or OGG file ends before its samples do; libsndfile reads what is left. A stream names no length."""
    with path.open("rb") as file:
        kind = file.read(4)
        if kind == b"OggS":
            file.seek(max(path.stat().st_size - OGG_PAGE, 0))
            page = file.read().rpartition(b"OggS")[2]
            whole = len(page) > 23 and len(page) >= 23 + page[22] + sum(page[23 : 23 + page[22]])
            return not (whole and page[1] & LAST_PAGE)
        if kind != b"RIFF":
            return False
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                return size not in (0, 2**32 - 1) and file.tell() + size > path.stat().st_size
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _has_frame_count(path: Path) -> bool:
    """Whether an MP3 file names its length; without it, libsndfile guesses."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # tags, whose length has 7 bits a byte
            file.seek(10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)))
            head = b""
        return any(name in head + file.read(200) for name in (b"Xing", b"Info"))
