"""Writes the example source.csv and target.csv into a folder. Delete this file when you have data of your own."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

CLASSES = ["apple", "pear", "plum"]

folder = Path(*sys.argv[1:2] or ["data/example"])
folder.mkdir(parents=True)
centres = np.random.default_rng(0).normal(0, 2, (3, 8))  # of the classes
shift = np.random.default_rng(1).normal(0, 3, 8)  # of the target
for number, domain in enumerate(("source", "target")):
    rng = np.random.default_rng([2, number])
    labels = rng.integers(3, size=600)
    x = centres[labels] + 1.5 * rng.normal(size=(600, 8)) + number * shift
    table = pd.DataFrame(x, columns=[f"x{i}" for i in range(8)])
    table["label"] = np.array(CLASSES)[labels]
    table.to_csv(folder / f"{domain}.csv", index=False, float_format="%.4f")
