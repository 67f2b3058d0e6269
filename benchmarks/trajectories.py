"""How people travel, in a city without labels: a forest and a network that teach each other beside each alone.

    python benchmarks/trajectories.py --out results

Made trips (`lightning_da.data.Trajectories`), the settings of `conf/method/cotrans.yaml` and of
`conf/data/trajectories.yaml`. A seed draws the trips and the weights. A finished training is not run again; `--table`
prints what is there.
"""

import argparse
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from descriptions import Scores, built, train

from lightning_da.data import Trajectories
from lightning_da.grids.tables import mean_and_spread
from lightning_da.methods import CoTrans, FineTune
from lightning_da.networks import Movement, TrajectoryLeNet
from lightning_da.paths import write_whole

STEPS = 300
PAIR = ("grid", "winding")
PARTS = {"its forest": 1.0, "its network": 0.0}


def cell(taught: bool, seed: int) -> dict[str, Scores]:
    """Scores by the name of what answers: one training, and for CoTrans the forest before it."""
    L.seed_everything(seed, verbose=False)
    data: Any = Trajectories(*PAIR, seed=seed)
    kwargs: dict[str, Any] = {"backbone": partial(TrajectoryLeNet, batch_norm=True)}
    if not taught:
        return {"network alone": train(built(FineTune, data, 0.001, **kwargs), data, STEPS)}
    model = built(CoTrans, data, 0.001, forest_reads=Movement, **kwargs)
    found = {"cotrans": train(model, data, STEPS)}
    for name, model._weight_of_forest in PARTS.items():
        found[name] = train(model, data, 0)
    source = data.dataset(PAIR[0], "train")
    model.forest.fit(model.numbers(source.x), source.y)
    model._weight_of_forest = 1.0
    return found | {"forest alone": train(model, data, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each training (default: 3)")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    path = given.out / "trajectories.json"
    done: dict[str, dict[str, Scores]] = json.loads(path.read_text()) if path.exists() else {}
    if not given.table:
        torch.set_num_threads(1)
        given.out.mkdir(parents=True, exist_ok=True)
        for seed, taught in itertools.product(range(given.seeds), (False, True)):
            name = f"{taught}/{seed}"
            if name not in done:
                done[name] = cell(taught, seed)
                with write_whole(path) as part:
                    part.write_text(json.dumps(done, indent=1))
    rows = pd.DataFrame([(name, own["target/acc"]) for parts in done.values() for name, own in parts.items()])
    seen = rows.groupby(0)[1].agg(lambda x: mean_and_spread(x.mean(), x.std(), ".3f"))
    print(f"accuracy on the test split of {PAIR[1]}, {len(done) // 2} seeds\n{seen.to_string()}")


if __name__ == "__main__":
    main()
