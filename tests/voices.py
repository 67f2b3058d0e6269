"""Corpora of tones, small enough for tests: the pitch tells speakers apart, tremolo the emotions."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lightning_da.speech import synthesis

RATE = 8000
EMOTIONS = ("angry", "sad")


def sound(path: Path, pitch: float, tremolo: float = 0.0, seed: int = 0) -> None:
    """Writes a third of a second of a tone with harmonics and a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, int(10 * pitch)])
    times = np.arange(RATE // 3) / RATE
    tone = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in range(1, 6))
    tone = tone * (1 + 0.8 * np.sin(2 * np.pi * tremolo * times)) + rng.normal(0, 0.05, len(times))
    soundfile.write(path, 0.2 * tone, RATE)


def write(folder: Path, speakers: int, utterances: int, name: str = "s") -> list[dict[str, str]]:
    """Writes `<name>-<speaker>-<utterance>.wav`, emotions in turn, and returns the rows of its manifest."""
    rows = []
    for speaker in range(speakers):
        for utterance in range(utterances):
            emotion = utterance % 2
            path = folder / f"{name}-{speaker}-{utterance}.wav"
            start = 100 if name == "s" else 115
            sound(path, start + 30 * speaker + utterance, 12.0 * emotion, utterance)
            rows.append(
                {
                    "path": f"{folder.name}/{path.name}",
                    "speaker": f"{name}-{speaker}",
                    "gender": ("female", "male")[speaker % 2],
                    "emotion": EMOTIONS[emotion],
                }
            )
    return rows


def manifest(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] | None = None) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pair(folder: Path, speakers: int = 6, utterances: int = 4) -> None:
    """Writes `source.csv`, without emotions, and `target.csv`."""
    source = write(folder / "source", speakers, utterances)
    manifest(folder / "source.csv", source, ["path", "speaker", "gender"])
    manifest(folder / "target.csv", write(folder / "target", speakers, utterances, "t"))


def small_synthesis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the synthetic corpora as small as can be split."""
    for name, corpus in synthesis._CORPORA.items():
        monkeypatch.setitem(synthesis._CORPORA, name, corpus._replace(speakers=6, utterances=2))
