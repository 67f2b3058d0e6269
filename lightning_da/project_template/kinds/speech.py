"""Speaks the example speakers.csv and emotions.csv into a folder. Delete this file when you have data of your own."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from lightning_da.speech.synthesis import RATE, draw_manner, draw_voice, speak

EMOTIONS = ["neutral", "angry", "happy", "sad"]

folder = Path(*sys.argv[1:2] or ["data/example"])
folder.mkdir(parents=True)
for corpus, emotions in {"speakers": ["neutral"], "emotions": EMOTIONS}.items():
    rows = []
    for number in range(12):
        rng = np.random.default_rng([len(emotions), number])
        gender = ("female", "male")[number % 2]
        voice = draw_voice(gender, rng)
        for take in range(16):
            emotion = emotions[take % len(emotions)]
            name = f"{corpus}-{number}-{take:02d}.wav"
            soundfile.write(folder / name, speak(voice, draw_manner(voice, emotion, rng), rng), RATE)
            rows.append({"path": name, "speaker": f"{corpus}-{number}", "gender": gender, "emotion": emotion})
    pd.DataFrame(rows).to_csv(folder / f"{corpus}.csv", index=False)
