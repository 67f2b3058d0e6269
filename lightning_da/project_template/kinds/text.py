"""Writes the example books.csv and kitchen.csv into a folder. Delete this file when you have data of your own."""

import sys
from pathlib import Path

import pandas as pd

from lightning_da.text.synthesis import write_reviews

folder = Path(*sys.argv[1:2] or ["data/example"])
folder.mkdir(parents=True)
for domain in ("books", "kitchen"):
    texts, labels = write_reviews(f"synthetic-{domain}", 1200)
    pd.DataFrame({"text": texts, "label": labels}).to_csv(folder / f"{domain}.csv", index=False)
