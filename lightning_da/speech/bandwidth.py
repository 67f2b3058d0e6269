"""How high the sounds of a corpus reach: telephone speech ends near 4 kHz, whatever the rate of its files."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import rfft

from lightning_da.speech.audio import sound_blocks

FILES, SECONDS = 20, 10  # the files of a corpus and the beginning of each that are looked at
FRAME, BAND = 0.032, 500  # seconds and Hz
FLOOR = 3e-6  # -55 dB of the strongest band: voices reach -42 dB below 8 kHz, resampled telephone speech -60 dB
RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000)


def bandwidth(paths: Sequence[Path], rate: int) -> int:
    """The highest frequency at which a corpus has sound, in Hz: the end of the last band of 500 Hz above `FLOOR`.

    The power of some files, each relative to its strongest band, is averaged.

    Args:
        paths: Readable sound files.
        rate: Sampling rate at which the sounds are read; a corpus reaches half of it at most.

    Returns:
        A multiple of 500, or the half of `rate`; 0 if the sounds are silent.

    Raises:
        SoundError: If a file is unusable.
    """
    return _bandwidth(tuple(paths[:: -(-len(paths) // FILES)]), rate)


@lru_cache
def _bandwidth(paths: tuple[Path, ...], rate: int) -> int:
    size = round(FRAME * rate)
    edges = np.arange(0, size // 2, BAND * size / rate).astype(int)
    total = np.zeros(len(edges))
    for path in paths:
        sound = next(sound_blocks(path, rate))[: SECONDS * rate]
        frames = sliding_window_view(np.pad(sound, (0, max(0, size - len(sound)))), size)[:: size // 2]
        power = np.add.reduceat((np.abs(rfft(frames * np.hanning(size))) ** 2).mean(axis=0), edges)
        total += power / max(float(power.max()), 1e-20)
    return min(BAND * int(np.max(np.flatnonzero(total > FLOOR * len(paths)), initial=-1) + 1), rate // 2)


def common_rate(lowest: int) -> int:
    """The largest usual sampling rate that holds no more than a corpus that reaches `lowest` Hz; 8000 at least."""
    return max((rate for rate in RATES if rate / 2 <= lowest), default=RATES[0])
