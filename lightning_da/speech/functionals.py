"""The built-in features of an utterance: statistics over time of descriptors of short frames.

The sound is first normalised to zero mean and unit power, so descriptors are relative to the utterance. Only `level`
contains the loudness of the recording.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.fft import dct, irfft, next_fast_len, rfft

STEP, FRAME, PITCH_FRAME = 0.010, 0.025, 0.050  # seconds
BANDS, CEPSTRA = 26, 12
TOP = 8000.0  # Hz, upper limit of the spectrum
FLOOR = 1e-7  # added to powers, relative to the power of the utterance; silence is at -70 dB
LOWEST, HIGHEST = 60.0, 500.0  # Hz, range of the pitch
VOICED, QUIET = 0.45, -30.0  # a frame is voiced above this strength and this energy in dB
SURE = 0.7  # frames above this strength give the median pitch, which prevents octave errors
BLOCK = 480_000  # samples whose frames are in memory at a time
HIGH_BONUS, JUMP_COST = 0.05, 0.1  # change of strength per octave of pitch, and per octave of distance to the median

SPECTRUM = [
    *(f"mel{band:02d}" for band in range(BANDS)),
    *(f"mfcc{i:02d}" for i in range(1, CEPSTRA + 1)),
    *("alpha", "slope0", "slope500", "centroid", "flux"),
]
DESCRIPTORS = [*SPECTRUM, "energy", "zcr", "voicing"]
VOICE = ["f0", "hnr"]
PERCENTILES = (5, 25, 50, 75, 95)
STATISTICS = ["mean", "std", "min", "max", *(f"p{share:02d}" for share in PERCENTILES), "slope"]
NAMES = [
    *(
        f"{descriptor}{delta}_{statistic}"
        for group in (DESCRIPTORS, VOICE)
        for delta in ("", "_delta")
        for descriptor in group
        for statistic in STATISTICS
    ),
    *("voiced_share", "voiced_stretches", "duration", "level"),
]

Array = NDArray[Any]  # float32, except times and frequencies


def functionals(sound: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Features of an utterance: means, deviations, extremes, percentiles and slopes of descriptors and their deltas.

    Descriptors of frames of 25 ms every 10 ms: `mel` energies and `energy` in dB, `mfcc`, `zcr` (fraction of
    neighbouring samples with different sign), `alpha` (power ratio of 50 to 1000 Hz and 1 to 5 kHz, in dB), `slope0`
    and `slope500` (dB/kHz in 0 to 500 and 500 to 1500 Hz), `centroid` (kHz) and `flux` of the spectrum. Descriptors of
    frames of 50 ms with the same centres: `voicing` (0 to 1) and, for voiced frames only, `f0` (octaves above 60 Hz)
    and `hnr` (harmonics-to-noise ratio in dB); without voiced frames their features are 0. Deltas are changes per
    frame, slopes are per second. The last features are the fraction of voiced frames, voiced segments per second,
    duration in seconds and level in dB relative to full scale.

    Args:
        sound: Shape (n,), n at least 1; padded with zeros to at least 50 ms.
        rate: Samples per second, 8000 to 48000.

    Returns:
        Values in the order of `NAMES`, shape (len(NAMES),), all finite.
    """
    mean = sound.mean(dtype=np.float64)
    squares = sum(float(np.sum((part - mean) ** 2)) for part in np.split(sound, range(BLOCK, len(sound), BLOCK)))
    level = max(float(np.sqrt(squares / len(sound))), 1e-5)
    tracks, f0 = _tracks(sound, rate, mean, level)
    energy, strength = tracks[:, DESCRIPTORS.index("energy")], tracks[:, DESCRIPTORS.index("voicing")]
    voiced = (strength > VOICED) & (energy > QUIET)
    times = STEP * np.arange(len(tracks))
    if voiced.any():  # interpolate unvoiced frames, so that deltas at the ends of a voiced segment are correct
        f0 = np.interp(times, times[voiced], f0[voiced])
    voice = np.column_stack([f0, _harmonics_to_noise(strength)])
    stretches = np.count_nonzero(np.diff(voiced.astype(int), prepend=0) == 1)
    duration = len(sound) / rate
    return np.concatenate(
        [
            _statistics(tracks, times),
            _statistics(_deltas(tracks), times),
            _statistics(voice[voiced], times[voiced]),
            _statistics(_deltas(voice)[voiced], times[voiced]),
            [voiced.mean(), stretches / duration, duration, 20 * np.log10(level)],
        ],
        dtype=np.float32,
    )


def _tracks(sound: Array, rate: int, mean: float, level: float) -> tuple[Array, Array]:
    """The descriptors of all frames of a sound, shape (t, len(DESCRIPTORS)), and their `f0`, shape (t,)."""
    described, peaks = [], []
    for first, long, before in _blocks(sound, rate, mean, level):
        margin = (long.shape[1] - round(FRAME * rate)) // 2
        short = long[:, margin : margin + round(FRAME * rate)]
        own = short[before:]
        energy = _decibels(np.mean(own**2, axis=1))
        described.append(np.column_stack([_spectral(short, rate)[before:], energy, _sign_changes(own)]))
        frame, *values = _peaks(long[before:], rate)
        peaks.append((frame + first, *values))
    tracks = np.concatenate(described)
    f0, strength = _pitch(len(tracks), rate, *map(np.concatenate, zip(*peaks, strict=True)))
    return np.column_stack([tracks, strength]), f0


def _peaks(frames: Array, rate: int) -> tuple[Array, Array, Array]:
    """The peaks of the autocorrelation of each frame that can be its pitch.

    The autocorrelation of the windowed frame is divided by the autocorrelation of the window. Its peaks are found at
    half samples and interpolated by parabolas.

    Source: Boersma, "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of a
    sampled sound", IFA Proceedings 17, 1993.

    Args:
        frames: Shape (t, n), zero mean, at least three of the longest periods long.
        rate: Samples per second.

    Returns:
        Frame, octaves above `LOWEST` and height of each peak, in the order of frames and periods.
    """
    shortest, longest = _periods(rate)
    window = np.hanning(frames.shape[1] + 1)[:-1].astype(np.float32)
    own = _autocorrelation(window[None], longest + 2)
    of_frames = _autocorrelation(frames * window, longest + 2)
    r = of_frames / np.maximum(of_frames[:, :1], 1e-20) * (own[:, :1] / own)
    left, middle, right = r[:, shortest - 1 : -2], r[:, shortest:-1], r[:, shortest + 1 :]
    peaks = (middle > left) & (middle >= right) & (middle > 0)
    bend = (middle - left) + (middle - right)
    shift = np.divide(right - left, 2 * bend, out=np.zeros_like(middle), where=peaks)
    heights = np.where(peaks, middle + (right - left) * shift / 4, 0)
    octaves = np.log2(2 * rate / LOWEST / (np.arange(shortest, longest + 1, dtype=np.float32) + shift))
    scores = np.where(peaks, heights + HIGH_BONUS * octaves, -np.inf)
    # a peak is left out if another one, to its left or right, has the higher score whatever the median is
    cost = JUMP_COST * octaves
    higher = np.maximum.accumulate(scores - cost, axis=1)
    lower = np.maximum.accumulate((scores + cost)[:, ::-1], axis=1)[:, ::-1]
    frame, place = np.nonzero(peaks & (scores - cost >= higher - 1e-4) & (scores + cost >= lower - 1e-4))
    return frame.astype(np.int32), octaves[frame, place], heights[frame, place]


def _pitch(number: int, rate: int, frame: Array, octaves: Array, heights: Array) -> tuple[Array, Array]:
    """Fundamental frequency of each frame, and the strength of the periodicity.

    Among peaks of similar height (multiples of the period), the shortest period is preferred, and then the period
    closest to the median pitch of clearly voiced frames.

    Args:
        number: Number of frames, t.
        rate: Samples per second.
        frame: Frame of each peak; with the other two as from `_peaks`.
        octaves: Octaves above `LOWEST`.
        heights: Heights of the peaks.

    Returns:
        Octaves above `LOWEST`, and the height of the peak, 0 (none) to 1, each of shape (t,).
    """
    scores = heights + HIGH_BONUS * octaves
    best = _first_best(frame, scores)
    sure = best[heights[best] > SURE]
    if len(sure):
        best = _first_best(frame, scores - JUMP_COST * np.abs(octaves - np.median(octaves[sure])))
    f0 = np.full(number, np.log2(2 * rate / LOWEST / _periods(rate)[0]), dtype=np.float32)
    strength = np.zeros(number, dtype=np.float32)
    f0[frame[best]], strength[frame[best]] = octaves[best], np.minimum(heights[best], 1)
    return f0, strength


def _periods(rate: int) -> tuple[int, int]:
    """The shortest and the longest period of the pitch, in half samples."""
    return int(2 * rate / HIGHEST), int(np.ceil(2 * rate / LOWEST))


def _first_best(groups: Array, scores: Array) -> Array:
    """The place of the highest score of each group, the first of equal ones; the groups are sorted."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    best = np.maximum.reduceat(scores, starts)
    found = np.flatnonzero(scores == np.repeat(best, np.diff(starts, append=len(scores))))
    return found[np.unique(groups[found], return_index=True)[1]]


def _autocorrelation(frames: Array, lags: int) -> Array:
    """Autocorrelation at lags of 0, 1/2, 1, ... samples, shape (t, lags)."""
    size = next_fast_len(frames.shape[1] + lags // 2 + 1, real=True)
    return irfft(_power(frames, size), 2 * size)[:, :lags]


def _power(frames: Array, size: int) -> Array:
    """Squared magnitudes of the spectra, shape (t, size // 2 + 1)."""
    spectra = rfft(frames, size)
    power: Array = spectra.real**2 + spectra.imag**2
    return power


def _blocks(sound: Array, rate: int, mean: float, level: float) -> Iterator[tuple[int, Array, int]]:
    """Frames of 50 ms every 10 ms of the sound with zero mean and unit power, some at a time.

    Yields:
        Number of the first frame, frames of shape (t, n), and how many of them, 0 or 1, are of the block before.
    """
    size, step = round(PITCH_FRAME * rate), round(STEP * rate)
    number, most = max((len(sound) - size) // step, 0) + 1, BLOCK // step
    for first in range(0, number, most):
        before = min(first, 1)
        part = sound[(first - before) * step : (min(first + most, number) - 1) * step + size]
        normal = ((part - mean) / level).astype(np.float32)
        yield first, sliding_window_view(np.pad(normal, (0, max(0, size - len(normal)))), size)[::step], before


def _spectral(frames: Array, rate: int) -> Array:
    """Descriptors of the power spectra of frames, shape (t, len(SPECTRUM))."""
    window = np.hamming(frames.shape[1] + 1)[:-1].astype(np.float32)
    size = 1 << (len(window) - 1).bit_length()
    hertz = rate / size * np.arange(size // 2 + 1, dtype=np.float32)
    # the powers of a frame sum to its mean square
    power = 2 / size / np.sum(window**2) * _power(frames * window, size)
    mel = _decibels(power @ _mel_weights(rate, size))
    cepstra = dct(mel, norm="ortho")[:, 1 : CEPSTRA + 1]

    def band(low: float, high: float) -> Array:
        return power[:, (hertz >= low) & (hertz < high)]

    def tilt(low: float, high: float) -> Array:
        return _decibels(band(low, high)) @ _slope_weights(hertz[(hertz >= low) & (hertz < high)] / 1000)

    alpha = _decibels(band(50, 1000).sum(axis=1)) - _decibels(band(1000, 5000).sum(axis=1))
    shares = band(0, TOP) + FLOOR / size
    shares /= shares.sum(axis=1, keepdims=True)
    centroid = shares @ hertz[hertz < TOP] / 1000
    roots = np.sqrt(shares)
    flux = np.linalg.norm(
        np.diff(roots, axis=0, prepend=roots[:2][-1:]), axis=1
    )  # the first frame is compared with the second
    return np.column_stack([mel, cepstra, alpha, tilt(0, 500), tilt(500, 1500), centroid, flux])


@lru_cache
def _mel_weights(rate: int, size: int) -> Array:
    """Triangular filters of equal width on the mel scale, from 20 Hz to `TOP`, shape (size // 2 + 1, BANDS)."""
    mels = _mel(rate / size * np.arange(size // 2 + 1))[:, None]
    edges = np.linspace(_mel(20.0), _mel(min(TOP, rate / 2)), BANDS + 2)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    weights: Array = np.minimum((mels - low) / (middle - low), (high - mels) / (high - middle))
    return weights.clip(min=0).astype(np.float32)


def _mel(hertz: Any) -> Any:
    return 2595 * np.log10(1 + hertz / 700)


def _decibels(power: Array) -> Array:
    decibels: Array = 10 * np.log10(power + np.float32(FLOOR))
    return decibels


def _sign_changes(frames: Array) -> Array:
    """Fraction of neighbouring samples with different sign, shape (t,)."""
    share: Array = np.diff(np.signbit(frames), axis=1).mean(axis=1, dtype=np.float32)
    return share


def _harmonics_to_noise(strength: Array) -> Array:
    """Ratio of periodic to non-periodic power in dB, limited to -30 to 30."""
    periodic = strength.clip(1e-3, 1 - 1e-3)
    ratio: Array = 10 * np.log10(periodic / (1 - periodic))
    return ratio


def _deltas(tracks: Array) -> Array:
    """Slopes over five frames, with repeated end frames; same shape (t, d) as the tracks."""
    padded = np.pad(tracks, ((2, 2), (0, 0)), mode="edge")
    slopes: Array = (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10
    return slopes


def _slope_weights(x: Array) -> Array:
    """Weights w for which w @ y is the slope of the regression of y on x; 0 for a single x."""
    centred: Array = x - x.mean()
    weights: Array = centred / max(centred @ centred, np.finfo(np.float32).tiny)
    return weights


def _statistics(tracks: Array, times: Array) -> Array:
    """The `STATISTICS` of each column of tracks (t, d), column by column; zeros if t is 0."""
    if not len(tracks):
        return np.zeros(tracks.shape[1] * len(STATISTICS), dtype=np.float32)
    rows = [tracks.mean(axis=0), tracks.std(axis=0), tracks.min(axis=0), tracks.max(axis=0)]
    rows += [*np.percentile(tracks, PERCENTILES, axis=0), _slope_weights(times) @ tracks]
    return np.stack(rows, axis=1).ravel()
