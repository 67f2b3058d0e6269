from collections.abc import Sequence
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_da.data.base import UNKNOWN, DataError, DomainPairDataModule
from lightning_da.errors import ConfigError
from lightning_da.gather import mean_over_processes
from lightning_da.methods.classifier import scores
from lightning_da.methods.own_classes import OwnClasses


class ZeroShot(OwnClasses):
    """The base of zero-shot learning: the score of a class comes from its description, so that it needs no sample.

    The source has the seen classes, with labels. The target has the unseen classes; its labels are only tested. A
    sample of the target chooses among the unseen classes. In the generalised setting the samples of both domains choose
    among all classes: `generalised/seen` and `generalised/unseen` are mean accuracies over the classes, and
    `generalised/harmonic` is their harmonic mean (Xian et al., "Zero-shot learning: the good, the bad and the ugly",
    CVPR 2017, section 4.3, https://arxiv.org/abs/1703.04394).

    A subclass fills `describe` and `losses`, and calls `set_head`.

    Args:
        num_attributes: Number of attributes in the description of a class; the data module gives it.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If there are no descriptions; when a fit begins, if a class is not described.
        DataError: When a fit begins, if a class is both seen and unseen.
    """

    def __init__(self, num_attributes: int, **kwargs: Any) -> None:
        super().__init__(train_on="source", label_smoothing=0.0, **kwargs)
        if num_attributes < 1:
            raise ConfigError("zero-shot learning needs descriptions of the classes; set --data.descriptions FILE")
        self._generalised = nn.ModuleDict(
            {stage: MulticlassConfusionMatrix(self.num_classes, ignore_index=UNKNOWN) for stage in ("val", "test")}
        )

    def set_head(self, outputs: int, scores: nn.Module) -> None:
        """Makes the head a linear map of the features, and the scores of the classes from its outputs.

        Args:
            outputs: Number of outputs of the map.
            scores: From these (n, outputs) to (n, num_classes).
        """
        self.add_module("head", nn.Sequential(nn.Linear(self.head.in_features, outputs), scores))

    @property
    def linear(self) -> nn.Linear:
        """The map of the features, the first part of the head."""
        linear, _ = self.head.children()
        return cast(nn.Linear, linear)

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        """Takes the descriptions of the classes too."""
        super().fit_inputs(data)
        shared = [name for name in data.classes_in("source") if name in data.classes_in("target")]
        if shared:
            raise DataError(
                f"{', '.join(map(repr, shared[:5]))}{' ...' if len(shared) > 5 else ''}: seen in {data.source!r}, and "
                f"unseen in {data.target!r}; zero-shot learning is tested on classes without a training sample"
            )
        self.own[1] = ~self.own[0]
        if data.described is not None:
            descriptions = data.described.of(data.classes)
            _warn_of_twins(descriptions, self.own[1], data.classes)
            self.describe(descriptions, self.own[0])

    def describe(self, descriptions: Tensor, seen: Tensor) -> None:
        """Takes the descriptions of the classes.

        Args:
            descriptions: Shape (num_classes, num_attributes).
            seen: The classes that have samples in training, shape (num_classes,), bool.
        """
        raise NotImplementedError

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            outputs: Of the linear map, shape (n, width).
            y: Labels, shape (n,), int64.

        Returns:
            Shape (n,).
        """
        raise NotImplementedError

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return features, self.among_own(self.head(features))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        x, (y,), _ = self.joined_samples(batch)
        outputs = self.linear(self.features(x))
        self.set_domain("target")
        known = y != UNKNOWN
        loss = mean_over_processes(self.losses(outputs[known], y[known]).sum(), known.sum())
        self.log("train/task_loss", loss)
        return loss

    def _evaluate(self, stage: str, batch: tuple[Tensor, ...], dataloader_idx: int) -> dict[str, Tensor]:
        found = super()._evaluate(stage, batch, dataloader_idx)
        chosen = self.head(found["features"]).argmax(dim=1)
        self._generalised[stage].update(chosen, found["y"])  # type: ignore[operator]
        return found

    def _log_accuracy(self, stage: str) -> None:
        super()._log_accuracy(stage)
        counts = self._generalised[stage].compute()  # type: ignore[operator]
        rows = {"seen": self.own[0], "unseen": self.own[1]}
        parts = {name: counts * own[:, None] for name, own in rows.items()}
        if any(part.sum() == 0 for part in parts.values()):
            return
        seen, unseen = (scores(part)["class_acc"] for part in parts.values())
        harmonic = 2 * seen * unseen / (seen + unseen).clamp(min=1e-12)
        found = {"seen": seen, "unseen": unseen, "harmonic": harmonic}
        self.log_dict({f"{stage}/generalised/{name}": value for name, value in found.items()})

    def _reset(self, stage: str) -> None:
        super()._reset(stage)
        self._generalised[stage].reset()  # type: ignore[operator]


def _warn_of_twins(descriptions: Tensor, unseen: Tensor, classes: Sequence[str]) -> None:
    """Warns if an unseen class has the description of another class: no score can tell them apart."""
    _, kinds, numbers = descriptions.unique(dim=0, return_inverse=True, return_counts=True)
    for first in (unseen & (numbers[kinds] > 1)).nonzero()[:1, 0].tolist():
        second = next(place for place in (kinds == kinds[first]).nonzero()[:, 0].tolist() if place != first)
        rank_zero_warn(
            f"data.descriptions: the unseen class {classes[first]!r} has the description of {classes[second]!r}, so "
            "that nothing tells them apart; add an attribute in which they differ"
        )
