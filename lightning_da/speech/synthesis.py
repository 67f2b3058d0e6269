"""A voice synthesiser, and two corpora of synthetic speech that need no download.

A sound is a glottal source, filtered by a vocal tract. The source is the glottal flow of KLGLOTT88 (Klatt and Klatt,
"Analysis, synthesis, and perception of voice quality variations among female and male talkers", JASA 1990) with jitter,
shimmer and aspiration; the tract is a cascade of resonators (Klatt, "Software for a cascade/parallel formant
synthesizer", JASA 1980) at the formants of Peterson and Barney ("Control methods used in a study of the vowels", JASA
1952). The words are random syllables and mean nothing.

Emotions change the voice in the directions found in studies: angry and happy are higher, wider in pitch, louder,
brighter and faster than neutral, and angry is louder than happy; sad is lower, flatter in pitch, softer, duller, slower
and breathier (Banse and Scherer, "Acoustic profiles in vocal emotion expression", Journal of Personality and Social
Psychology 1996; Scherer, "Vocal communication of emotion: a review of research paradigms", Speech Communication 2003).
The sizes of these changes, and the roughness, are our choice. The strength of an emotion varies with speaker and
utterance, and every utterance varies at random, so that emotions overlap.
"""

import csv
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from filelock import FileLock
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.signal import lfilter

from lightning_da.errors import ConfigError, list_choices
from lightning_da.paths import write_whole

Array = NDArray[np.float64]

RATE = 16_000  # samples per second
GENDERS = ("female", "male")
MANIFEST = "manifest.csv"

_FRAME, _HOP, _FFT = 512, 256, 1024  # samples; the FFT leaves 32 ms for the resonance after each frame
_DELAY = np.exp(-2j * np.pi * np.arange(_FFT // 2 + 1) / _FFT)  # z^-1 at the frequencies of the FFT
_LEVEL = 0.025  # amplitude relative to full scale, where the flow falls fastest


class Phone(NamedTuple):
    """A speech sound.

    Args:
        seconds: Duration at normal tempo.
        voicing: Amplitude of the voice, 0 to 1.
        hiss: Amplitude of the noise at the teeth, 0 to 1.
        formants: F1, F2 and F3 in Hz.
        accent: Emphasis in pitch and level, 0 for none.
    """

    seconds: float
    voicing: float
    hiss: float
    formants: tuple[float, float, float]
    accent: float = 0


_TRACT = 17.5  # cm, length of the vocal tract for which the formants below are given
_HIGHER_FORMANTS = (3500.0, 4500.0, 5500.0)
_BANDWIDTHS = np.array([70.0, 90.0, 130.0, 200.0, 280.0, 350.0])
_LABIAL, _ALVEOLAR, _VELAR = (300.0, 900.0, 2300.0), (300.0, 1750.0, 2650.0), (300.0, 2000.0, 2250.0)
_PAUSE = Phone(0.08, 0, 0, (500, 1500, 2500))
_ONSETS = (
    (Phone(0.05, 0, 0, _LABIAL), Phone(0.012, 0, 0.5, _LABIAL)),  # p
    (Phone(0.05, 0, 0, _ALVEOLAR), Phone(0.018, 0, 1, _ALVEOLAR)),  # t
    (Phone(0.05, 0, 0, _VELAR), Phone(0.025, 0, 0.7, _VELAR)),  # k
    (Phone(0.05, 0.1, 0, _LABIAL),),  # b
    (Phone(0.08, 0, 0.7, _ALVEOLAR),),  # s
    (Phone(0.07, 0, 0.2, _LABIAL),),  # f
    (Phone(0.06, 0.3, 0, (250, 1400, 2500)),),  # n
    (Phone(0.05, 0.5, 0, (360, 1100, 2700)),),  # l
)
_VOWELS = tuple(
    Phone(0.14, 1, 0, formants)
    for formants in (
        (270, 2290, 3010),  # beat
        (530, 1840, 2480),  # bet
        (660, 1720, 2410),  # bat
        (730, 1090, 2440),  # bott
        (570, 840, 2410),  # bought
        (300, 870, 2240),  # boot
        (640, 1190, 2390),  # but
    )
)


class Voice(NamedTuple):
    """The constant properties of a speaker.

    Args:
        gender: One of `GENDERS`.
        pitch: Median fundamental frequency in Hz.
        tract: Length of the vocal tract in cm; the formants are inversely proportional to it.
        open_quotient: Fraction of a glottal cycle in which the glottis is open.
        tilt: Damping of the source at 3 kHz, in dB.
        breath: Aspiration in dB, 0 for normal.
        tempo: Logarithm of the speaking rate, 0 for normal.
        level: Level at the microphone in dB, 0 for normal.
        expression: Strength of emotions, 1 for normal.
        formants: Factors of the six formants, shape (6,).
    """

    gender: str
    pitch: float
    tract: float
    open_quotient: float
    tilt: float
    breath: float
    tempo: float
    level: float
    expression: float
    formants: Array


class Manner(NamedTuple):
    """Changes of the speaker's voice in one utterance; 0 means no change.

    Args:
        pitch: Change of pitch in semitones.
        span: Logarithm of the factor of the pitch range.
        tempo: Logarithm of the factor of the speaking rate.
        effort: Change of level in dB; a higher effort also gives a brighter source and a smaller open quotient.
        breath: Change of aspiration in dB.
        roughness: Logarithm of the factor of jitter and shimmer.
    """

    pitch: float = 0
    span: float = 0
    tempo: float = 0
    effort: float = 0
    breath: float = 0
    roughness: float = 0


EMOTIONS = {
    "angry": Manner(pitch=3.5, span=0.3, tempo=0.15, effort=10, breath=-3, roughness=1),
    "happy": Manner(pitch=6, span=0.4, tempo=0.12, effort=5),
    "neutral": Manner(),
    "sad": Manner(pitch=-2, span=-0.5, tempo=-0.25, effort=-6, breath=5, roughness=0.2),
}
_EVERYDAY = Manner(pitch=0.8, span=0.15, tempo=0.07, effort=1.2, breath=1.2, roughness=0.2)  # standard deviations


class _Recording(NamedTuple):
    """Noise of the room in dB relative to full scale, and a channel y[t] = x[t] + tilt * x[t - 1], normalised."""

    noise: float
    tilt: float


class _Corpus(NamedTuple):
    """Size of a corpus: each speaker has `utterances` utterances in each of the emotions."""

    speakers: int
    utterances: int
    emotions: tuple[str, ...]
    recording: _Recording


_CORPORA = {
    "synthetic-speakers": _Corpus(40, 20, ("neutral",), _Recording(-72, 0.0)),
    "synthetic-emotions": _Corpus(20, 4, tuple(EMOTIONS), _Recording(-60, 0.15)),
}
CORPORA: tuple[str, ...] = tuple(_CORPORA)


def write_corpus(name: str, folder: Path) -> Path:
    """Writes a corpus of synthetic speech, unless it exists already: WAV files, 16 kHz, mono, 16 bit.

    - `synthetic-speakers`: 40 speakers, half of them women, each with 20 neutral utterances, in a quiet room.
    - `synthetic-emotions`: 20 other speakers, half of them women, each with 4 utterances in each of the four
      `EMOTIONS`, in a room with 12 dB more noise and through a channel that damps the highest frequencies by 2.6 dB.

    Most utterances take 1 to 1.7 s. The folder name contains a digest of this module's source, so that a changed
    synthesiser writes to a new folder. The same version of numpy gives the same files.

    Args:
        name: One of `CORPORA`.
        folder: Parent folder of the corpus; created if it does not exist.

    Returns:
        The path of the manifest, a table with the columns `path` (relative to it), `speaker`, `gender` and, for
        `synthetic-emotions`, `emotion`.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in _CORPORA:
        raise ConfigError(f"no synthetic corpus {name!r}; {list_choices(name, CORPORA)}")
    digest = hashlib.sha256(Path(__file__).read_text(encoding="utf-8").encode()).hexdigest()[:12]
    made = folder / f"{name}-{digest}"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{made.name}.lock"):
            if not made.exists():
                for left in folder.glob(f".{made.name}.*.part"):
                    shutil.rmtree(left)  # left by a killed process
                with write_whole(made) as part:
                    part.mkdir()
                    _write(name, part)
    return made / MANIFEST


def _write(name: str, folder: Path) -> None:
    """Writes the sound files and the manifest of a corpus."""
    rows = []
    for row, sound in _utterances(name):
        rows.append(row)
        soundfile.write(folder / row["path"], np.round(sound * 32767).astype(np.int16), RATE, subtype="PCM_16")
    with open(folder / MANIFEST, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _utterances(name: str) -> Iterator[tuple[dict[str, str], Array]]:
    """Pairs of manifest row and sound for a corpus."""
    corpus = _CORPORA[name]
    for speaker in range(corpus.speakers):
        voice = draw_voice(GENDERS[speaker % 2], _generator(name, speaker))
        who = f"{name}-{speaker:02d}"
        for number, emotion in enumerate(corpus.emotions * corpus.utterances):
            rng = _generator(name, speaker, number)
            row = {"path": f"{who}-{number:02d}.wav", "speaker": who, "gender": voice.gender}
            if len(corpus.emotions) > 1:
                row["emotion"] = emotion
            yield row, _record(speak(voice, draw_manner(voice, emotion, rng), rng), corpus.recording, rng)


def _generator(name: str, *numbers: int) -> np.random.Generator:
    """A random generator for a speaker or an utterance, independent of earlier draws."""
    return np.random.default_rng(np.random.SeedSequence(CORPORA.index(name), spawn_key=numbers))


def draw_voice(gender: str, rng: np.random.Generator) -> Voice:
    """Draws a speaker; the ranges of pitch and vocal tract differ by gender, but overlap.

    Args:
        gender: One of `GENDERS`.
        rng: Random generator.
    """
    female = gender == "female"
    return Voice(
        gender=gender,
        pitch=(198.0 if female else 118.0) * 2 ** rng.normal(0, 2.2 / 12),
        tract=rng.normal(14.9, 0.6) if female else rng.normal(16.9, 0.7),
        open_quotient=rng.normal(0.62 if female else 0.56, 0.05),
        tilt=rng.normal(9.0 if female else 7.5, 1.5),
        breath=rng.normal(2.0 if female else 0.0, 2.5),
        tempo=rng.normal(0, 0.1),
        level=rng.normal(0, 1.5),
        expression=rng.uniform(0.75, 1.25),
        formants=rng.lognormal(0, [0.03, 0.03, 0.03, 0.05, 0.05, 0.05]),
    )


def draw_manner(voice: Voice, emotion: str, rng: np.random.Generator) -> Manner:
    """Draws the manner of one utterance in an emotion, with a random strength.

    Args:
        voice: Voice of the speaker.
        emotion: One of `EMOTIONS`.
        rng: Random generator.
    """
    strength = voice.expression * rng.uniform(0.7, 1.3)
    return Manner(*(strength * np.array(EMOTIONS[emotion]) + rng.normal(0, _EVERYDAY)))


def speak(voice: Voice, manner: Manner, rng: np.random.Generator) -> Array:
    """Five or six random syllables, with pauses at both ends and sometimes between syllables.

    Args:
        voice: Voice of the speaker.
        manner: Manner of the utterance.
        rng: Random generator for syllables and sound.

    Returns:
        Sound at `RATE`, shape (samples,), without room noise.
    """
    phones = [_PAUSE]
    for _ in range(rng.integers(5, 7)):
        onset, vowel = _ONSETS[rng.integers(len(_ONSETS))], _VOWELS[rng.integers(len(_VOWELS))]
        accent = rng.uniform(-1.7, 1.7)
        phones += [phone._replace(accent=accent) for phone in (*onset, vowel)]
        phones += [_PAUSE] * int(rng.random() < 0.15)
    phones = [phone._replace(seconds=phone.seconds * rng.lognormal(0, 0.15)) for phone in [*phones, _PAUSE]]
    return say(phones, voice, manner, rng)


def say(phones: list[Phone], voice: Voice, manner: Manner, rng: np.random.Generator) -> Array:
    """Synthesises a sequence of phones.

    Args:
        phones: The phones in order.
        voice: Voice of the speaker.
        manner: Manner of the utterance.
        rng: Random generator.

    Returns:
        Sound at `RATE`, shape (samples,), without room noise.
    """
    seconds, accents = np.array([(phone.seconds, phone.accent) for phone in phones]).T
    seconds = seconds * np.exp(-voice.tempo - manner.tempo)
    times = np.arange(int(RATE * seconds.sum())) / RATE
    middles = np.arange(-(-len(times) // _HOP) + 1) * _HOP / RATE  # middles of the frames in seconds
    formants = np.array([(*phone.formants, *_HIGHER_FORMANTS) for phone in phones]) * voice.formants
    loudness = 10 ** ((1.5 * accents + voice.level + manner.effort) / 20)
    voicing, hiss = _glide(times, np.array([(phone.voicing, phone.hiss) for phone in phones]).T * loudness, seconds)
    flow = glottal_source(_pitch(times, accents, seconds, voice, manner, rng), voice, manner, rng)
    noise = 0.05 * rng.normal(size=len(times))
    tract = resonances(_glide(middles, formants.T, seconds).T * _TRACT / voice.tract, _BANDWIDTHS)
    teeth = resonances(np.array([[4500 * _TRACT / voice.tract]]), np.array([1500.0]))
    radiation = _LEVEL * (1 - _DELAY)
    return filter_frames(flow * voicing, radiation * tract) + filter_frames(noise * hiss, radiation * teeth)


def _glide(times: Array, targets: Array, seconds: Array) -> Array:
    """Interpolates targets (tracks, phones) to (tracks, times), constant for the middle 60 percent of each phone."""
    knots = (np.cumsum(seconds)[:, None] - seconds[:, None] * [0.8, 0.2]).ravel()
    return np.stack([np.interp(times, knots, np.repeat(track, 2)) for track in targets])


def _pitch(
    times: Array, accents: Array, seconds: Array, voice: Voice, manner: Manner, rng: np.random.Generator
) -> Array:
    """Pitch in Hz at each time: accents and declination, scaled by the manner, and random flutter."""
    end = seconds.sum()
    melody: Array = 1.8 * _glide(times, accents[None], seconds)[0] + 4 * (0.5 - times / end)
    knots = np.arange(0, end + 0.05, 0.05)
    melody = np.exp(manner.span) * melody + np.interp(times, knots, rng.normal(0, 0.2, len(knots)))
    pitch: Array = voice.pitch * 2 ** ((manner.pitch + melody) / 12)
    return pitch


def glottal_source(pitch: Array, voice: Voice, manner: Manner, rng: np.random.Generator) -> Array:
    """The glottal flow with aspiration.

    Args:
        pitch: Pitch in Hz, shape (samples,).
        voice: Voice of the speaker.
        manner: Manner of the utterance.
        rng: Random generator for jitter, shimmer and noise.

    Returns:
        Flow, shape (samples,), scaled so that its steepest fall is 1 per sample.
    """
    cycles = int(np.sum(pitch) / RATE) + 2
    rough = np.exp(manner.roughness)
    jitter, shimmer = 1 + rough * np.array([[0.008], [0.05]]) * rng.normal(size=(2, cycles * 2))
    pitch = pitch * jitter[np.cumsum(pitch / RATE).astype(int)]
    phase = np.cumsum(pitch / RATE)
    opening = np.clip(voice.open_quotient - 0.012 * manner.effort, 0.35, 0.85)
    part = np.minimum(phase % 1 / opening, 1)
    pulses = opening * RATE / pitch * part**2 * (1 - part) * shimmer[phase.astype(int)]
    pole = _tilt_pole(max(voice.tilt - 0.8 * manner.effort, 0.5))
    noise = rng.normal(size=len(pitch)) * (0.3 + part**2 * (1 - part))
    flow: Array = lfilter([1 - pole], [1, -pole], pulses)
    flow += 0.02 * 10 ** ((voice.breath + manner.breath) / 20) * noise
    return flow


def _tilt_pole(damping: float, frequency: float = 3000.0) -> float:
    """The pole p of the low-pass filter (1 - p) / (1 - p z^-1) with the given damping in dB at a frequency in Hz."""
    power = 10 ** (-damping / 10)
    q = (1 - power * np.cos(2 * np.pi * frequency / RATE)) / (1 - power)
    return float(q - np.sqrt(q**2 - 1))


def resonances(frequencies: Array, bandwidths: Array) -> NDArray[np.complex128]:
    """Frequency response of a cascade of resonators with gain 1 at 0 Hz (Klatt 1980, equations 1 and 2).

    Args:
        frequencies: Resonance frequencies in Hz, shape (frames, resonators).
        bandwidths: Bandwidths in Hz, shape (resonators,).

    Returns:
        Shape (frames, `_FFT` / 2 + 1).
    """
    radius = np.exp(-np.pi * bandwidths / RATE)
    first, second = -2 * radius * np.cos(2 * np.pi * frequencies / RATE), radius**2
    gain = np.prod(1 + first + second, axis=1, keepdims=True)
    response: NDArray[np.complex128] = gain / np.prod(
        1 + first[..., None] * _DELAY + second[:, None] * _DELAY**2, axis=1
    )
    return response


def filter_frames(sound: Array, responses: NDArray[np.complex128]) -> Array:
    """Filters each frame of a sound with its own response (overlap-add).

    Args:
        sound: Shape (samples,).
        responses: Shape (frames, `_FFT` / 2 + 1), with one frame every `_HOP` samples and one more at the end; a single
            frame is used for the whole sound.

    Returns:
        Shape (samples,).
    """
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)
    count = -(-len(sound) // _HOP) + 1
    padded = np.pad(sound, (_HOP, count * _HOP - len(sound)))
    spectra = np.fft.rfft(sliding_window_view(padded, _FRAME)[::_HOP] * window, _FFT)
    parts = np.fft.irfft(spectra * responses).reshape(count, -1, _HOP)
    total = np.zeros((count + parts.shape[1], _HOP))
    for step in range(parts.shape[1]):
        total[step : step + count] += parts[:, step]
    return total.ravel()[_HOP : _HOP + len(sound)]


def _record(sound: Array, recording: _Recording, rng: np.random.Generator) -> Array:
    """Adds room noise and applies the channel; reduces the level if the sound would clip."""
    noise = 10 ** (recording.noise / 20) * rng.normal(size=len(sound))
    heard: Array = lfilter([1, recording.tilt], [1 + recording.tilt], sound + lfilter([1, -1], [1, -0.95], noise))
    return heard * min(1.0, 0.95 / float(np.abs(heard).max()))
