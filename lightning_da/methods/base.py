"""The base of every method: the network, the supervised step, the optimizer and the schedules."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR

from lightning_da.data.base import DOMAINS, UNKNOWN, DomainPairDataModule
from lightning_da.errors import ConfigError, check_range, one_line
from lightning_da.gather import mean_over_processes
from lightning_da.losses.precision import full_precision
from lightning_da.methods.classifier import Classifier
from lightning_da.methods.hooks import essential
from lightning_da.networks.backbones import BackboneCallable
from lightning_da.networks.freezing import Freezing
from lightning_da.networks.groups import parameter_groups
from lightning_da.networks.layers import as_vectors, capture
from lightning_da.networks.norms import set_domain
from lightning_da.networks.standardize import FAR, Standardize
from lightning_da.networks.weights import load_weights
from lightning_da.schedules import check_schedule, constant

PARTS = ("standardize", "backbone", "bottleneck")
"""The parts of a network before its head."""


def features_of(network: nn.Module, x: Tensor) -> Tensor:
    """Samples (B, *input_shape) to the features (B, width) of a network or column with the parts `PARTS`."""
    for name in PARTS:
        x = network.get_submodule(name)(x)
    return x


def samples_of(part: Any) -> Tensor:
    """The samples (n, *input_shape) of a domain in a training batch, where they may have labels beside them."""
    samples: Tensor = part[0] if isinstance(part, list | tuple) else part
    return samples


class TransferModule(Classifier):
    """A backbone, an optional bottleneck and a head, trained on the labels of the domains in `supervised`.

    Args:
        num_classes: Number of classes; the data module gives it.
        input_shape: Shape of one sample; the data module gives it.
        backbone: From the shape of one sample to a backbone.
        bottleneck: From (num_features,) to the layers between backbone and head, for example a `FeedForward`.
        train_on: The domains whose labels are read.
        init_from: An earlier run whose backbone and bottleneck the fit starts from: its checkpoint file; on the command
            line also its MLflow run id or run name. It is read when a fit begins: a checkpoint of this run does not
            need it.
        standardize: Whether the network brings each feature, or each channel of images, to zero mean and unit variance,
            clipped at 5 deviations; word counts are recognised (see `Standardize`). With true, mean and variance are
            those of both domains together, with `per_domain` those of each domain. They come from the training samples,
            without labels, and are kept in the checkpoint.
        freeze: Number of the backbone's layers, counted from the input, that keep their weights and their batch-norm
            statistics; `all` leaves the bottleneck and the head to be trained (a linear probe).
        unfreeze_by: The fraction of training after which no layer is frozen any more; the deepest layer is released
            first (gradual unfreezing). None keeps the layers frozen.
        optimizer: From parameter groups to an optimizer.
        lr_schedule: From the progress of training in [0, 1] to a factor of the learning rate.
        backbone_lr_scale: Factor of the backbone's learning rate.
        layer_lr_decay: Further factor for each layer of the backbone below its last.
        head_lr_scale: Factor of the learning rate of bottleneck and head.
        label_smoothing: Share of the label that is spread over all classes, in the training loss.

    Raises:
        ConfigError: If `freeze` exceeds the number of layers, `unfreeze_by` has nothing to release, or a number is out
            of range.
    """

    initialised: tuple[str, ...] = ("backbone.", "bottleneck.")
    """Name prefixes of the weights copied from `init_from`."""
    class_weights: Tensor | None = None
    """Weight of each class in the task loss, shape (num_classes,); None weights all with 1."""
    always_eval: ClassVar[tuple[str, ...]] = ()
    """Submodules that stay in evaluation mode."""

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        backbone: BackboneCallable,
        bottleneck: BackboneCallable | None = None,
        train_on: Literal["source", "target", "both"] = "source",
        init_from: str | None = None,
        standardize: Literal["per_domain"] | bool = False,
        freeze: int | Literal["all"] = 0,
        unfreeze_by: float | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_schedule: Callable[[float], float] = constant,
        backbone_lr_scale: float = 1.0,
        layer_lr_decay: float = 1.0,
        head_lr_scale: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_classes, input_shape)
        self._restored = False
        self.save_hyperparameters(logger=False)
        self.supervised = DOMAINS if train_on == "both" else (train_on,)
        self.starts_from = () if init_from is None else (init_from,)
        self.standardize: nn.Module = nn.Identity()
        self.backbone = backbone(self.input_shape)
        if standardize and self.backbone.reads_words:
            raise ConfigError(f"standardize: words have no mean and deviation; set it to false, not {standardize}")
        if standardize and self.backbone.reads_units:
            raise ConfigError(
                f"standardize: {type(self.backbone).__name__} reads values in their units; set it to false, not "
                f"{standardize}"
            )
        if standardize:
            self.standardize = Standardize(self.input_shape, standardize == "per_domain")
        width = self.backbone.num_features
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck is not None:
            layers = bottleneck((width,))
            self.bottleneck, width = layers, layers.num_features
        self.head = nn.Linear(width, num_classes)
        self._freezing = Freezing(self.backbone, freeze, unfreeze_by)
        self.train()

        self._optimizer, self._lr_schedule = optimizer, lr_schedule
        self._lr_scales = (backbone_lr_scale, layer_lr_decay, head_lr_scale)
        for name, scale in zip(("backbone_lr_scale", "layer_lr_decay", "head_lr_scale"), self._lr_scales, strict=True):
            check_range(name, scale, 0)
        check_schedule("lr_schedule", lr_schedule)
        self._check_optimizer()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing: {label_smoothing} is not in [0, 1)")
        if label_smoothing and self.regresses:
            raise ConfigError("label_smoothing is for classes, and the labels are numbers; leave it out")
        self._label_smoothing = label_smoothing

    def _check_optimizer(self) -> None:
        """Refuses values that the optimizer refuses, before training begins."""
        groups = [{"name": name, "lr_scale": 1.0, "params": [nn.Parameter(torch.zeros(1, 1))]} for name in PARTS]
        try:
            optimizer = self._optimizer(groups)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"optimizer: {one_line(error)}") from error
        if any(group.get("lr") == 0 for group in optimizer.param_groups):
            raise ConfigError("optimizer.lr: a learning rate of 0 trains nothing; give a positive one")
        if isinstance(optimizer, SparseAdam):
            raise ConfigError("optimizer: SparseAdam takes sparse gradients alone; use torch.optim.Adam")

    @property
    def fewest_samples(self) -> int:  # type: ignore[override]
        """The smallest batch of a domain that the network can be trained on: batch norm needs two samples."""
        return 2 if any(isinstance(module, _BatchNorm) and module.training for module in self.modules()) else 1

    @property
    def progress(self) -> float:
        """The progress of training in [0, 1], as the trainer counts it."""
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("the schedules need an end of training: set trainer.max_steps or trainer.max_epochs")
        return min(self.trainer.global_step / max(steps, 1), 1.0)

    # ---------------------------------------------------------------- the network

    def features(self, x: Tensor) -> Tensor:
        """Samples (B, *input_shape) to the input of the head (B, width)."""
        return features_of(self, x)

    def moved(self, x: Tensor) -> Tensor:
        """Samples (B, *input_shape) that the trainer did not load, on its device and in its precision."""
        found: Tensor = self.trainer.precision_plugin.convert_input(x.to(self.device))
        return found

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return features, self.head(features)

    @property
    def depths(self) -> list[str]:
        """Names of the layers in the order of depth.

        The backbone's layers, `bottleneck` (the input of the head, which is the backbone's output where there is no
        bottleneck) and `head` (the logits).
        """
        return [*self.backbone.layers, "bottleneck", "head"]

    def module_name(self, layer: str, domain: str) -> str:  # noqa: ARG002
        """Name of the submodule that is a layer of the network of a domain."""
        return layer if layer in ("bottleneck", "head") else f"backbone.{layer}"

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        set_domain(self, domain)

    def activations(
        self, x: Tensor, domain: str | Mapping[str, int], layers: Iterable[str]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits and activations of samples, one vector a sample (see `lightning_da.networks.layers.as_vectors`).

        Args:
            x: Samples, shape (B, *input_shape).
            domain: As for `set_domain`.
            layers: Names of layers.

        Returns:
            Logits (B, num_classes), and (B, width) for each layer.

        Raises:
            ConfigError: If the forward pass does not use a layer.
        """
        self.set_domain(domain)
        names = {layer: self.module_name(layer, domain if isinstance(domain, str) else "source") for layer in layers}
        with capture(self, names.values(), partial(as_vectors, channels_last=self.backbone.channels_last)) as outputs:
            logits = self(x)
        for layer, name in names.items():
            if name not in outputs:
                raise ConfigError(f"layers: the forward pass does not call {layer!r}; name other layers")
        return logits, [outputs[name] for name in names.values()]

    @essential
    def train(self, mode: bool = True) -> "TransferModule":
        """Sets the training mode, in which frozen layers stay in evaluation mode."""
        super().train(mode)
        for name in self.always_eval:
            if hasattr(self, name):
                self.get_submodule(name).eval()
        self._freezing.keep_in_eval_mode()
        return self

    # ---------------------------------------------------------------- the start of a fit

    def starts_random(self) -> bool:
        """Whether a fit starts from random weights of the backbone."""
        return not self.starts_from and not self.backbone.pretrained

    @property
    def keeps_start(self) -> bool:
        """Whether the backbone keeps much of the weights that it starts from: it is frozen, or learns slowly."""
        return self._freezing.any or self._lr_scales[0] < 1

    def initialise(self) -> None:
        """Loads the weights that a fit starts from; not called when a checkpoint is resumed."""
        kept = "are frozen" if self._freezing.any else "learn slowly (backbone_lr_scale)"
        if self.keeps_start and self.starts_random():
            rank_zero_warn(
                f"layers of the backbone {kept}, but have random weights; give the backbone's `weights`, or an earlier "
                "run (`init_from`, or `--after source_only`)"
            )
        self.backbone.load_pretrained()
        for checkpoint in self.starts_from:
            load_weights(self, checkpoint, self.initialised)

    def training_samples(self, data: DomainPairDataModule, role: str) -> Iterator[Tensor]:
        """The samples that `fit_inputs` reads of a domain, in chunks of shape (b, *input_shape)."""
        return data.training_samples((role,))

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        """Takes what the network needs from the training samples of both domains: mean and deviation, a vocabulary.

        In a regression it takes the scale of the labels that it reads, too.
        """
        if self.regresses:
            self.label_scale.fit(torch.cat([data.training_numbers(role) for role in self.supervised]))
        if isinstance(self.standardize, Standardize):
            self._fit_scales(self.standardize, data)

        def samples(role: str) -> Iterator[Tensor]:
            for x in self.training_samples(data, role):
                self.set_domain(role)
                yield self.standardize(x)

        self.backbone.fit(samples)
        self.set_domain("target")

    def _fit_scales(self, standardize: Standardize, data: DomainPairDataModule) -> None:
        found = standardize.fit(lambda role: self.training_samples(data, role))
        rank_zero_info(f"standardize: {standardize.extra_repr()}")
        if found and not self.scales_per_domain:
            what = "features" if len(self.input_shape) == 1 else "channels"
            rank_zero_warn(
                f"{found} of {self.input_shape[0]} {what} of the target {data.target!r} are far from those of the "
                f"source {data.source!r}: {FAR:.0f} deviations away, or {FAR:.0f} times as wide. If the domains have "
                "different units or recording conditions, try --model.standardize per_domain"
            )

    @property
    def reads_words(self) -> bool:
        """Whether samples are sentences."""
        return self.backbone.reads_words

    @property
    def scales_per_domain(self) -> bool:  # type: ignore[override]
        return isinstance(self.standardize, Standardize) and self.standardize.per_domain

    @essential
    def setup(self, stage: str) -> None:
        units = any(getattr(module, "reads_units", False) for module in self.modules())
        if stage == "fit" and (self.regresses or units) and self.trainer.precision in ("16-true", "bf16-true"):
            what = "labels that are numbers" if self.regresses else "the values of samples, which have units"
            raise ConfigError(f"trainer.precision: {self.trainer.precision} rounds {what}; take bf16-mixed or 32")
        if stage == "fit" and self.trainer.ckpt_path is None:  # a checkpoint has the numbers
            self.fit_inputs(self.trainer.datamodule)  # type: ignore[attr-defined]  # set by the trainer itself

    @essential
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._restored = True

    @essential
    def on_fit_start(self) -> None:
        if not self._restored:
            self.initialise()

    # ---------------------------------------------------------------- the steps

    def task_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, the mean over the samples of all processes with a known label; 0 if there is none.

        In a regression it is the squared error in the scale of the labels, where y has numbers, NaN if unknown.

        The mean of the loss over processes, and so the gradient that DistributedDataParallel averages, is that of one
        process with the whole batch.

        Args:
            logits: Shape (B, num_classes).
            y: Labels, shape (B,), int64, `UNKNOWN` where the class is not known.
        """
        if self.regresses:
            known = ~y.isnan()
            squares: Tensor = (logits[known, 0].float() - self.label_scale(y[known])).square().sum()
            return mean_over_processes(squares, known.sum())
        how: dict[str, Any] = {"ignore_index": UNKNOWN, "label_smoothing": self._label_smoothing, "reduction": "sum"}
        loss: Tensor = full_precision(cross_entropy)(logits, y, self.class_weights, **how)  # a sum over many pixels
        return mean_over_processes(loss, (y != UNKNOWN).sum())

    def mean_task_loss(self, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean of `task_loss` over the domains: a few labels of the target weigh as much as many of the source.

        Args:
            parts: Logits and labels of each domain, as for `task_loss`.
        """
        return torch.stack([self.task_loss(logits, y) for logits, y in parts]).mean()

    def joined_samples(self, batch: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, int]]:
        """The labelled samples of a training batch as one batch, whose domains it sets.

        If only some samples of the target have a label, those are in the part `labelled` of the batch.

        Returns:
            Samples (B, *input_shape), the labels of each domain in `supervised`, and the number of its samples.
        """
        parts = batch | {"target": batch["labelled"]} if "labelled" in batch else batch
        xs, ys = zip(*(parts[domain] for domain in self.supervised), strict=True)
        sizes = {domain: len(x) for domain, x in zip(self.supervised, xs, strict=True)}
        self.set_domain(sizes)
        return torch.cat(xs), ys, sizes

    def supervised_pass(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Passes the labelled samples of a training batch through the network.

        Returns:
            The task loss; samples (B, *input_shape), features (B, width) and logits (B, num_classes) of all domains in
            `supervised`, in order.
        """
        x, ys, sizes = self.joined_samples(batch)
        features, logits = self.classify(x)
        loss = self.mean_task_loss(zip(logits.split(list(sizes.values())), ys, strict=True))
        self.set_domain("target")
        self.log("train/task_loss", loss)
        return loss, x, features, logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        return self.supervised_pass(batch)[0]

    @essential
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if self._freezing.gradual and self._freezing.release(self.progress):
            self.train()

    @essential
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        self._freezing.drop_gradients()

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self, self.backbone, (self.bottleneck, self.head), *self._lr_scales)
        optimizer = self._optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_scale")
        scheduler = LambdaLR(optimizer, lambda _step: self._lr_schedule(self.progress))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
