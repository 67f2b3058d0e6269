"""How well do scores without target labels choose a method? Read from the trainings of no_harm.py.

    python benchmarks/no_harm.py --data-root prepared --out results
    python benchmarks/scores.py --out results

For each score: the rank correlation with the target accuracy over the methods of a pair and a seed; the regret, which
is the best accuracy less that of the chosen method; the difference of the chosen method to source-only, its mean and
its worst; and how often source-only is chosen. Means over seeds and pairs, for each group and for all.
"""

import argparse
import os
from pathlib import Path

import pandas as pd

from lightning_da.commands.compare import tested_runs
from lightning_da.tracking import client
from lightning_da.transferability.scores import SCORES

BASELINE = "source_only"


def outcomes() -> pd.DataFrame:
    """One row for each tested training with scores: group, pair, seed, method, target accuracy and scores."""
    rows = []
    for experiment in client().search_experiments(filter_string="name LIKE 'no_harm-%'"):
        for run in tested_runs(experiment.experiment_id):
            metrics, params = run.data.metrics, run.data.params
            row = {"group": experiment.name.removeprefix("no_harm-"), "acc": metrics["test/target/acc"]}
            row |= {"pair": f"{params['source']} -> {params['target']}", "seed": params["seed"]}
            row |= {"method": params["method"]}
            rows.append(row | {name: metrics.get(f"score/{name}") for name in SCORES})
    return pd.DataFrame(rows)


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """What each score chooses among the methods of a pair and a seed."""
    found = []
    for (group, _, _), part in rows.groupby(["group", "pair", "seed"]):
        accuracy = part.set_index("method")["acc"]
        for name in SCORES:
            values = part.set_index("method")[name].astype(float)
            if BASELINE not in accuracy or values.isna().any() or len(values) < 2:
                continue
            chosen = str(values.idxmax())
            found.append(
                {
                    "group": group,
                    "score": name,
                    "rank correlation": values.corr(accuracy, method="spearman"),
                    "regret": accuracy.max() - accuracy[chosen],
                    "to source-only": accuracy[chosen] - accuracy[BASELINE],
                    "source-only chosen": float(chosen == BASELINE),
                }
            )
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that no_harm.py wrote to")
    given = parser.parse_args()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    found = choices(outcomes())
    for title, part in (*found.groupby("group"), ("all", found)):
        table = part.groupby("score").mean(numeric_only=True)
        table["worst"] = part.groupby("score")["to source-only"].min()
        print(f"{title}: {len(part) // found['score'].nunique()} choices")
        print(table.sort_values("regret").to_string(float_format="%.3f"), "\n")


if __name__ == "__main__":
    main()
