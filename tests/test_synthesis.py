"""The synthesiser against what is known of its parts, the two corpora, and how they are written."""

import csv
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile
from numpy.typing import NDArray

from lightning_da.errors import ConfigError
from lightning_da.speech import synthesis
from lightning_da.speech.synthesis import (
    CORPORA,
    EMOTIONS,
    GENDERS,
    RATE,
    Manner,
    Phone,
    Voice,
    draw_manner,
    draw_voice,
    filter_frames,
    glottal_source,
    resonances,
    say,
    speak,
    write_corpus,
)

Array = NDArray[np.float64]
SPEAKERS, EMOTIONAL = CORPORA
VOICE = Voice("male", 120.0, 17.5, 0.6, 8.0, -10.0, 0.0, 0.0, 1.0, np.ones(6))
HABIT = Manner()
AH = (700.0, 1100.0, 2500.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora of 4 speakers."""
    for name, corpus in list(synthesis._CORPORA.items()):
        monkeypatch.setitem(synthesis._CORPORA, name, corpus._replace(speakers=4, utterances=2))


def rows(manifest: Path) -> list[dict[str, str]]:
    with open(manifest, newline="") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pitch_of(sound: Array) -> float:
    """The median, over loud frames of 50 ms, of the first lag within 60 to 500 Hz at which a frame is like itself."""
    frames = sound[: len(sound) // 800 * 800].reshape(-1, 800)
    found = []
    for frame in frames[frames.std(axis=1) > 0.3 * frames.std(axis=1).max()]:
        own = scipy.signal.correlate(frame, frame)[799:] / np.arange(800, 0, -1)
        lags = 32 + scipy.signal.find_peaks(own[32:267], height=0.8 * own[32:267].max())[0]
        found.extend(RATE / lags[:1])
    return float(np.median(found))


def spectrum_of(sound: Array) -> tuple[Array, Array]:
    return scipy.signal.welch(sound, RATE, nperseg=1024)


def level(sound: Array) -> float:
    return float(20 * np.log10(sound.std()))


def balance(sound: Array) -> float:
    """Level above 1.5 kHz relative to that below, in dB: higher for a flatter spectrum."""
    frequencies, power = spectrum_of(sound)
    return float(10 * np.log10(power[frequencies > 1500].sum() / power[frequencies < 1500].sum()))


def steady(voice: Voice, manner: Manner = HABIT) -> Array:
    """A monotonous vowel of about 1 s, without its ends."""
    sound = say([Phone(1.2, 1, 0, AH)], voice, manner._replace(span=-20), np.random.default_rng(0))
    return sound[1600:-1600]


# ---------------------------------------------------------------- source and tract


@pytest.mark.parametrize("pitch", [80.0, 125.0, 200.0, 320.0])
def test_a_steady_vowel_has_the_pitch_of_the_voice(pitch: float) -> None:
    assert pitch_of(steady(VOICE._replace(pitch=pitch))) == pytest.approx(pitch, rel=0.02)


def test_manner_raises_pitch_by_semitones() -> None:
    raised = pitch_of(steady(VOICE, Manner(pitch=7))) / pitch_of(steady(VOICE))
    assert raised == pytest.approx(2 ** (7 / 12), rel=0.02)


def test_effort_raises_the_level_and_flattens_the_spectrum() -> None:
    soft, loud = steady(VOICE), steady(VOICE, Manner(effort=6))
    assert 3 < level(loud) - level(soft) < 10
    assert balance(loud) > balance(soft) + 1.5


def test_breath_adds_noise_between_the_harmonics() -> None:
    def hoarse(breath: float) -> float:
        power = np.abs(np.fft.rfft(steady(VOICE, Manner(breath=breath, roughness=-20))[:16000] * np.hanning(16000)))
        return float(power[180:2000:120].mean() / power[120:2000:120].mean())

    assert hoarse(20) > 3 * hoarse(0)


def test_roughness_is_jitter_and_shimmer() -> None:
    def spread(roughness: float) -> Array:
        voice, manner = VOICE._replace(breath=-200.0), Manner(roughness=roughness)
        flow = glottal_source(np.full(RATE, 100.0), voice, manner, np.random.default_rng(0))
        peaks = scipy.signal.find_peaks(flow, distance=100)[0]
        return np.array([np.diff(peaks).std() / np.diff(peaks).mean(), flow[peaks].std() / flow[peaks].mean()])

    np.testing.assert_allclose(spread(-20), 0, atol=1e-3)
    np.testing.assert_allclose(spread(0), [0.008, 0.05], rtol=0.3)
    np.testing.assert_allclose(spread(np.log(2)), 2 * spread(0), rtol=0.2)


def test_the_glottis_is_open_for_its_quotient() -> None:
    voice = VOICE._replace(breath=-200.0, open_quotient=0.5, tilt=0.5)
    flow = glottal_source(np.full(RATE, 100.0), voice, Manner(roughness=-20), np.random.default_rng(0))
    assert np.mean(flow > 0.001 * flow.max()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("pitch", [80.0, 300.0])
def test_the_flow_falls_by_one_a_sample_at_any_pitch(pitch: float) -> None:
    voice = VOICE._replace(breath=-200.0, tilt=0.5)
    flow = glottal_source(np.full(RATE, pitch), voice, Manner(roughness=-20), np.random.default_rng(0))
    assert -np.diff(flow).min() == pytest.approx(1, abs=0.1)


def test_a_tract_that_stays_the_same_is_a_cascade_of_resonators() -> None:
    sound = np.random.default_rng(0).normal(size=5000)
    frequencies, bandwidths = np.array([[500.0, 1500.0, 2500.0]]), np.array([80.0, 100.0, 150.0])
    expected = sound
    for frequency, bandwidth in zip(frequencies[0], bandwidths, strict=True):
        pole = np.exp(np.pi * (-bandwidth + 2j * frequency) / RATE)
        denominator = np.poly([pole, pole.conj()]).real
        expected = scipy.signal.lfilter([denominator.sum()], denominator, expected)
    found = filter_frames(sound, resonances(frequencies, bandwidths))
    np.testing.assert_allclose(found, expected, atol=0.01 * float(expected.std()))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 2000])
def test_frames_that_are_not_filtered_add_up_to_the_sound(size: int) -> None:
    sound = np.random.default_rng(size).normal(size=size)
    np.testing.assert_allclose(filter_frames(sound, np.ones((1, 513), dtype=complex)), sound, atol=1e-12)


def test_formants_are_inverse_to_the_length_of_the_tract() -> None:
    def peaks(tract: float) -> Array:
        breathy = VOICE._replace(tract=tract, breath=100.0)  # noise shows all of the tract
        frequencies, power = spectrum_of(say([Phone(8, 1, 0, AH)], breathy, HABIT, np.random.default_rng(0)))
        envelope = np.log(np.convolve(power, np.hanning(7), mode="same"))
        return np.array(frequencies[scipy.signal.find_peaks(envelope, prominence=0.3)[0][:4]])

    np.testing.assert_allclose(peaks(17.5), [*AH, 3500], rtol=0.06)
    np.testing.assert_allclose(peaks(14.0) / peaks(17.5), 1.25, rtol=0.06)


def test_tempo_divides_the_time() -> None:
    sizes = [len(steady(VOICE, Manner(tempo=tempo))) + 3200 for tempo in (0.0, 0.5)]
    assert sizes[0] / sizes[1] == pytest.approx(np.exp(0.5), rel=1e-3)


def test_a_pause_is_silent_and_a_hiss_is_high() -> None:
    sound = say(
        [Phone(0.3, 1, 0, AH), Phone(0.3, 0, 0, AH), Phone(0.3, 0, 1, AH)], VOICE, HABIT, np.random.default_rng(0)
    )
    vowel, pause, hiss = (sound[start : start + 1600] for start in (1600, 6400, 11200))
    assert np.abs(pause).max() < 1e-3 * np.abs(vowel).max()
    assert balance(hiss) > 10 > -5 > balance(vowel)


# ---------------------------------------------------------------- speakers and emotions


def test_women_have_higher_pitch_and_shorter_tracts_but_the_genders_overlap() -> None:
    drawn = {gender: [draw_voice(gender, np.random.default_rng(seed)) for seed in range(400)] for gender in GENDERS}
    pitch, tract = (
        {gender: np.array([getattr(voice, field) for voice in drawn[gender]]) for gender in GENDERS}
        for field in ("pitch", "tract")
    )
    assert 185 < np.median(pitch["female"]) < 215
    assert 105 < np.median(pitch["male"]) < 130
    assert 1.08 < tract["male"].mean() / tract["female"].mean() < 1.2
    assert pitch["male"].max() > pitch["female"].min()
    assert tract["male"].min() < tract["female"].max()


def test_emotions_differ_as_in_people_and_overlap() -> None:
    found: dict[str, list[list[float]]] = {emotion: [] for emotion in EMOTIONS}
    for emotion, seed in ((emotion, seed) for emotion in EMOTIONS for seed in range(24)):
        rng = np.random.default_rng(seed)
        voice = draw_voice(GENDERS[seed % 2], rng)
        sound = speak(voice, draw_manner(voice, emotion, rng), rng)
        found[emotion].append([pitch_of(sound) / voice.pitch, level(sound), balance(sound), -len(sound)])
    of = {emotion: np.array(values) for emotion, values in found.items()}
    assert np.all(of["angry"].mean(axis=0) > of["sad"].mean(axis=0))
    assert np.all(of["angry"][:, 1:3].mean(axis=0) > of["happy"][:, 1:3].mean(axis=0))
    assert of["happy"][:, 0].mean() > of["neutral"][:, 0].mean() > of["sad"][:, 0].mean()
    assert np.all(of["happy"].max(axis=0) > of["angry"].min(axis=0))
    assert np.all(of["sad"].max(axis=0) > of["neutral"].min(axis=0))


def test_neutral_is_the_habit_of_a_speaker_on_average() -> None:
    manners = np.array([draw_manner(VOICE, "neutral", np.random.default_rng(seed)) for seed in range(400)])
    np.testing.assert_allclose(manners.mean(axis=0) / manners.std(axis=0), 0, atol=4 / np.sqrt(400))
    assert np.all(manners.std(axis=0) > 0)


def test_an_expressive_speaker_shows_more() -> None:
    mild, strong = (
        np.mean(
            [draw_manner(VOICE._replace(expression=e), "angry", np.random.default_rng(seed)) for seed in range(400)], 0
        )
        for e in (0.5, 1.5)
    )
    np.testing.assert_allclose(strong / mild, 3, rtol=0.2)


# ---------------------------------------------------------------- corpora


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", CORPORA)
def test_writing_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    first, second = (write_corpus(name, tmp_path / place).parent for place in "ab")
    assert first != second
    assert content(first) == content(second)


@pytest.mark.usefixtures("small")
def test_a_speaker_does_not_depend_on_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four = content(write_corpus(SPEAKERS, tmp_path / "four").parent)
    monkeypatch.setitem(synthesis._CORPORA, SPEAKERS, synthesis._CORPORA[SPEAKERS]._replace(speakers=2, utterances=1))
    two = content(write_corpus(SPEAKERS, tmp_path / "two").parent)
    assert len(two) == 3
    assert all(four[path] == sound for path, sound in two.items() if path != "manifest.csv")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", CORPORA)
def test_the_manifest_lists_exactly_the_files(name: str, tmp_path: Path) -> None:
    manifest = write_corpus(name, tmp_path)
    listed = rows(manifest)
    assert manifest.parent.parent == tmp_path
    assert sorted([row["path"] for row in listed] + ["manifest.csv"]) == sorted(content(manifest.parent))
    columns = ["path", "speaker", "gender"] + ["emotion"] * (name == EMOTIONAL)
    assert all(list(row) == columns for row in listed)
    assert len({(manifest.parent / row["path"]).read_bytes() for row in listed}) == len(listed)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", CORPORA)
def test_files_are_sound_16_bit_mono_without_clipping_or_offset(name: str, tmp_path: Path) -> None:
    manifest = write_corpus(name, tmp_path)
    for row in rows(manifest):
        info = soundfile.info(manifest.parent / row["path"])
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", RATE, 1)
        assert 0.6 < info.duration < 3
        sound, _ = soundfile.read(manifest.parent / row["path"])
        assert 0.005 < np.abs(sound).max() < 0.96
        assert abs(sound.mean()) < 1e-3 * sound.std()


def test_corpora_are_balanced_and_share_no_speaker_and_no_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    voices: list[Voice] = []

    def silent(voice: Voice, *_: Any) -> Array:
        voices.append(voice)
        return np.zeros(160)

    monkeypatch.setattr(synthesis, "speak", silent)
    speakers, emotional = ([row for row, _ in synthesis._utterances(name)] for name in CORPORA)
    assert (len(speakers), len(emotional)) == (800, 320)
    assert len({voice.pitch for voice in voices}) == 60
    by = [{row["speaker"]: row["gender"] for row in listed} for listed in (speakers, emotional)]
    assert not by[0].keys() & by[1].keys()
    assert [list(genders.values()).count("female") for genders in by] == [20, 10]
    cells = [(row["speaker"], row["emotion"]) for row in emotional]
    assert {cells.count(cell) for cell in cells} == {4}
    assert len(set(cells)) == 20 * 4


def test_the_second_room_is_noisier_and_its_channel_duller() -> None:
    silence = np.zeros(RATE)
    quiet, noisy = (
        synthesis._record(silence, synthesis._CORPORA[name].recording, np.random.default_rng(0)) for name in CORPORA
    )
    assert 10 < level(noisy) - level(quiet) < 13
    assert balance(noisy) < balance(quiet) - 0.5


def test_a_channel_leaves_the_lowest_frequencies_as_they_are() -> None:
    sound = 0.5 * np.sin(2 * np.pi * 20 * np.arange(RATE) / RATE)
    heard = synthesis._record(sound, synthesis._CORPORA[EMOTIONAL].recording, np.random.default_rng(0))
    assert level(heard) == pytest.approx(level(sound), abs=0.01)


def test_a_sound_that_is_too_loud_is_turned_down_as_a_whole() -> None:
    sound = 3 * np.sin(np.arange(RATE) / 10)
    heard = synthesis._record(sound, synthesis._Recording(-200, 0), np.random.default_rng(0))
    np.testing.assert_allclose(heard, 0.95 * sound / np.abs(sound).max(), atol=1e-6)


# ---------------------------------------------------------------- writing


@pytest.mark.usefixtures("small")
def test_a_corpus_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_corpus(SPEAKERS, tmp_path)
    monkeypatch.setattr(synthesis, "speak", None)
    assert write_corpus(SPEAKERS, tmp_path) == manifest


@pytest.mark.usefixtures("small")
def test_what_an_interrupted_writing_leaves_is_not_taken_for_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(write_corpus(SPEAKERS, tmp_path / "whole").parent)
    with monkeypatch.context() as patch:

        def broken(folder: Path, *_: Any, **__: Any) -> None:
            folder.write_bytes(b"half")
            if "03" in folder.name:
                raise KeyboardInterrupt

        patch.setattr(soundfile, "write", broken)
        with pytest.raises(KeyboardInterrupt):
            write_corpus(SPEAKERS, tmp_path / "broken")
    assert not list((tmp_path / "broken").rglob("manifest.csv"))
    assert content(write_corpus(SPEAKERS, tmp_path / "broken").parent) == whole
    assert not list((tmp_path / "broken").glob("*.partial"))


@pytest.mark.usefixtures("small")
def test_of_two_at_once_one_writes_and_both_find_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = synthesis._write, []

    def slow(name: str, folder: Path) -> None:
        calls.append(name)
        time.sleep(0.2)
        write(name, folder)

    monkeypatch.setattr(synthesis, "_write", slow)
    with ThreadPoolExecutor(2) as pool:
        manifests = list(pool.map(write_corpus, [SPEAKERS] * 2, [tmp_path] * 2))
    assert calls == [SPEAKERS]
    assert len(rows(manifests[0])) == len(rows(manifests[1])) == 8


def test_an_unknown_corpus_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'synthetic-speaker'; did you mean 'synthetic-speakers'\? there are: "):
        write_corpus("synthetic-speaker", tmp_path)
    assert not list(tmp_path.iterdir())
