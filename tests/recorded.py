"""Runs as fits and tests leave them, without a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param
from numpy.random import default_rng
from PIL import Image

from lightning_da.callbacks.label_free_scores import ANSWERS
from lightning_da.store import client
from lightning_da.tracking import find_experiment
from lightning_da.transferability.verdict import JUDGES

LAYERS = ("conv", "fc", "head")


def run(
    experiment: str,
    method: str,
    seed: int = 0,
    acc: float = 0.5,
    pair: tuple[str, str] = ("one", "two"),
    params: Mapping[str, str] | None = None,
    wrong: Sequence[int] | None = None,
    pictures: int = 0,
) -> str:
    """Records a tested run, and returns its id.

    Args:
        experiment: Name of an experiment that exists.
        method: Name of the method.
        seed: Seed of the training.
        acc: Target accuracy.
        pair: Source and target.
        params: Further parameters.
        wrong: Samples of 200 that the network gets wrong, for the verdict; None records no answers.
        pictures: Width of pictures of noise; 0 records none.
    """
    found = find_experiment(experiment).experiment_id
    name = f"{method}-{pair[0]}-{pair[1]}-s{seed}"
    run_id = client().create_run(found, run_name=name, tags={"data": "same"}).info.run_id
    given = {"method": method, "seed": str(seed), "source": pair[0], "target": pair[1], "train_on": "source"}
    figures = {"test/source/acc": 0.9, "test/target/acc": acc, "test/target/class_acc": acc - 0.01}
    points = [Metric(key, value, 0, 0) for key, value in figures.items()]
    points += [Metric("train/task_loss", 1 / (1 + step + seed), 0, step) for step in range(0, 20, 2)]
    client().log_batch(run_id, points, [Param(key, value) for key, value in (given | dict(params or {})).items()])
    curve = pd.DataFrame({"layer": LAYERS, "depth": [1, 2, 3], "value": [acc, acc / 2, acc / 4]})
    curve = curve.assign(panel="squared MMD", measure="mmd", network="trained")
    client().log_text(run_id, curve.to_csv(index=False), "curve/curve.csv")
    if wrong is not None:
        predicted = np.zeros(200, int)
        predicted[list(wrong)] = 1
        for name in JUDGES:
            client().log_metric(run_id, f"score/{name}", float((predicted == 0).mean()))
        client().log_text(run_id, json.dumps({"predicted": predicted.tolist()}), ANSWERS)
    for picture in ("confusion.png", "embedding.png") if pictures else ():
        noise = default_rng(seed).integers(0, 255, (pictures // 2, pictures, 3), dtype=np.uint8)
        path = Path(picture)
        Image.fromarray(noise).save(path)
        client().log_artifact(run_id, str(path))
    client().set_terminated(run_id)
    return str(run_id)
