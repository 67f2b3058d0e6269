import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch.distributed as dist
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_da.errors import ConfigError
from lightning_da.paths import check_output, write_whole


class WritePredictions(BasePredictionWriter):
    """Writes predictions to a CSV file with the columns sample (file or index), split, class and probability.

    Of a network that embeds, the columns after split are the numbers of the embedding; of a regression it is `value`.
    Of a segmentation it is `mask`: the path of a PNG file whose values are the classes, in a folder beside the CSV file
    that is called `<its name>_masks`, below the name of the split.
    With several targets the column `domain` comes after split.

    Args:
        path: The CSV file; it appears only when it is complete.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        super().__init__("epoch")
        self.path = Path(path)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        if stage == "predict":
            check_output("predictions.path", self.path, [".csv"], "sample,split,")
        if stage == "predict" and getattr(pl_module, "segments", False) and self._folder.is_file():
            raise ConfigError(f"predictions.path: {str(self._folder)!r} is a file, and masks need such a folder")

    @property
    def _folder(self) -> Path:
        """The folder of masks."""
        return self.path.with_name(f"{self.path.stem}_masks")

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Any,
        batch_indices: Any,
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if len(data.predicted) == 1:  # Lightning has no outer list for a single dataloader
            predictions = [predictions]
        embeds, regresses, rows = getattr(pl_module, "embeds", False), getattr(pl_module, "regresses", False), []
        segments = getattr(pl_module, "segments", False)
        for split, batches, places in zip(data.predicted, predictions, batch_indices, strict=True):
            for outputs, indices in zip(batches, places, strict=True):
                if not outputs.isfinite().all():
                    raise ConfigError(
                        f"the network gives no finite {'embedding' if embeds else 'answer'} to samples of the "
                        f"split {split}: it has diverged, or the samples hold NaN or infinite values"
                    )
                if segments:
                    answers: list[tuple[Any, ...]] = [(mask,) for mask in outputs.cpu().numpy()]
                elif embeds or regresses:
                    answers = _numbers(outputs)
                else:
                    answers = _classes(outputs.float(), data.classes)
                rows += [(split, int(index), *answer) for index, answer in zip(indices, answers, strict=True)]
        shares: list[list[Any]] = [rows]
        if trainer.world_size > 1:
            shares = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(shares, rows)
        if not trainer.is_global_zero:
            return
        order = {split: place for place, split in enumerate(data.predicted)}
        merged = sorted((row for share in shares for row in share), key=lambda row: (order[row[0]], row[1]))
        names = {split: data.names("target", split) for split in data.predicted}
        several = len(data.named["target"]) > 1
        domains = {
            split: [(name,) for name in data.domains_of("target", split)] if several else [()] * len(own)
            for split, own in names.items()
        }
        if segments:
            merged = [
                (split, index, self._write_mask(mask, Path(split, *_parts(names[split][index]))))
                for split, index, mask in merged
            ]
        with write_whole(self.path) as part, part.open("w", newline="", errors="surrogateescape") as file:
            writer = csv.writer(file)
            numbers = tuple(f"embedding_{place}" for place in range(len(merged[0]) - 2))
            columns = ("value",) if regresses else numbers if embeds else ("class", "probability")
            columns = ("mask",) if segments else columns
            writer.writerow(("sample", "split", *(("domain",) if several else ()), *columns))
            writer.writerows(
                (names[split][index], split, *domains[split][index], *answer) for split, index, *answer in merged
            )
        print(f"{len(merged)} predictions in {self.path}" + (f", masks in {self._folder}" if segments else ""))

    def _write_mask(self, mask: NDArray[np.uint8], name: Path) -> str:
        """Writes a mask, and returns its path relative to the folder of the CSV file."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as part:
            Image.fromarray(mask).save(part, "PNG")
        return path.relative_to(self.path.parent).as_posix()


def _parts(name: str) -> tuple[str, ...]:
    """The parts of the path of a mask, from the name of a sample: below its folder, with the suffix of a PNG file."""
    *folders, last = (part for part in Path(name).parts if part not in (os.sep, os.pardir))
    stem, suffix = os.path.splitext(last)
    return (*folders, f"{stem if suffix.lower() in Image.registered_extensions() else last}.png")


def _numbers(embeddings: Tensor) -> list[tuple[str, ...]]:
    return [tuple(f"{value:.6g}" for value in row) for row in embeddings.tolist()]


def _classes(probabilities: Tensor, names: Sequence[str]) -> list[tuple[str, ...]]:
    best = probabilities.max(dim=1)
    return [
        (names[label], f"{probability:.4f}")
        for label, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
