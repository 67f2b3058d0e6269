"""How many times faster than real time a core computes each feature set.

    python benchmarks/speech_features.py
    python benchmarks/speech_features.py --sounds FOLDER --rate 16000

On the sound files of a folder and those below it, or on tones in noise. Reading files and writing the cache are not
counted. The time is that of all threads, medians over rounds in which the sets take turns. The sets of openSMILE are
measured where it is installed (`pip install -c constraints.txt '.[speech]'`).
"""

import argparse
import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_da.errors import ConfigError
from lightning_da.speech.audio import SUFFIXES, read_sound
from lightning_da.speech.feature_sets import FEATURE_SETS, describe, width

Sound = NDArray[np.float32]


def made(rate: int) -> list[Sound]:
    """Twenty sounds of one to five seconds: a gliding tone with harmonics, in noise."""
    generator = np.random.default_rng(0)
    sounds = []
    for seconds in np.linspace(1, 5, 20):
        t = np.arange(int(seconds * rate)) / rate
        phase = 2 * np.pi * generator.uniform(80, 300) * (t + 0.1 * t**2)
        tone = np.sum([np.cos(k * phase) / k for k in range(1, 11)], axis=0)
        sounds.append((0.1 * tone + 0.02 * generator.normal(size=len(t))).astype(np.float32))
    return sounds


def read(folder: Path, rate: int) -> list[Sound]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ConfigError(f"{folder}: no {' or '.join(SUFFIXES)} files in it")
    return [read_sound(path, rate) for path in paths]


def seconds_of(sounds: list[Sound], features: str, rate: int) -> float:
    start = time.process_time()
    for sound in sounds:
        describe(sound, features, rate)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", type=Path, help="folder of sound files (default: sounds made here)")
    parser.add_argument("--rate", type=int, default=16000, help="samples per second (default: 16000)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    sounds = read(given.sounds, given.rate) if given.sounds else made(given.rate)
    heard = sum(map(len, sounds)) / given.rate
    sets = FEATURE_SETS if importlib.util.find_spec("opensmile") else FEATURE_SETS[:1]
    print(f"{len(sounds)} sounds, {heard:.0f} seconds, {given.rate} Hz")
    for features in sets:  # what is imported and made once is not counted
        describe(sounds[0], features, given.rate)
    rounds = [{features: seconds_of(sounds, features, given.rate) for features in sets} for _ in range(given.rounds)]
    for features in sets:
        seconds = statistics.median(taken[features] for taken in rounds)
        print(f"{features:12} {width(features):5} values, {heard / seconds:4.0f} times real time")


if __name__ == "__main__":
    main()
