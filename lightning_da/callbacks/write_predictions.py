import csv
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_da.errors import ConfigError
from lightning_da.paths import write_whole


class WritePredictions(BasePredictionWriter):
    """Writes predictions to a CSV file with the columns sample (file or index), split, class and probability.

    Args:
        path: The CSV file; it appears only when it is complete.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        super().__init__("epoch")
        self.path = Path(path)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        if stage == "predict" and not self.path.absolute().parent.is_dir():
            raise ConfigError(f"predictions.path: there is no folder {str(self.path.absolute().parent)!r}")
        if stage == "predict" and self.path.is_dir():
            raise ConfigError(f"predictions.path: {str(self.path)!r} is a folder; name a file")

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        predictions: Any,
        batch_indices: Any,
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if len(data.predicted) == 1:  # Lightning has no outer list for a single dataloader
            predictions = [predictions]
        rows = []
        for split, batches, places in zip(data.predicted, predictions, batch_indices, strict=True):
            for probabilities, indices in zip(batches, places, strict=True):
                if not probabilities.isfinite().all():
                    raise ConfigError(
                        f"the network gives no finite probability to samples of the split {split}: it has diverged, or "
                        "the samples hold NaN or infinite values"
                    )
                best = probabilities.float().max(dim=1)
                for index, label, probability in zip(indices, best.indices, best.values, strict=True):
                    rows.append((split, int(index), data.classes[int(label)], f"{float(probability):.4f}"))
        shares: list[list[Any]] = [rows]
        if trainer.world_size > 1:
            shares = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(shares, rows)
        if not trainer.is_global_zero:
            return
        order = {split: place for place, split in enumerate(data.predicted)}
        merged = sorted((row for share in shares for row in share), key=lambda row: (order[row[0]], row[1]))
        names = {split: data.names("target", split) for split in data.predicted}
        with write_whole(self.path) as part, part.open("w", newline="", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(("sample", "split", "class", "probability"))
            writer.writerows((names[split][index], split, name, p) for split, index, name, p in merged)
        print(f"{len(merged)} predictions in {self.path}")
