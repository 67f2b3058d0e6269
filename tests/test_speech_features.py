"""Sound files, the built-in features of utterances against closed forms and a reference, and the cache of features."""

import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from lightning_da.errors import ConfigError
from lightning_da.paths import PROJECT
from lightning_da.speech import audio, extract, feature_sets, functionals, synthesis
from lightning_da.speech.audio import SoundError, read_sound
from lightning_da.speech.bandwidth import bandwidth, common_rate
from lightning_da.speech.functionals import LOWEST, NAMES

Array = NDArray[Any]
RATE = 16000


def times(seconds: float, rate: int = RATE) -> Array:
    return np.arange(round(seconds * rate)) / rate


def sine(hertz: float, seconds: float = 1.0, rate: int = RATE) -> Array:
    return np.sin(2 * np.pi * hertz * times(seconds, rate))


def harmonics(hertz: float, weights: Array, seconds: float = 1.0, rate: int = RATE) -> Array:
    sounds = [w * np.cos(2 * np.pi * (i + 1) * hertz * times(seconds, rate)) for i, w in enumerate(weights)]
    found: Array = np.sum(sounds, axis=0)
    return found


def pulses(hertz: float, seconds: float = 1.0, rate: int = RATE) -> Array:
    """All harmonics that the rate can hold, equally strong."""
    return harmonics(hertz, np.ones(int(rate / 2 / hertz - 0.01)), seconds, rate)


def noise(seconds: float = 1.0, rate: int = RATE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=round(seconds * rate))


def syllables() -> Array:
    """Two seconds of voiced, noisy and silent stretches of different loudness."""
    parts = [0.3 * pulses(120, 0.4), 0.05 * noise(0.3), np.zeros(4800), 0.8 * pulses(180, 0.5), 0.01 * noise(0.5)]
    return np.concatenate(parts) + 0.001 * noise(2.0, seed=1)


def values(sound: Array, rate: int = RATE) -> dict[str, float]:
    found = functionals.functionals(sound.astype(np.float32), rate)
    assert found.shape == (len(NAMES),)
    assert found.dtype == np.float32
    return dict(zip(NAMES, found.tolist(), strict=True))


def hertz(octaves: float) -> float:
    return float(LOWEST * 2**octaves)


# -------------------------------------------------------------------------------------------------------------- pitch


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("f0", [80, 117.3, 200, 283.1, 400])
@pytest.mark.parametrize("wave_of", [sine, pulses])
def test_pitch_is_that_of_sines_and_pulse_trains_in_every_frame(
    wave_of: Callable[..., Array], f0: float, rate: int
) -> None:
    found = values(wave_of(f0, 0.5, rate), rate)
    assert hertz(found["f0_min"]) == pytest.approx(f0, rel=0.01)
    assert hertz(found["f0_max"]) == pytest.approx(f0, rel=0.01)
    assert found["voiced_share"] == 1
    assert 0.95 < found["voicing_min"] <= found["voicing_max"] <= 1


@pytest.mark.parametrize("weights", [[0.3, 1, 0.3, 1, 0.3], [0, 1, 1, 1], [1, 3, 1, 0.3]])
def test_pitch_is_the_fundamental_where_other_harmonics_are_stronger(weights: list[float]) -> None:
    found = values(harmonics(130, np.array(weights)))
    assert hertz(found["f0_min"]) == pytest.approx(130, rel=0.01)
    assert hertz(found["f0_max"]) == pytest.approx(130, rel=0.01)


def test_frames_that_are_ambiguous_have_the_pitch_of_the_utterance() -> None:
    # every second pulse weaker: period 1/100 s, and nearly 1/200 s
    doubled = pulses(200, 0.2) + 0.12 * pulses(100, 0.2)
    alone = values(doubled)
    among = values(np.concatenate([pulses(100, 1.0), doubled]))
    assert hertz(alone["f0_p50"]) == pytest.approx(200, rel=0.01)
    assert hertz(among["f0_min"]) == pytest.approx(100, rel=0.02)
    assert among["f0_p95"] < alone["f0_p50"] - 0.5


def test_rising_pitch_has_its_slope_per_second_and_per_frame() -> None:
    t = times(2.0)
    phase = 2 * np.pi * 100 * 2 ** (t / 2) / (np.log(2) / 2)  # half an octave a second
    found = values(np.sum([np.cos(k * phase) for k in range(1, 6)], axis=0))
    assert found["f0_slope"] == pytest.approx(0.5, rel=0.01)
    assert found["f0_delta_p50"] == pytest.approx(0.005, rel=0.02)


@pytest.mark.parametrize("ratio", [3, 10, 20])
def test_harmonics_to_noise_ratio_is_that_of_a_sine_in_white_noise(ratio: float) -> None:
    sound = sine(200, 2.0) + np.sqrt(0.5) * 10 ** (-ratio / 20) * noise(2.0)
    assert values(sound)["hnr_p50"] == pytest.approx(ratio, abs=0.7)


def test_voiced_stretches_are_counted_and_their_pauses_are_no_pitch() -> None:
    tone, pause = sine(100, 0.4), np.zeros(3200)
    found = values(np.concatenate([tone, pause, tone, pause, tone]))
    assert found["duration"] == pytest.approx(1.6)
    assert found["voiced_stretches"] == pytest.approx(3 / 1.6)
    assert found["voiced_share"] == pytest.approx(1.2 / 1.6, abs=0.04)
    assert hertz(found["f0_min"]) == pytest.approx(100, rel=0.01)
    assert abs(found["f0_delta_min"]) < 1e-3
    assert abs(found["f0_delta_max"]) < 1e-3


def test_without_a_voiced_frame_all_of_the_voice_is_zero() -> None:
    found = values(np.eye(1, 3200, 1600)[0])
    assert {value for name, value in found.items() if name.startswith(("f0", "hnr", "voiced"))} == {0}
    assert found["energy_max"] > 0


def test_a_hum_far_below_the_utterance_is_not_voiced() -> None:
    found = values(np.concatenate([0.01 * sine(100), noise()]))
    assert found["voiced_share"] < 0.05


# --------------------------------------------------------------------------------------------- energy, zeros, spectrum


def test_energy_and_level_have_their_closed_forms() -> None:
    found = values(0.3 * np.concatenate([sine(1000), 0.1 * sine(1000)]))
    power = 0.3**2 / 2 * (1 + 0.01) / 2
    assert found["level"] == pytest.approx(10 * np.log10(power), abs=1e-3)
    assert found["energy_max"] == pytest.approx(10 * np.log10(2 / 1.01), abs=1e-3)
    assert found["energy_min"] == pytest.approx(10 * np.log10(0.02 / 1.01), abs=1e-3)


def test_energy_that_grows_by_decibels_has_their_slope() -> None:
    found = values(10 ** (times(2.0) * 15 / 20) * sine(1000, 2.0))
    assert found["energy_slope"] == pytest.approx(15, rel=1e-3)
    assert found["energy_delta_p50"] == pytest.approx(0.15, rel=1e-2)


@pytest.mark.parametrize("frequency", [100, 440, 3000])
def test_zero_crossings_of_a_sine_are_two_a_period(frequency: float) -> None:
    found = values(sine(frequency + 0.5, 2.0))
    assert found["zcr_mean"] == pytest.approx(2 * frequency / RATE, rel=0.01)


def test_silence_within_the_utterance_is_at_the_floor() -> None:
    found = values(np.concatenate([sine(200), np.zeros(RATE)]))
    assert found["energy_min"] == pytest.approx(-70, abs=0.1)
    assert found["mel00_min"] == pytest.approx(-70, abs=0.1)


def test_spectral_slopes_are_those_that_noise_was_given() -> None:
    spectrum = np.fft.rfft(noise(5.0))
    kilohertz = np.fft.rfftfreq(5 * RATE, 1 / RATE) / 1000
    tilted = np.fft.irfft(spectrum * 10 ** (-12 * kilohertz / 20))
    found = values(tilted)
    assert found["slope500_mean"] == pytest.approx(-12, abs=0.5)
    assert found["slope0_mean"] == pytest.approx(-12, abs=2)


def reference(sound: Array, rate: int) -> dict[str, Array]:
    """Descriptors of frames one by one in float64, straight from their definitions."""
    sound = sound - sound.mean()
    sound = sound / np.sqrt(np.mean(sound**2))
    long, size = round(0.05 * rate), round(0.025 * rate)
    points = 2 ** int(np.ceil(np.log2(size)))
    f = np.arange(points // 2 + 1) * rate / points
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(size) / size)
    edges = np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + min(8000, rate / 2) / 700), 28)
    mels = 2595 * np.log10(1 + f / 700)
    tracks: dict[str, list[float]] = {}
    for start in range(0, len(sound) - long + 1, round(0.01 * rate)):
        first = start + (long - size) // 2
        frame = sound[first : first + size]
        power = 2 / points / np.sum(window**2) * np.abs(np.fft.fft(frame * window, points)[: len(f)]) ** 2

        def decibels(p: Array) -> Array:
            return 10 * np.log10(p + 1e-7)

        bands = [
            decibels(np.sum(power * np.interp(mels, edges[i : i + 3], [0, 1, 0], left=0, right=0))) for i in range(26)
        ]
        row = {f"mel{i:02d}": band for i, band in enumerate(bands)}
        for k in range(1, 13):
            cosines = np.cos(np.pi * k * (np.arange(26) + 0.5) / 26)
            row[f"mfcc{k:02d}"] = np.sqrt(2 / 26) * np.dot(cosines, bands)
        middle, high = (f >= 50) & (f < 1000), (f >= 1000) & (f < 5000)
        row["alpha"] = decibels(power[middle].sum()) - decibels(power[high].sum())
        for name, low, top in (("slope0", 0, 500), ("slope500", 500, 1500)):
            within = (f >= low) & (f < top)
            row[name] = np.polyfit(f[within] / 1000, decibels(power[within]), 1)[0]
        below = power[f < 8000] + 1e-7 / points
        row["centroid"] = np.sum(below / below.sum() * f[f < 8000]) / 1000
        row["energy"] = decibels(np.mean(frame**2))
        for name, value in row.items():
            tracks.setdefault(name, []).append(float(value))
    return {name: np.array(track) for name, track in tracks.items()}


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_descriptors_their_deltas_and_statistics_are_those_of_the_reference(rate: int) -> None:
    loudness = 1 + np.sin(2 * np.pi * 3 * times(0.5, rate))
    sound = 0.1 * loudness * (pulses(150, 0.5, rate) + noise(0.5, rate)) + 0.2
    found = values(sound, rate)
    for name, track in reference(sound, rate).items():
        ends = np.concatenate([track[:1], track[:1], track, track[-1:], track[-1:]])
        delta = np.array([np.polyfit(range(5), ends[i : i + 5], 1)[0] for i in range(len(track))])
        for key, series in ((name, track), (f"{name}_delta", delta)):
            expected = {"mean": series.mean(), "std": series.std(), "min": series.min(), "max": series.max()}
            expected |= {f"p{p:02d}": np.percentile(series, p) for p in (5, 25, 50, 75, 95)}
            expected["slope"] = np.polyfit(0.01 * np.arange(len(series)), series, 1)[0]
            got = {statistic: found[f"{key}_{statistic}"] for statistic in expected}
            assert got == pytest.approx(expected, abs=0.01), key


def test_flux_is_the_distance_of_neighbouring_spectra() -> None:
    steady, changing = values(sine(500)), values(noise())
    assert steady["flux_max"] < 1e-3  # 500 Hz: whole periods from frame to frame
    hop = np.concatenate([sine(500, 0.5), sine(5000, 0.5)])
    # four frames share the way, and the Hellinger distance of the two spectra is the root of 2
    assert values(hop)["flux_max"] > 0.5
    assert values(hop)["flux_max"] < np.sqrt(2)
    assert 0.3 < changing["flux_min"] < changing["flux_max"] < 1


# ------------------------------------------------------------------------------------------- whatever the sound may be


@pytest.mark.parametrize("change", [lambda x: x + 0.3, lambda x: -x])
def test_neither_an_offset_nor_the_sign_change_anything(change: Callable[[Array], Array]) -> None:
    expected = values(syllables())
    assert values(change(syllables())) == pytest.approx(expected, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("gain", [1e-3, 0.1, 7])
def test_of_a_gain_only_the_level_knows(gain: float) -> None:
    expected = values(syllables())
    expected["level"] += 20 * np.log10(gain)
    assert values(gain * syllables()) == pytest.approx(expected, rel=1e-2, abs=1e-2)


def test_a_sound_has_about_the_same_features_at_higher_rates() -> None:
    def sound(rate: int) -> Array:
        weights = 0.9 ** np.arange(50)
        growing = (0.2 + times(1.0, rate)) * harmonics(150, weights, 1.0, rate)
        return np.concatenate([growing, np.zeros(rate // 2), growing[: rate // 2]])

    expected = values(sound(16000))
    compared = [n for n in NAMES if n.startswith(("mel", "energy", "centroid", "f0", "voiced", "duration", "level"))]
    compared = [
        n for n in compared if n.endswith(("_mean", "_p50", "_p75", "_share", "_stretches", "duration", "level"))
    ]
    for rate in (32000, 48000):
        found = values(sound(rate), rate)
        assert {n: found[n] for n in compared} == pytest.approx({n: expected[n] for n in compared}, rel=0.05, abs=0.5)


def test_names_are_unique_and_as_many_as_the_width() -> None:
    assert len(set(NAMES)) == len(NAMES) == feature_sets.width("functionals")
    assert {"mel03_delta_p95", "f0_p50", "mfcc12_slope", "hnr_delta_mean"} <= set(NAMES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(9000),
        np.ones(1),
        np.zeros(1),
        np.full(9000, 0.5),
        np.sign(noise()),
        np.clip(50 * sine(200), -1, 1),
        1e-12 * noise(),
        1e20 * noise(),
        np.eye(1, 9000)[0],
        noise()[:100],
    ],
    ids=["silence", "one", "zero", "constant", "signs", "clipped", "faint", "huge", "click", "short"],
)
def test_every_sound_has_finite_features_without_a_warning(sound: Array, rate: int) -> None:
    assert np.isfinite(list(values(sound, rate).values())).all()


def test_features_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    voice = np.concatenate([sine(f0, 0.5) * np.sin(np.linspace(0, np.pi, RATE // 2)) for f0 in (110, 180, 90, 240)])
    sound = (voice + 0.05 * noise(2.0)).astype(np.float32)
    whole = functionals.functionals(sound, RATE)
    for block in (16_000, 4_000, 480):
        monkeypatch.setattr(functionals, "BLOCK", block)
        np.testing.assert_allclose(functionals.functionals(sound, RATE), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_half_an_hour_of_sound_takes_less_than_500_mb(tmp_path: Path) -> None:
    sound = np.tile(0.1 * noise(10.0, 44100) * np.abs(sine(0.3, 10.0, 44100)), 180)
    soundfile.write(tmp_path / "long.flac", np.stack([sound, sound], axis=1), 44100)
    code = f"""
from pathlib import Path
from lightning_da.speech.audio import read_sound
from lightning_da.speech.functionals import functionals
functionals(read_sound(Path({str(tmp_path / "long.flac")!r}), 16000), 16000)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert int(found.stdout) < 500 * 1024


# -------------------------------------------------------------------------------------------------------- bandwidth


def low_passed(sound: Array, rate: int) -> Array:
    from scipy.signal import resample_poly

    return resample_poly(resample_poly(sound, rate, RATE), RATE, rate)


def test_the_bandwidth_is_that_of_the_sound_and_not_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for gender in ("female", "male"):
        voice = synthesis.draw_voice(gender, rng)
        manners = [synthesis.draw_manner(voice, emotion, rng) for emotion in ("sad", "angry") * 4]
        sounds = [synthesis.speak(voice, manner, rng) for manner in manners]

        def written(kind: str, change: Callable[[Array], Array], sounds: list[Array] = sounds) -> list[Path]:
            return [write(tmp_path / f"{kind}{i}.wav", change(sound)) for i, sound in enumerate(sounds)]

        wide = written("wide", lambda sound: sound)
        assert bandwidth(wide, RATE) == bandwidth(written("quiet", lambda sound: 0.03 * sound), RATE) == 8000
        assert bandwidth(wide, 8000) == 4000
        telephone = written("telephone", lambda sound: low_passed(sound, 8000))
        assert bandwidth(telephone, RATE) in (4000, 4500, 5000)
        assert bandwidth([*wide, *telephone], RATE) == 8000
    assert bandwidth([write(tmp_path / "nothing.wav", np.zeros(100))], RATE) == 0
    assert [common_rate(end) for end in (3500, 4500, 8000, 11500)] == [8000, 8000, 16000, 22050]


# -------------------------------------------------------------------------------------------------------- sound files


def write(path: Path, sound: Array, subtype: str = "PCM_16", rate: int = RATE) -> Path:
    soundfile.write(path, sound, rate, subtype=subtype)
    return path


@pytest.mark.parametrize(
    ("suffix", "subtype", "step"),
    [
        ("wav", "PCM_U8", 2**-7),
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-23),
        ("wav", "PCM_32", 2**-24),
        ("wav", "FLOAT", 2**-24),
        ("wav", "DOUBLE", 2**-24),
        ("flac", "PCM_S8", 2**-7),
        ("flac", "PCM_16", 2**-15),
        ("flac", "PCM_24", 2**-23),
    ],
)
def test_samples_of_each_kind_are_read_to_their_precision(
    tmp_path: Path, suffix: str, subtype: str, step: float
) -> None:
    sound = 0.7 * sine(440, 0.1)
    found = read_sound(write(tmp_path / f"a.{suffix}", sound, subtype), RATE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, sound, rtol=0, atol=step)


def test_the_standard_librarys_bytes_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = np.array([[0, 100], [32767, 32767], [-32768, 0], [5, -5]], dtype="<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav", RATE) * 2**15, samples.mean(axis=1), atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_a_sine_of_any_rate_is_the_same_sine_at_ours(tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", 0.5 * sine(1234, 1.0, rate), "FLOAT", rate)
    found = read_sound(path, RATE)
    assert found.dtype == np.float32
    assert len(found) == RATE
    np.testing.assert_allclose(found[500:-500], 0.5 * sine(1234)[500:-500], atol=2e-3)


def test_what_a_lower_rate_cannot_hold_is_gone_and_not_folded(tmp_path: Path) -> None:
    found = read_sound(write(tmp_path / "a.wav", sine(15000, 1.0, 44100), "FLOAT", 44100), RATE)
    assert np.abs(found[500:-500]).max() < 0.01


@pytest.mark.parametrize("rate", [8000, RATE])
def test_a_single_sample_is_a_sound(tmp_path: Path, rate: int) -> None:
    found = read_sound(write(tmp_path / "a.wav", np.array([0.5]), "FLOAT", rate), RATE)
    assert len(found) == RATE // rate
    assert found[0] == pytest.approx(0.5, rel=0.01)


def test_silent_and_clipped_sounds_are_read(tmp_path: Path) -> None:
    assert not read_sound(write(tmp_path / "a.flac", np.zeros(100)), RATE).any()
    found = read_sound(write(tmp_path / "b.flac", 3 * sine(440)), RATE)
    assert (found.min(), found.max()) == pytest.approx((-1, 1), abs=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
@pytest.mark.parametrize("block", [37, 1000])
def test_a_sound_that_is_read_in_blocks_is_the_whole_one(
    tmp_path: Path, rate: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.signal import resample_poly

    sound = np.stack([noise(0.3, rate), noise(0.3, rate, seed=1)], axis=1).astype(np.float32)
    path = write(tmp_path / "a.wav", sound, "FLOAT", rate)
    monkeypatch.setattr(audio, "BLOCK", block)
    np.testing.assert_array_equal(read_sound(path, RATE), resample_poly(sound.mean(axis=1), RATE, rate))


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_a_file_of_each_kind_that_ends_too_early_is_refused(tmp_path: Path, kind: str) -> None:
    soundfile.write(tmp_path / f"a.{kind}", 0.1 * noise(3.0), RATE)
    assert len(read_sound(tmp_path / f"a.{kind}", RATE)) == 3 * RATE
    os.truncate(tmp_path / f"a.{kind}", int(0.7 * (tmp_path / f"a.{kind}").stat().st_size))
    with pytest.raises(SoundError, match=rf"a\.{kind}: .*(cut off|lost sync).*; replace or remove it"):
        read_sound(tmp_path / f"a.{kind}", RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    path = write(tmp_path / "broken.wav", np.array([0.1, value, 0.2]), "FLOAT")
    with pytest.raises(SoundError, match=r"broken\.wav: some samples are NaN or infinite; replace or remove it"):
        read_sound(path, RATE)


def test_files_that_are_no_sounds_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "nothing.flac").touch()
    write(tmp_path / "cut.flac", noise())
    os.truncate(tmp_path / "cut.flac", 30)
    write(tmp_path / "empty.wav", np.zeros(0))
    for name in ("text.wav", "nothing.flac", "cut.flac"):
        with pytest.raises(SoundError, match=f"{name}: not a readable sound file .*; replace or remove it"):
            read_sound(tmp_path / name, RATE)
    with pytest.raises(SoundError, match=r"empty\.wav: holds no samples; replace or remove it"):
        read_sound(tmp_path / "empty.wav", RATE)
    for name in ("missing.wav", "."):
        with pytest.raises(SoundError, match=r"no sound file .*; correct the path"):
            read_sound(tmp_path / name, RATE)


# --------------------------------------------------------------------------------------------- extraction and its cache


class Counter:
    """Stands in for the features, counts what is computed, and stops at the sound of a number."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.count, self.stop_at, self._compute = 0, stop_at, functionals.functionals

    def __call__(self, sound: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        self.count += 1
        if self.count == self.stop_at:
            raise KeyboardInterrupt
        return self._compute(sound, rate)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    found = Counter()
    monkeypatch.setattr(functionals, "functionals", found)
    return found


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{f0}.wav", 0.5 * sine(f0, 0.2)) for f0 in (100, 140, 200, 280)]


def expected_rows(paths: list[Path]) -> Array:
    return np.stack([functionals.functionals(read_sound(path, RATE), RATE) for path in paths])


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.npy"))


def test_rows_are_those_of_the_files_in_their_order(paths: list[Path], tmp_path: Path) -> None:
    order = [paths[2], paths[0], paths[3]]
    found = extract.extract(order, "functionals", RATE, tmp_path / "cache")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected_rows(order))
    np.testing.assert_array_equal(extract.extract(order, "functionals", RATE, tmp_path / "cache"), found)


def test_no_files_are_no_rows(tmp_path: Path) -> None:
    assert extract.extract([], "functionals", RATE, tmp_path / "cache").shape == (0, len(NAMES))
    assert not (tmp_path / "cache").exists()


def test_what_is_in_the_cache_is_not_computed_again(
    paths: list[Path], tmp_path: Path, counter: Counter, capfd: pytest.CaptureFixture[str]
) -> None:
    extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    assert counter.count == 4
    assert "4/4" in capfd.readouterr().err
    paths[0].rename(tmp_path / "other name.wav")
    extract.extract([tmp_path / "other name.wav", *paths[1:]], "functionals", RATE, tmp_path / "cache")
    assert counter.count == 4
    assert capfd.readouterr().err == ""


def test_equal_files_are_computed_once(paths: list[Path], tmp_path: Path, counter: Counter) -> None:
    twin = Path(shutil.copy(paths[0], tmp_path / "twin.wav"))
    found = extract.extract([paths[0], twin, paths[0]], "functionals", RATE, tmp_path / "cache")
    assert counter.count == 1
    assert (found == found[0]).all()


def test_a_changed_file_is_computed_again(paths: list[Path], tmp_path: Path, counter: Counter) -> None:
    extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    write(paths[1], noise(0.2))
    found = extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    assert counter.count == 5
    np.testing.assert_array_equal(found, expected_rows(paths))


@pytest.mark.parametrize("module", [functionals, audio])
def test_a_change_of_rate_or_of_the_source_makes_other_entries(
    paths: list[Path], tmp_path: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    rows = extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    others = extract.extract(paths, "functionals", 8000, tmp_path / "cache")
    assert counter.count == 8
    assert not np.array_equal(rows, others)
    source = Path(module.__file__).read_text()
    (tmp_path / "changed.py").write_text(source + "\n# changed\n")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "changed.py"))
    extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    assert counter.count == 12


def cut(entry: Path) -> None:
    os.truncate(entry, entry.stat().st_size // 2)


def empty(entry: Path) -> None:
    os.truncate(entry, 0)


def scramble(entry: Path) -> None:
    entry.write_bytes(b"PK\x03\x04" + bytes(2000))


def narrow(entry: Path) -> None:
    np.save(entry, np.zeros(7, np.float32))


def spoil(entry: Path) -> None:
    np.save(entry, np.full(len(NAMES), np.nan, np.float32))


@pytest.mark.parametrize("damage", [cut, empty, scramble, narrow, spoil])
def test_a_broken_entry_is_computed_again(
    paths: list[Path], tmp_path: Path, counter: Counter, damage: Callable[[Path], None]
) -> None:
    expected = extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    damage(entries(tmp_path / "cache")[1])
    np.testing.assert_array_equal(extract.extract(paths, "functionals", RATE, tmp_path / "cache"), expected)
    assert counter.count == 5


def test_an_interrupted_extraction_goes_on_where_it_stopped(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functionals, "functionals", Counter(stop_at=3))
    with pytest.raises(KeyboardInterrupt):
        extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    monkeypatch.undo()
    rest = Counter()
    monkeypatch.setattr(functionals, "functionals", rest)
    found = extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    assert rest.count == 2
    np.testing.assert_array_equal(found, expected_rows(paths))


def test_an_entry_that_could_not_be_written_is_not_there(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(file: Any, row: Array) -> None:
        file.write(row.tobytes()[:100])
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match="disk full"):
        extract.extract(paths, "functionals", RATE, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_processes_compute_what_one_does(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counter: Counter
) -> None:
    monkeypatch.setattr(extract, "FEW", 2)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    environment = dict(os.environ)
    found = extract.extract(paths, "functionals", RATE, tmp_path / "cache", jobs=2)
    assert counter.count == 0  # they are others
    np.testing.assert_allclose(found, expected_rows(paths), rtol=1e-4, atol=1e-4)
    assert dict(os.environ) == environment
    assert sys.modules["__main__"].__name__ == "__main__"


def test_an_error_names_its_sound(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    with pytest.raises(SoundError, match=r"bad\.wav: not a readable sound file"):
        extract.extract([tmp_path / "bad.wav", *paths], "functionals", RATE, tmp_path / "cache", jobs=2)


def test_an_error_of_a_process_names_its_sound_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "FEW", 1)
    sounds = [write(tmp_path / f"{seed}.wav", noise(5, seed=seed)) for seed in range(20)]
    (tmp_path / "bad.wav").write_text("no sound")
    with pytest.raises(SoundError, match=r"bad\.wav: not a readable sound file"):
        extract.extract([sounds[0], tmp_path / "bad.wav", *sounds[1:]], "functionals", RATE, tmp_path / "cache", jobs=2)
    assert len(entries(tmp_path / "cache")) < 15


def test_an_unforeseen_error_names_its_sound_too(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sound: Array, rate: int) -> Array:
        raise ZeroDivisionError(f"{len(sound)} {rate}")

    monkeypatch.setattr(functionals, "functionals", fail)
    with pytest.raises(SoundError, match=r"100\.wav: no features 'functionals' \(ZeroDivisionError: 3200 16000\)"):
        extract.extract(paths, "functionals", RATE, tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "IS21"}, "no feature set 'IS21'; did you mean"),
        ({"rate": 4000}, "rate: 4000 is not within 8000 and 48000"),
        ({"rate": 96000}, "rate: 96000"),
        ({"jobs": 0}, "jobs: 0 is less than 1"),
        ({"paths": [Path("missing.wav")]}, "cannot read 'missing.wav'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"paths": [], "features": "functionals", "rate": RATE, "cache": tmp_path / "cache"}
    with pytest.raises(ConfigError, match=message):
        extract.extract(**usual | options)


def script(code: str, *arguments: object) -> list[str]:
    head = "import sys; from pathlib import Path; from lightning_da.speech import extract, functionals\n"
    return [sys.executable, "-c", head + code, *map(str, arguments)]


def test_workers_import_no_torch_and_no_data_frames() -> None:
    code = "print([name for name in ('torch', 'lightning', 'mlflow', 'pandas', 'opensmile') if name in sys.modules])"
    assert subprocess.run(script(code), capture_output=True, text=True, check=True).stdout == "[]\n"


def test_two_processes_at_once_compute_each_sound_once(paths: list[Path], tmp_path: Path) -> None:
    code = """
import time
compute = functionals.functionals
def slow(sound, rate):
    print("computed", flush=True)
    time.sleep(0.2)
    return compute(sound, rate)
functionals.functionals = slow
rows = extract.extract(sorted(Path(sys.argv[1]).glob("*.wav")), "functionals", 16000, Path(sys.argv[1]) / "cache")
print(rows.shape)
"""
    processes = [subprocess.Popen(script(code, tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = "".join(process.communicate()[0] for process in processes)
    assert output.count("computed") == len(paths)
    assert output.count(f"(4, {len(NAMES)})") == 2


def test_interrupted_processes_end_and_what_they_wrote_is_whole(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        # without a guard: the processes must not run it
        "import sys; from pathlib import Path; from lightning_da.speech import extract\n"
        "extract.FEW, folder = 1, Path(sys.argv[1])\n"
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it\n"
        "extract.extract(sorted(folder.glob('*.wav')), 'functionals', 16000, folder / 'cache', jobs=2)\n"
    )
    sounds = [write(tmp_path / f"{seed}.wav", noise(30, seed=seed)) for seed in range(4)]
    sounds += [write(tmp_path / f"{seed}.wav", noise(0.1, seed=seed)) for seed in range(4, 6)]
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(6000):
        if entries(tmp_path / "cache") or process.poll() is not None:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]  # until the last of the processes has closed it
    assert process.returncode == -signal.SIGINT, errors
    done = entries(tmp_path / "cache")
    assert 0 < len(done) < len(sounds)
    for entry in done:
        assert np.load(entry).shape == (len(NAMES),)


# ------------------------------------------------------------------------------------------------------------ openSMILE


def test_a_missing_package_is_named_with_its_installation_and_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extract, "package_version", missing)
    with pytest.raises(ConfigError, match=r"licence is for research: pip install 'opensmile>=2\.5,<3'.*\[speech\]"):
        extract.extract([], "IS12", RATE, tmp_path / "cache")
    assert feature_sets.width("IS12") == 6125


def test_widths_are_those_of_opensmile() -> None:
    opensmile = pytest.importorskip("opensmile")
    for name in feature_sets.FEATURE_SETS[1:]:
        smile = opensmile.Smile(opensmile.FeatureSet[name], opensmile.FeatureLevel.Functionals)
        assert feature_sets.width(name) == smile.num_features, name


def test_opensmile_gets_the_mono_sound_at_the_rate(tmp_path: Path) -> None:
    opensmile = pytest.importorskip("opensmile")
    stereo = np.stack([syllables(), 0.5 * noise(2.0, seed=3)], axis=1)
    path = write(tmp_path / "a.wav", 0.2 * stereo, "FLOAT")
    smile = opensmile.Smile(opensmile.FeatureSet.IS12, opensmile.FeatureLevel.Functionals)
    for rate in (RATE, 8000):
        expected = smile.process_signal(read_sound(path, rate), rate).to_numpy()
        found = extract.extract([path], "IS12", rate, tmp_path / "cache")
        assert found.shape == (1, 6125)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("features", feature_sets.FEATURE_SETS[1:])
def test_opensmile_has_finite_values_for_a_sample_and_for_silence(tmp_path: Path, features: str) -> None:
    pytest.importorskip("opensmile")
    sample = write(tmp_path / "a.wav", np.array([0.5]))
    silence = write(tmp_path / "b.wav", np.zeros(5000))
    found = extract.extract([sample, silence], features, RATE, tmp_path / "cache")
    assert found.shape == (2, feature_sets.width(features))
    assert np.isfinite(found).all()
    assert found.any(axis=1).all()
    assert not np.array_equal(*found)


def test_values_that_opensmile_has_none_for_are_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd = pytest.importorskip("pandas")
    row = np.ones(88, np.float32)
    row[:3] = np.nan, np.inf, -np.inf

    class Smile:
        def process_signal(self, sound: Array, rate: int) -> Any:
            assert len(sound) == rate / 10
            return pd.DataFrame(row[None])

    monkeypatch.setattr(extract, "package_version", lambda _: "1")
    monkeypatch.setattr(feature_sets, "_opensmile", lambda _: Smile())
    found = extract.extract([write(tmp_path / "a.wav", np.ones(5))], "eGeMAPSv02", RATE, tmp_path / "cache")
    np.testing.assert_array_equal(found[0], [0, 0, 0, *np.ones(85)])
