"""Writes the example data/example/books.csv and kitchen.csv. Delete this file when you have data of your own."""

from pathlib import Path

import pandas as pd

from lightning_da.text.synthesis import write_reviews

Path("data/example").mkdir(parents=True, exist_ok=True)
for domain in ("books", "kitchen"):
    texts, labels = write_reviews(f"synthetic-{domain}", 1200)
    pd.DataFrame({"text": texts, "label": labels}).to_csv(f"data/example/{domain}.csv", index=False)
