"""The final network of a fit as a model in MLflow, which runs without this project."""

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import first_line
from lightning_da.inputs import Images, Input, Numbers, Sounds, Texts
from lightning_da.methods.classifier import Classifier
from lightning_da.paths import PACKAGE
from lightning_da.served import PROGRAM
from lightning_da.tracking import Tracker, chosen_checkpoint

CODE = (
    *("__init__.py", "errors.py", "inputs.py", "served.py"),
    *("speech/__init__.py", "speech/audio.py", "speech/feature_sets.py", "speech/functionals.py"),
    *("text/__init__.py", "text/words.py"),
)
"""Files of the package that a model takes with it."""
NEEDS: dict[type[Input], tuple[str, ...]] = {
    Numbers: (),
    Images: ("torchvision",),
    Sounds: ("scipy", "soundfile"),
    Texts: (),
}
"""Packages that a kind of input needs, besides those of every model."""
COLUMNS: dict[type[Input], tuple[str, str]] = {
    Images: ("binary", "image"),
    Sounds: ("binary", "sound"),
    Texts: ("string", "text"),
}
"""MLflow's type and the name of the column that holds an input."""
NO_MODEL = "no_model"
"""Tag of a run: why it has no model."""


class LogModel(L.Callback):
    """Logs the network with the final checkpoint as an MLflow model that loads without this project and without pickle.

    It answers as `predict` does: files, texts or numbers in; class probabilities, masks, numbers or embeddings out. If
    the network cannot be exported, a warning and the tag `no_model` of the run say why.
    """

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero or not isinstance(trainer.logger, Tracker):
            return
        if stage == "fit" and (checkpoint := chosen_checkpoint(trainer)):
            self.record(trainer, pl_module, checkpoint)
        elif stage == "test":
            trainer.logger.experiment.link_metrics(str(trainer.logger.run_id))

    def record(self, trainer: L.Trainer, module: Any, checkpoint: str) -> None:
        """Logs the model of a checkpoint.

        Args:
            trainer: The trainer, whose logger is a `Tracker`.
            module: The network.
            checkpoint: The checkpoint file.
        """
        from lightning_da import exporting  # noqa: PLC0415  # slow to import, and only the end of a fit needs it

        logger: Any = trainer.logger
        with TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            try:
                with exporting.restored(module, checkpoint):
                    pack(module, trainer.datamodule, place)  # type: ignore[attr-defined]
            except Exception as error:  # torch raises exceptions of many kinds
                reason = f"{type(error).__name__}: {first_line(error)}"
                rank_zero_warn(f"no model is logged, since the network cannot be exported ({reason})")
                logger.experiment.set_tag(logger.run_id, NO_MODEL, reason)
                return
            step = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
            kind = {"value": "regressor", "embedding": "embedding"}.get(module.answers_with, "classifier")
            logger.experiment.log_model(logger.run_id, str(place), step, kind, {"checkpoint": Path(checkpoint).name})


def pack(network: Classifier, data: DomainPairDataModule, folder: Path) -> None:
    """Writes a model as MLflow loads it: the exported network, the classes, and the code that reads the input.

    Args:
        network: The network, on the CPU.
        data: Its data.
        folder: The new folder.

    Raises:
        RunError: If the exported network gives other answers.
        Exception: Of many kinds, if torch cannot export the network.
    """
    import mlflow.pyfunc  # noqa: PLC0415  # slow to import

    from lightning_da.exporting import export, save  # noqa: PLC0415

    reads = data.reads
    program = export(network, data)
    with TemporaryDirectory() as parts:
        content = Path(parts) / PROGRAM
        save(program, content, network, data)
        code = _copy_code(Path(parts))
        packages = ("torch", "numpy", "pandas", "pillow", *NEEDS[type(reads)])
        if isinstance(reads, Sounds) and reads.features != "functionals":
            packages += ("opensmile",)
        signature, example = _signature(reads, network.answers_with)
        mlflow.pyfunc.save_model(
            folder,
            loader_module=f"{code.name}.served",
            data_path=str(content),
            code_paths=[str(code)],
            signature=signature,
            input_example=example,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", *packages)],
        )


def _copy_code(folder: Path) -> Path:
    """Copies the code of a model as a package of another name, so that neither hides the other where both are."""
    sources = {name: (PACKAGE / name).read_text() for name in CODE}
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()[:8]
    place = folder / f"lightning_da_{digest}"
    for name, text in sources.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(re.sub(r"\blightning_da\b", place.name, text))
    return place


def _signature(reads: Input, answers_with: str) -> tuple[Any, Any]:
    """The signature of a model, and an example of its input."""
    import pandas as pd  # noqa: PLC0415
    from mlflow.models import ModelSignature  # noqa: PLC0415
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec  # noqa: PLC0415
    from mlflow.types.schema import Array, Map  # noqa: PLC0415

    columns: dict[str, dict[str, Any]] = {
        "class": {"class": "string", "probability": "double", "probabilities": Map("double")},
        "mask": {"mask": Array(Array(DataType.long))},
        "value": {"value": "double"},
        "embedding": {"embedding": Array(DataType.double)},
    }
    answer = Schema([ColSpec(kind, name) for name, kind in columns[answers_with].items()])
    if isinstance(reads, Numbers):
        example = reads.blank[None].numpy()
        return ModelSignature(Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]), answer), example
    kind, column = COLUMNS[type(reads)]
    return ModelSignature(Schema([ColSpec(kind, column)]), answer), pd.DataFrame({column: [reads.example()]})
