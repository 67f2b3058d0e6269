"""A model that has left the project: it reads its file, and answers without the project and without pickle.

`mlflow.pyfunc.load_model` and `mlflow models serve` load it from here. The folder of a logged model has a copy of this
file and of those that it imports.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from lightning_da.errors import ConfigError
from lightning_da.inputs import of_description

PROGRAM, DESCRIPTION = "network.pt2", "model.json"
"""The file of a model, as `torch.export.save` writes it, and its entry with the kinds of input and answer."""
AT_ONCE = 64
"""Samples that pass through the network together."""


class Served:
    """A network that answers for files, texts or numbers: with classes, masks, numbers or embeddings.

    Args:
        path: The file of the model.
    """

    def __init__(self, path: Path) -> None:
        found: dict[str, Any] = {DESCRIPTION: ""}
        self.network = torch.export.load(path, extra_files=found).module()
        description = json.loads(found[DESCRIPTION])
        self.answers_with: str = description["answer"]
        self.classes: list[str] = description["classes"]
        self.reads = of_description(description["input"])

    @torch.no_grad()
    def outputs(self, given: Sequence[Any]) -> NDArray[np.float32]:
        """What the program gives: class probabilities (n, classes), of a segmentation (n, classes, height, width).

        In a regression it is numbers (n, 1), of a network that embeds embeddings (n, width).

        Args:
            given: The content of image or sound files, texts, or samples as arrays.

        Raises:
            ConfigError: If a sample cannot be read.
        """
        found = []
        for start in range(0, len(given), AT_ONCE):
            samples = [self._read(given[place], place) for place in range(start, min(start + AT_ONCE, len(given)))]
            found.append(self.network(torch.stack(samples)).numpy())
        return np.concatenate(found) if found else np.zeros((0, max(len(self.classes), 1)), dtype=np.float32)

    def _read(self, given: Any, place: int) -> torch.Tensor:
        try:
            return self.reads.read(given)
        except ConfigError as error:
            raise ConfigError(f"sample {place}, counted from 0: {error}") from error

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """The answers in the form of MLflow.

        Args:
            model_input: An array (n, ...) of samples, or a table with one column, which holds the content of files, or
                texts.
            params: Not used; MLflow gives it.

        Returns:
            A row for each sample: `class`, its `probability`, and the `probabilities` of all classes by their names; of
            a segmentation `mask`, the places of the classes in lists of rows; in a regression `value`; of a network
            that embeds `embedding`, a list.

        Raises:
            MlflowException: If a sample cannot be read; MLflow's server answers with its message.
        """
        given = model_input.iloc[:, 0].tolist() if isinstance(model_input, pd.DataFrame) else model_input
        try:
            found = self.outputs(given)
        except ConfigError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        if self.answers_with == "value":
            return pd.DataFrame({"value": found[:, 0].astype(np.float64)})
        if self.answers_with == "embedding":
            return pd.DataFrame({"embedding": found.tolist()})
        best = found.argmax(axis=1)
        if self.answers_with == "mask":
            return pd.DataFrame({"mask": best.tolist()})
        return pd.DataFrame(
            {
                "class": [self.classes[label] for label in best],
                "probability": [float(row[label]) for row, label in zip(found, best, strict=True)],
                "probabilities": [dict(zip(self.classes, map(float, row), strict=True)) for row in found],
            }
        )


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls to load a model."""
    return Served(Path(path))
