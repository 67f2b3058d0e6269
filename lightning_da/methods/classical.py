from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_da.classical.base import Adapter
from lightning_da.data.base import DOMAINS, UNKNOWN, DomainPairDataModule
from lightning_da.errors import ConfigError, RunError, first_line, list_choices
from lightning_da.methods.base import TransferModule, features_of
from lightning_da.methods.hooks import essential
from lightning_da.networks.backbones import Backbone
from lightning_da.networks.fitted import Decision, Fitted
from lightning_da.networks.layers import as_vectors, capture

INPUT = "input"
"""Name of the layer before the network: the samples."""


class _NoNetwork(Backbone):
    """The samples as vectors."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_features, self.layers = int(np.prod(input_shape)), []

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (B, num_features) of samples (B, *input_shape)."""
        return x.flatten(1)


class _UnitRows(nn.Module):
    """Vectors of length 1; those of zeros stay."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x)


class Classical(TransferModule):
    """A classical method: an estimator that learns once from the vectors of both domains, without gradients.

    The vectors are the samples, or the activations of a layer of a network that stays as it is. A fit is one step: the
    estimator gets all training samples of both domains, and those of the target without their labels. It fits in one
    process.

    Its layers are those of the network as far as the vectors, `vectors`, `bottleneck` (the features that the estimator
    makes of them) and `head` (logarithms of the class probabilities).

    Args:
        estimator: The method, `lightning_da.classical.TCA` for example, or a subclass of
            `lightning_da.classical.base.Adapter` of your own.
        layer: The layer of the network that gives the vectors: one of the backbone's `layers`, `bottleneck` (the input
            of its head) or `input` (the samples, scaled as `standardize` says). None takes `bottleneck` if the network
            is pretrained or starts from `init_from`, and `input` if its weights are random.
        unit: Whether each vector is scaled to length 1, the last step before the estimator.
        **kwargs: Arguments of `TransferModule`. Those of its training, such as the optimizer, change nothing.

    Raises:
        ConfigError: If the network has no such layer.
    """

    always_eval = ("standardize", "backbone", "bottleneck")

    def __init__(self, estimator: Adapter, layer: str | None = None, unit: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if "source" not in self.supervised:
            raise ConfigError("train_on: a classical method learns from labels of the source; set it to source or both")
        self.unlabelled = tuple(domain for domain in DOMAINS if domain not in self.supervised)
        self._read = layer or (INPUT if self.starts_random() else "bottleneck")
        known = [INPUT, *self.backbone.layers, "bottleneck"]
        if self._read not in known:
            raise ConfigError(f"layer: the network has no layer {self._read!r}; {list_choices(self._read, known)}")
        if self._read != INPUT and self.starts_random():
            raise ConfigError(
                f"layer: {self._read!r} is a layer of random weights; give those of a run (--features_of RUN in a "
                "sweep, --model.init_from RUN in a fit), or leave it out"
            )
        self.requires_grad_(False)
        if self._read == INPUT:
            self.backbone, self.bottleneck, self.starts_from = _NoNetwork(self.input_shape), nn.Identity(), ()
        self.vectors = _UnitRows() if unit else nn.Identity()
        self.adapter = Fitted(estimator)
        self.head: nn.Module = Decision(self.adapter, self.num_classes)  # type: ignore[assignment]
        self.set_domain("target")
        self.train()

    # ---------------------------------------------------------------- the network

    def read(self, x: Tensor) -> Tensor:
        """Samples (B, *input_shape) to the vectors that the estimator gets, (B, d)."""
        if self._read in (INPUT, "bottleneck"):
            found = features_of(self, x)
        else:
            with capture(self.backbone, [self._read]) as outputs:
                self.backbone(self.standardize(x))
            found = as_vectors(outputs[self._read], self.backbone.channels_last)
        vectors: Tensor = self.vectors(found)
        return vectors

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.adapter(self.read(x))
        return features

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.read(x)
        if not torch.compiler.is_exporting():
            return self.adapter(vectors), self.head(vectors)
        if self.adapter.program is None:
            raise NotImplementedError(f"{type(self.adapter.estimator).__name__} is no affine map and linear classifier")
        features, logits = self.adapter.program(vectors, self.num_classes)
        return features, logits

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        super().set_domain(domain)
        self.adapter.set_domain(domain)

    @property
    def depths(self) -> list[str]:
        layers = self.backbone.layers
        before = layers[: layers.index(self._read)] if self._read in layers else layers
        return [*before, "vectors", "bottleneck", "head"]

    def module_name(self, layer: str, domain: str) -> str:
        if layer == "bottleneck":
            return "adapter"
        return layer if layer == "vectors" else super().module_name(layer, domain)

    # ---------------------------------------------------------------- the fit

    @essential
    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.world_size > 1:
            raise ConfigError(
                f"trainer.devices: a classical method fits in one process, not in {self.trainer.world_size}; set "
                "--trainer.devices 1"
            )
        weights = self.trainer.datamodule.source_weights if stage == "fit" else "size"  # type: ignore[attr-defined]
        if weights != "size":
            raise ConfigError(
                f"data.source_weights: a classical method reads all samples at once, not {weights}; leave it out"
            )
        estimator = self.adapter.estimator
        if stage == "fit" and "target" in self.supervised and not estimator.reads_target_labels:
            takes_share = "target_share" in estimator.get_params(deep=False)
            unless = ", unless model.estimator.target_share is above 0" if takes_share else ""
            rank_zero_warn(f"train_on both: {type(estimator).__name__} reads no label of the target{unless}")
        super().setup(stage)

    @torch.no_grad()
    def on_train_start(self) -> None:
        data: DomainPairDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        vectors, labels = [], []
        for role in DOMAINS:
            self.set_domain(role)
            parts = [self.read(self.moved(x)).cpu() for x in data.training_samples((role,))]
            vectors.append(torch.cat(parts))
            read = role in self.supervised
            labels.append(data.training_labels(role) if read else torch.full((len(vectors[-1]),), UNKNOWN))
        self.set_domain("target")
        known = labels[0] != UNKNOWN  # the method cannot read the others
        try:
            self.adapter.fit((vectors[0][known], vectors[1]), (labels[0][known], labels[1]))
        except (ValueError, np.linalg.LinAlgError, MemoryError) as error:
            if isinstance(error, ConfigError):
                raise
            raise RunError(f"{type(self.adapter.estimator).__name__}: {first_line(error)}") from error
        if self.adapter.fitted:
            self._name_unknown(data, torch.cat(labels))

    def _name_unknown(self, data: DomainPairDataModule, labels: Tensor) -> None:
        """Gives a class that no sample of training has the number of `unknown`, the last one."""
        answered = self.adapter.estimator.classes_
        unseen = ~np.isin(answered, labels.numpy())
        if unseen.any() and data.class_sets != "open":
            name = type(self.adapter.estimator).__name__
            raise ConfigError(f"{name} answers `unknown` beside the classes of the source; set --data.class_sets open")
        answered[unseen] = self.num_classes - 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        self.trainer.should_stop = True
        return torch.zeros((), requires_grad=True)

    def configure_optimizers(self) -> None:
        """None: nothing learns by gradients."""

    @essential
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.adapter.restore(checkpoint.get("state_dict", {}), "adapter.")
        super().on_load_checkpoint(checkpoint)
