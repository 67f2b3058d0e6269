"""How well do scores without target labels choose a method? Read from the trainings of no_harm.py.

    python benchmarks/no_harm.py --data-root prepared --out results
    python benchmarks/scores.py --out results

For each score: the rank correlation with the target accuracy over the methods of a pair and a seed; the regret, which
is the best accuracy less that of the chosen method; the difference of the chosen method to source-only, its mean and
its worst; and how often source-only is chosen. Means over seeds and pairs, for each group and for all. Then the same of
what is learned from the other pairs of a group (`transferability/earlier.py`), and of
the verdict of `sweep`, over trainings with one seed and over all seeds of a pair, and its estimate: the mean absolute
difference to the target accuracy of the chosen method, and how often that lies in the range.
"""

import argparse
import os
from pathlib import Path

import pandas as pd

from lightning_da.commands.compare import answers_of, tested_runs
from lightning_da.store import client
from lightning_da.transferability.earlier import Transfer, expected
from lightning_da.transferability.scores import SCORES
from lightning_da.transferability.verdict import verdict

BASELINE = "source_only"


def outcomes() -> pd.DataFrame:
    """One row for each tested training with scores: group, pair, seed, method, target accuracy and scores.

    Of trainings that were repeated, it is the latest.
    """
    rows = []
    for experiment in client().search_experiments(filter_string="name LIKE 'no_harm-%'"):
        for run in tested_runs(experiment.experiment_id):
            metrics, params = run.data.metrics, run.data.params
            row = {"group": experiment.name.removeprefix("no_harm-"), "acc": metrics["test/target/acc"]}
            row |= {"pair": f"{params['source']} -> {params['target']}", "seed": params["seed"]}
            row |= {"method": params["method"]}
            row["answers"] = answers_of(run)
            rows.append(row | {name: metrics.get(f"score/{name}") for name in SCORES})
    frame = pd.DataFrame(rows)
    return frame.drop_duplicates(["group", "pair", "seed", "method"]) if len(frame) else frame


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


def learned(rows: pd.DataFrame) -> pd.DataFrame:
    """What the other pairs of a group, with another target, name for a pair; a row for each pair, means over seeds."""
    found = []
    for group, part in rows.groupby("group"):
        of_pairs = part.groupby(["pair", "method"])[["acc", "a_distance"]].mean()
        accuracy = of_pairs["acc"].unstack().dropna(axis="columns")
        distance = of_pairs["a_distance"].xs(BASELINE, level="method")
        gains = accuracy.drop(columns=BASELINE).sub(accuracy[BASELINE], axis="index")
        for pair, own in gains.iterrows():
            target = str(pair).split(" -> ")[1]
            others = [name for name in gains.index if name.split(" -> ")[1] != target]
            earlier = [Transfer(name, distance[name], gains.loc[name].to_dict()) for name in others]
            best = expected(earlier, distance[str(pair)], gains.columns)
            if best is not None:
                gain = own[best.method] if best.gain > 0 else 0.0
                found.append({"group": group, "regret": max(own.max(), 0.0) - gain, "to source-only": gain})
    return pd.DataFrame(found)


def verdicts(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The verdict over the methods of each group of `keys`, beside the target accuracies."""
    found = []
    for (group, *_), part in rows.groupby(keys):
        accuracy = part.groupby("method")["acc"].mean()
        answers = {str(name): list(own) for name, own in part.groupby("method")["answers"]}
        if BASELINE not in answers or part["answers"].isna().any():
            continue
        said = verdict(answers, [BASELINE])
        row = {
            "group": group,
            "regret": accuracy.max() - accuracy[said.method],
            "to source-only": accuracy[said.method] - accuracy[BASELINE],
            "source-only chosen": float(said.method == BASELINE),
        }
        if said.estimate is not None and said.low is not None and said.high is not None:
            row["error of the estimate"] = abs(said.estimate - accuracy[said.method])
            row["in the range"] = float(said.low <= accuracy[said.method] <= said.high)
        found.append(row)
    return pd.DataFrame(found)


def by_group(rows: pd.DataFrame, counted: str) -> str:
    """The means of each group, the worst difference to source-only, and the number of rows."""
    groups = rows.groupby("group")
    table = groups.mean(numeric_only=True)
    table["worst"], table[counted] = groups["to source-only"].min(), groups.size()
    return table.to_string(float_format="%.3f")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that no_harm.py wrote to")
    given = parser.parse_args()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    rows = outcomes()
    found = choices(rows)
    for title, part in (*found.groupby("group"), ("all", found)):
        table = part.groupby("score").mean(numeric_only=True)
        table["worst"] = part.groupby("score")["to source-only"].min()
        print(f"{title}: {len(part) // found['score'].nunique()} choices")
        print(table.sort_values("regret").to_string(float_format="%.3f"), "\n")
    if len(told := learned(rows)):
        print("learned from the other pairs\n" + by_group(told, "pairs"), "\n")
    for title, keys in (("one seed", ["group", "pair", "seed"]), ("all seeds of a pair", ["group", "pair"])):
        said = verdicts(rows, keys)
        if len(said):
            every = pd.concat([said, said.assign(group="all")])
            print(f"the verdict of sweep, {title}\n{by_group(every, 'verdicts')}\n")


if __name__ == "__main__":
    main()
