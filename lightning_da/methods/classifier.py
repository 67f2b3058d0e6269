"""Validation, test and prediction of a classifier: the base class of all methods and of the ensemble."""

from collections.abc import Mapping
from typing import Any, cast

import lightning as L
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.methods.hooks import check_super, essential
from lightning_da.methods.regression import LabelScale, RegressionScores
from lightning_da.networks.weights import check_weights


class Classifier(L.LightningModule):
    """Validation, test and prediction of a classifier on source and target.

    A subclass that overrides a hook of this class must call it with `super()`, otherwise a TypeError is raised.

    After each validation or test epoch it logs four metrics for source and target, if they have labels: `acc`,
    `class_acc` (mean recall over classes, the unweighted average recall), `class_precision` (mean precision over
    classes, called MAP in emotion recognition challenges; a class that is never predicted has precision 0) and
    `imbalance` (samples in the largest class, divided by the mean over classes: 1 if all classes have the same size).
    With `class_sets: open` the target has four more (see `open_set_scores`). If source or target are several domains,
    each of these has the metrics, too, with its name: `test/target/photo/acc` beside `test/target/acc`.

    If the labels are numbers, the metrics are `rmse`, `mae` and `r2` instead (see `RegressionScores`).

    Args:
        num_classes: Number of classes; 1 for a regression.
        input_shape: Shape of one sample.

    Raises:
        ConfigError: If the labels are numbers and the method needs classes.
    """

    supervised: tuple[str, ...] = ()
    """Domains read with labels in training."""
    unlabelled: tuple[str, ...] = ()
    """Domains read without labels in training."""
    starts_from: tuple[str, ...] = ()
    """Checkpoint files of the earlier runs that initialise a fit."""
    fewest_samples: int = 1
    """The smallest batch of a domain that the network can be trained on."""
    reads_unlabelled: bool = False
    """Whether training reads the samples without a label, too, of the domains in `supervised`."""
    embeds: bool = False
    """Whether the output of the network is an embedding, whose distances are the answer, and no logits of classes."""
    segments: bool = False
    """Whether the answers are masks, a class for each pixel, and not one for each sample."""
    can_regress: bool = False
    """Whether the method can predict numbers in place of classes."""
    scales_per_domain: bool = False
    """Whether each domain is scaled by its own mean and deviation, so that they may have different units."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_super(cls)

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)
        if self.regresses:
            if not self.can_regress:
                raise ConfigError(
                    f"the labels are numbers, and {type(self).__name__} needs classes; take source_only, fine_tune, "
                    "dan, deep_coral, dann, cmd, drcn or dlid"
                )
            self.label_scale = LabelScale()
        self._counted = nn.ModuleDict(
            {f"{stage}_{domain}": self.new_metric() for stage in ("val", "test") for domain in DOMAINS}
        )

    @property
    def regresses(self) -> bool:
        """Whether the answers are numbers, and no classes."""
        return self.num_classes == 1

    @property
    def answers_with(self) -> str:
        """What the network answers for a sample: `class`, `mask`, `value` (a number) or `embedding`."""
        if self.embeds:
            return "embedding"
        return "value" if self.regresses else "mask" if self.segments else "class"

    def answers(self, outputs: Tensor) -> Tensor:
        """What a model gives for outputs (B, width, ...) of the network, of the same shape.

        They are class probabilities, of each pixel if the network segments; in a regression numbers in the unit of the
        labels; embeddings as they are.
        """
        if self.embeds:
            return outputs
        return self.label_scale.inverse(outputs) if self.regresses else outputs.softmax(dim=1)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features (B, width) and logits (B, num_classes) of samples (B, *input_shape)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits (B, num_classes) of samples (B, *input_shape)."""
        return self.classify(x)[1]

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        """Sets the domain of the next samples.

        Args:
            domain: `source` or `target`; for a batch of both, the number of samples of each, in order.
        """

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The domains, `source` or `target`, of the validation and test loaders, in order."""
        domains: tuple[str, ...] = getattr(getattr(self._trainer, "datamodule", None), "domains", DOMAINS)
        return domains

    def named(self, role: str) -> list[str]:
        """The names, in metrics, of the domains of the source or the target; none if there is one."""
        data = getattr(self._trainer, "datamodule", None)
        return [] if data is None else list(data.metric_names(role))

    def new_metric(self) -> nn.Module:
        """What counts the answers for a domain in an epoch."""
        if self.regresses:
            return RegressionScores()
        return MulticlassConfusionMatrix(self.num_classes, ignore_index=UNKNOWN)

    def counted(self, stage: str, domain: str) -> Any:
        """The metric for the stage `val` or `test` of a role, or of one of its domains, `target/0` for example."""
        return self._counted[f"{stage}_{domain}"]

    def confusion(self, stage: str, domain: str) -> MulticlassConfusionMatrix:
        """Confusion matrix for the stage `val` or `test` of a role, or of one of its domains."""
        return cast(MulticlassConfusionMatrix, self.counted(stage, domain))

    def count(self, stage: str, domain: str, logits: Tensor, y: Tensor) -> None:
        """Counts the answers for a batch.

        Args:
            stage: `val` or `test`.
            domain: As for `counted`.
            logits: Outputs of the network, shape (B, width of the output).
            y: Labels, shape (B,), int64, `UNKNOWN` where the class is not known; numbers in a regression.
        """
        if self.regresses:
            self.counted(stage, domain).update(logits[:, 0], self.label_scale(y))
            return
        self.confusion(stage, domain).update(logits.argmax(dim=1), y)

    def scores_of(self, stage: str, domain: str) -> dict[str, Tensor]:
        """The scores of a role or domain in an epoch, by their name in a metric; none if no label is known."""
        role = domain.partition("/")[0]
        if self.regresses:
            return dict(self.counted(stage, domain).compute(self.label_scale.deviation))
        own = self.own_classes(role)
        counts = self.confusion(stage, domain).compute()[own][:, own]
        if not counts.sum() > 0:
            return {}
        found = scores(counts)
        if role == "target" and getattr(getattr(self._trainer, "datamodule", None), "class_sets", None) == "open":
            found |= open_set_scores(counts)
        return found

    def own_classes(self, domain: str) -> slice | Tensor:  # noqa: ARG002
        """The labels that a domain may have: all of them, or a mask of shape (num_classes,)."""
        return slice(None)

    def _evaluate(self, stage: str, batch: tuple[Tensor, ...], dataloader_idx: int) -> dict[str, Tensor]:
        x, y, *places = batch
        domain = self.evaluated[dataloader_idx]
        self.set_domain(domain)
        features, logits = self.classify(x)
        if stage == "test" and not logits.isfinite().all():
            raise ConfigError(
                f"the outputs of the network for domain {domain!r} are not finite: it has diverged, so fit again, for "
                "example with a smaller learning rate"
            )
        self.count(stage, domain, logits, y)
        for place in range(len(self.named(domain))):
            own = places[0] == place
            if own.any():
                self.count(stage, f"{domain}/{place}", logits[own], y[own])
        return {"features": features, "y": y}

    def _log_accuracy(self, stage: str) -> None:
        for role in self.evaluated:
            shown = {role: role} | {f"{role}/{place}": f"{role}/{name}" for place, name in enumerate(self.named(role))}
            for domain, name in shown.items():
                self.log_dict({f"{stage}/{name}/{key}": value for key, value in self.scores_of(stage, domain).items()})

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:  # noqa: ARG002
        return self._evaluate("test", batch, dataloader_idx)

    @essential
    def on_validation_epoch_end(self) -> None:
        self._log_accuracy("val")

    @essential
    def on_test_epoch_end(self) -> None:
        self._log_accuracy("test")

    @essential
    def on_validation_epoch_start(self) -> None:
        self._reset("val")

    @essential
    def on_test_epoch_start(self) -> None:
        self._reset("test")

    def _reset(self, stage: str) -> None:
        for role in self.evaluated:
            self.counted(stage, role).reset()
            for place in range(len(self.named(role))):
                self._counted[f"{stage}_{role}/{place}"] = self.new_metric().to(self.device)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # noqa: ARG002
        """The `answers` for target samples, shape (B, width)."""
        self.set_domain("target")
        return self.answers(self(batch[0]))

    @essential
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Arguments from a config are plain values. Arguments from Python may be classes or functions, which cannot be
        # loaded with `weights_only`.
        if "_instantiator" not in checkpoint.get("hyper_parameters", {}):
            checkpoint.pop("hyper_parameters", None)

    @essential
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_shapes(checkpoint.get("hyper_parameters", {}), "the checkpoint")
        path = getattr(self._trainer, "ckpt_path", None)
        if "state_dict" in checkpoint:
            name = f"checkpoint {path!r}" if path else "the checkpoint"
            check_weights(checkpoint["state_dict"], self.state_dict(), name)

    def check_shapes(self, settings: dict[str, Any], name: str) -> None:
        """Checks that another classifier has the same input shape and number of classes.

        Args:
            settings: Known constructor arguments of the other classifier.
            name: Name of the other classifier in the error message.

        Raises:
            ConfigError: If the input shape or the number of classes differs.
        """
        for key, own in (("num_classes", self.num_classes), ("input_shape", self.input_shape)):
            there = settings.get(key, own)
            if (tuple(there) if key == "input_shape" else there) != own:
                raise ConfigError(f"{name} was fitted with {key} {there}, but the data have {own}; use matching data")


def scores(counts: Tensor) -> dict[str, Tensor]:
    """Accuracy, and mean recall and precision over classes.

    Args:
        counts: Confusion matrix, rows are true classes, shape (num_classes, num_classes).

    Returns:
        `acc`; `class_acc`, mean recall of the classes that occur; `class_precision`, mean precision of the classes that
        occur or are predicted; `imbalance`, the size of the largest class divided by the mean size.
    """
    counts = counts.double()
    right, true, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    recall, precision = right / true, right / predicted.clamp(min=1)
    return {
        "acc": right.sum() / counts.sum(),
        "class_acc": recall[true > 0].mean(),
        "class_precision": precision[true + predicted > 0].mean(),
        "imbalance": true.max() / true.mean(),
    }


def open_set_scores(counts: Tensor) -> dict[str, Tensor]:
    """Scores of a classifier whose last class is `unknown`.

    Source: Busto and Gall, "Open set domain adaptation", ICCV 2017, section 4, for OS and OS*; Bucci et al., "On the
    effectiveness of image rotation for open set domain adaptation", ECCV 2020, for the harmonic mean.
    https://openaccess.thecvf.com/content_iccv_2017/html/Busto_Open_Set_Domain_ICCV_2017_paper.html,
    https://arxiv.org/abs/2007.12360

    Args:
        counts: Confusion matrix, rows are true classes, the last one `unknown`, shape (num_classes, num_classes).

    Returns:
        `os`, mean recall of all classes that occur; `os_star`, that of the known classes; `unk`, recall of `unknown`;
        `h_score`, the harmonic mean of the last two. None if there is no sample of a known class, or none of `unknown`.

    Examples:
        >>> found = open_set_scores(Tensor([[8, 0, 2], [0, 4, 6], [1, 1, 2]]))
        >>> {name: round(value.item(), 3) for name, value in found.items()}
        {'os': 0.567, 'os_star': 0.6, 'unk': 0.5, 'h_score': 0.545}
    """
    counts = counts.double()
    right, true = counts.diagonal(), counts.sum(dim=1)
    there = true > 0
    if not there[-1] or not there[:-1].any():
        return {}
    recall = right / true
    known, unknown = recall[:-1][there[:-1]].mean(), recall[-1]
    return {
        "os": recall[there].mean(),
        "os_star": known,
        "unk": unknown,
        "h_score": 2 * known * unknown / (known + unknown).clamp(min=1e-12),
    }
