"""Draws the figures of the documentation: trains what they show, and writes them into a folder.

    python docs/figures.py embedding curve before_after layer_transfer attention --out docs

Minutes on two CPU cores: embedding 2, curve 1, before_after 10, layer_transfer 30, attention 2. Further words are
options of the trainings. `layer_transfer` reads MNIST, which it downloads.
"""

import argparse
from pathlib import Path
from typing import Any

import mlflow
from PIL import Image

from lightning_da.main import main
from lightning_da.store import client, tracking_uri

EXPERIMENT = "figures"
DIGITS = ["--config", "data/digits.yaml"]


def artifact(experiment: str, run: str, path: str) -> Image.Image:
    """A picture of a run, by the name of the run."""
    found = client().get_experiment_by_name(experiment)
    assert found is not None
    (latest, *_) = client().search_runs([found.experiment_id], f"run_name = '{run}'")
    mlflow.set_tracking_uri(tracking_uri())
    return Image.open(mlflow.artifacts.download_artifacts(run_id=latest.info.run_id, artifact_path=path))


def sweep(methods: list[str], options: list[str]) -> None:
    """Trains methods on typeset and handwritten digits."""
    name = ["--trainer.logger.init_args.experiment_name", EXPERIMENT]
    main(["sweep", "--methods", *methods, *DIGITS, *name, *options])


def embedding(options: list[str]) -> Image.Image:
    """The input of the classifier without and with adaptation, one above the other."""
    methods = ["source_only", "deep_coral"]
    sweep(methods, options)
    above, below = (artifact(EXPERIMENT, f"{method}-typeset-handwritten-s0", "embedding.png") for method in methods)
    both = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    return both


def curve(options: list[str]) -> Image.Image:
    """Measures over depth, of a run of DAN."""
    sweep(["dan"], options)
    return artifact(EXPERIMENT, "dan-typeset-handwritten-s0", "curve/curve.png")


def before_after(options: list[str]) -> Image.Image:
    """The last hidden layer after speakers and after emotions."""
    main(["speech-transfer", "--config", "data/speech.yaml", "--seeds", "0", "--trainer.max_steps", "400", *options])
    return artifact("speech_transfer", "speaker-emotion-2048:2048-s0", "before_after.png")


def layer_transfer(options: list[str]) -> Image.Image:
    """Accuracy over the number of copied layers."""
    task = ["--data.source", "mnist", "--data.download", "true", "--task_a", "0", "1", "2", "3", "4"]
    grid = ["--labels", "all", "100", "--seeds", "0", "1", "2"]
    main(["layer-transfer", *DIGITS, "--model.backbone.batch_norm", "false", *task, *grid, *options])
    return artifact("layer_transfer", "layer-transfer-mnist", "layer_transfer.png")


def attention(options: list[str]) -> Image.Image:
    """The words that a memory network reads in two domains of reviews."""
    files = ["method/amn.yaml", "data/sentences.yaml", "backbone/memory_network.yaml"]
    words = [word for file in files for word in ("--config", file)]
    words += ["--trainer.logger.init_args.experiment_name", EXPERIMENT]
    main(["fit", *words, *options])
    main(["test", *words, *options])
    return artifact(EXPERIMENT, "amn-synthetic-books-synthetic-kitchen-s0", "attention.png")


FIGURES = {figure.__name__: figure for figure in (embedding, curve, before_after, layer_transfer, attention)}


def run(args: list[str] | None = None) -> None:
    """Draws the figures that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", choices=FIGURES, help="the figures to draw")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder of the figures (default: docs)")
    given: Any
    given, options = parser.parse_known_args(args)
    for name in given.figures:
        FIGURES[name](options).convert("RGB").save(given.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    run()
