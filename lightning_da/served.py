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
"""The file of a model, as `torch.export.save` writes it, and the entry in it with the classes and the kind of input."""
AT_ONCE = 64
"""Samples that pass through the network together."""


class Served:
    """A classifier of files, texts or numbers, or of the pixels of images.

    Args:
        path: The file of the model.
    """

    def __init__(self, path: Path) -> None:
        found: dict[str, Any] = {DESCRIPTION: ""}
        self.network = torch.export.load(path, extra_files=found).module()
        description = json.loads(found[DESCRIPTION])
        self.classes: list[str] = description["classes"]
        self.reads = of_description(description["input"])

    @torch.no_grad()
    def probabilities(self, given: Sequence[Any]) -> NDArray[np.float32]:
        """Class probabilities, shape (n, classes); of a segmentation (n, classes, height, width).

        Args:
            given: The content of image or sound files, texts, or samples as arrays.

        Raises:
            ConfigError: If a sample cannot be read.
        """
        found = []
        for start in range(0, len(given), AT_ONCE):
            samples = [self._read(given[place], place) for place in range(start, min(start + AT_ONCE, len(given)))]
            found.append(self.network(torch.stack(samples)).numpy())
        return np.concatenate(found) if found else np.zeros((0, len(self.classes)), dtype=np.float32)

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
            a segmentation `mask`, the places of the classes in lists of rows.

        Raises:
            MlflowException: If a sample cannot be read; MLflow's server answers with its message.
        """
        given = model_input.iloc[:, 0].tolist() if isinstance(model_input, pd.DataFrame) else model_input
        try:
            found = self.probabilities(given)
        except ConfigError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        best = found.argmax(axis=1)
        if best.ndim > 1:
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
