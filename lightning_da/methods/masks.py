"""The scores of predicted masks."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_stat_scores

from lightning_da.data.base import UNKNOWN

SCORES = ("dice", "jaccard", "sensitivity")


class MaskScores(Metric):
    """Counts the answers of a segmentation for a domain: Dice, Jaccard and sensitivity of each class, and pixels.

    Of an image, with the pixels of a class that are right (TP), wrong (FP) and missed (FN), Dice is 2 TP / (2 TP + FP +
    FN), Jaccard TP / (TP + FP + FN), and sensitivity TP / (TP + FN). Each is averaged over the images in which the
    divisor is not 0. Pixels without a class are left out.

    Args:
        num_classes: Number of classes.
    """

    full_state_update = False
    sums: Tensor
    images: Tensor
    pixels: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        shape = (len(SCORES), num_classes)
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, answers: Tensor, y: Tensor) -> None:
        """Adds answers and labels, each of shape (B, height, width), int64, labels `UNKNOWN` where not known."""
        how: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": UNKNOWN}
        counts = multiclass_stat_scores(answers, y, average=None, multidim_average="samplewise", **how)
        right, wrong, _, missed, _ = counts.double().unbind(dim=2)
        parts = [(2 * right, 2 * right + wrong + missed), (right, right + wrong + missed), (right, right + missed)]
        self.sums = self.sums.double()  # the trainer makes it bfloat16 in `bf16-true`
        for place, (found, whole) in enumerate(parts):
            self.sums[place] += (found / whole).nan_to_num().sum(dim=0)
            self.images[place] += (whole > 0).sum(dim=0)
        self.pixels += multiclass_confusion_matrix(answers, y, **how)

    def compute(self) -> dict[str, Tensor]:
        """`dice`, `jaccard` and `sensitivity`, shape (classes,), NaN for a class that occurs in no image.

        Beside them are `images`, the number of images in which the class occurs, shape (classes,), and `pixels`, the
        confusion matrix of all pixels, rows are true classes, shape (classes, classes).
        """
        means = dict(zip(SCORES, self.sums.double() / self.images, strict=True))
        return means | {"images": self.images[SCORES.index("sensitivity")], "pixels": self.pixels}
