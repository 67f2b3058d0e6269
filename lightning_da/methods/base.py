"""What every method shares: the network, its steps, its metrics, its optimizer and its schedules."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_da.backbones import BackboneCallable
from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.errors import ConfigError, list_choices
from lightning_da.gather import gather
from lightning_da.layers import as_vectors, capture, module_depths
from lightning_da.losses.adversarial import scale_gradient
from lightning_da.methods.classifier import Classifier
from lightning_da.schedules import constant, ramp
from lightning_da.standardize import Standardize
from lightning_da.tracking import load_weights


class TransferModule(Classifier):
    """A backbone, an optional bottleneck and a head, trained on the labels of the domains in `supervised`.

    Args:
        num_classes: Number of classes; the data module gives it.
        input_shape: Shape of one sample; the data module gives it.
        backbone: From the shape of one sample to a backbone.
        bottleneck: From (num_features,) to the layers between backbone and head, a `FeedForward` say.
        train_on: The domains whose labels are read.
        init_from: An earlier run whose backbone and bottleneck the fit starts from: its checkpoint file, or its
            MLflow run id or name. It is read when a fit begins: a checkpoint of this run does not need it.
        standardize: Whether the network brings each feature, or each channel of images, to zero mean and unit variance
            over the training samples whose labels are read; the numbers are part of its checkpoint.
        freeze: How many of the backbone's layers, counted from the input, keep their weights and their batch-norm
            statistics; `all` leaves the bottleneck and the head to be trained (a linear probe).
        unfreeze_by: The fraction of training by which the frozen layers have been released one after the other, the
            deepest first (gradual unfreezing); None keeps them frozen.
        optimizer: From parameter groups to an optimizer.
        lr_schedule: From the progress of training in [0, 1] to a factor of the learning rate.
        backbone_lr_scale: Factor of the backbone's learning rate.
        layer_lr_decay: Further factor for each layer of the backbone below its last.
        head_lr_scale: Factor of the learning rate of bottleneck and head.
        label_smoothing: Share of the label that is spread over all classes, in the training loss.

    Raises:
        ConfigError: If `freeze` exceeds the number of layers, or `unfreeze_by` has nothing to release.
    """

    initialised: tuple[str, ...] = ("backbone.", "bottleneck.")
    """How the names of the weights begin that a fit takes from `init_from`."""
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
        standardize: bool = False,
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
        self._frozen, self._resumed = 0, False
        self.save_hyperparameters(logger=False)
        self.supervised = DOMAINS if train_on == "both" else (train_on,)
        self.init_from = init_from
        self.standardize: nn.Module = Standardize(self.input_shape) if standardize else nn.Identity()
        self.backbone = backbone(self.input_shape)
        width = self.backbone.num_features
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck is not None:
            layers = bottleneck((width,))
            self.bottleneck, width = layers, layers.num_features
        self.head = nn.Linear(width, num_classes)
        depth = len(self.backbone.layers)
        self._freeze = depth + 1 if freeze == "all" else freeze
        if not 0 <= self._freeze <= depth and freeze != "all":
            raise ConfigError(f"freeze: {freeze} of the backbone's {depth} layers; give 0 to {depth}, or all")
        if unfreeze_by is not None and not (self._freeze and 0 < unfreeze_by <= 1):
            raise ConfigError(f"unfreeze_by: {unfreeze_by} needs layers to release (freeze) and a value in (0, 1]")
        self._unfreeze_by = unfreeze_by
        self._frozen = self._freeze
        if unfreeze_by is None:
            for parameter in self._frozen_parameters():
                parameter.requires_grad_(False)
        self.train()

        self._optimizer, self._lr_schedule = optimizer, lr_schedule
        self._lr_scales = (backbone_lr_scale, layer_lr_decay, head_lr_scale)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing: {label_smoothing} is not in [0, 1)")
        self._label_smoothing = label_smoothing

    @property
    def progress(self) -> float:
        """How much of the training is done, in [0, 1], as the trainer counts it."""
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ConfigError("the schedules need an end of training: set trainer.max_steps or trainer.max_epochs")
        return min(self.trainer.global_step / max(total, 1), 1.0)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads: samples (B, *input_shape) to (B, width)."""
        features: Tensor = self.bottleneck(self.backbone(self.standardize(x)))
        return features

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return features, self.head(features)

    @property
    def depths(self) -> list[str]:
        """The layers by name in the order of depth.

        The backbone's layers, `bottleneck` (the features that the head reads, which are the backbone's output where
        there is no bottleneck) and `head` (the logits).
        """
        return [*self.backbone.layers, "bottleneck", "head"]

    def module_name(self, layer: str, domain: str) -> str:  # noqa: ARG002
        """The submodule that is a layer of the network of a domain."""
        return layer if layer in ("bottleneck", "head") else f"backbone.{layer}"

    def activations(self, x: Tensor, domain: str, layers: Iterable[str]) -> tuple[Tensor, list[Tensor]]:
        """What the network and its layers make of samples, one vector a sample (see `lightning_da.layers.as_vectors`).

        Args:
            x: Samples of one domain, shape (B, *input_shape).
            domain: `source` or `target`.
            layers: Names of layers.

        Returns:
            Logits (B, num_classes), and (B, width) for each layer.

        Raises:
            ConfigError: If a layer takes no part in the forward pass.
        """
        self.set_domain(domain)
        names = {layer: self.module_name(layer, domain) for layer in layers}
        with capture(self, names.values(), partial(as_vectors, channels_last=self.backbone.channels_last)) as outputs:
            logits = self(x)
        for layer, name in names.items():
            if name not in outputs:
                raise ConfigError(f"layers: the forward pass does not call {layer!r}; name other layers")
        return logits, [outputs[name] for name in names.values()]

    def task_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy over the samples with a known label, 0 if there is none.

        Args:
            logits: Shape (B, num_classes).
            y: Labels, shape (B,), int64, `UNKNOWN` where there is none.
        """
        total = cross_entropy(logits, y, ignore_index=UNKNOWN, label_smoothing=self._label_smoothing, reduction="sum")
        return total / (y != UNKNOWN).sum().clamp(min=1)

    # ---------------------------------------------------------------- steps

    @property
    def starts_from(self) -> tuple[str, ...]:  # type: ignore[override]
        """The earlier run that a fit starts from, if any."""
        return () if self.init_from is None else (self.init_from,)

    def starts_random(self) -> bool:
        """Whether a fit starts from random weights of the backbone."""
        return self.init_from is None and not self.backbone.pretrained

    def setup(self, stage: str) -> None:
        if stage == "fit" and isinstance(self.standardize, Standardize):
            self.standardize.fit(self.trainer.datamodule.training_samples(self.supervised or ("source",)))  # type: ignore[attr-defined]

    def initialise(self) -> None:
        """Loads the weights that a fit starts from; not called when a checkpoint is resumed."""
        if self._freeze and self.starts_random():
            rank_zero_warn(
                "the frozen layers have random weights; give the backbone's `weights`, or an earlier run (`init_from`)"
            )
        self.backbone.load_pretrained()
        if self.init_from is not None:
            load_weights(self, self.init_from, self.initialised)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._resumed = True

    def on_fit_start(self) -> None:
        if not self._resumed:
            self.initialise()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        x = torch.cat([batch[domain][0] for domain in self.supervised])
        y = torch.cat([batch[domain][1] for domain in self.supervised])
        loss = self.task_loss(self(x), y)
        self.log("train/task_loss", loss)
        return loss

    # ---------------------------------------------------------------- frozen layers

    def _frozen_parameters(self) -> list[nn.Parameter]:
        return [
            parameter
            for module, depth in module_depths(self.backbone, self.backbone.layers)
            if depth < self._frozen
            for parameter in module.parameters(recurse=False)
        ]

    def train(self, mode: bool = True) -> "TransferModule":
        """Sets the training mode, in which frozen layers stay in evaluation mode."""
        super().train(mode)
        for name, part in self.named_children():
            if name in self.always_eval:
                part.eval()
        depths = dict(module_depths(self.backbone, self.backbone.layers))
        for module in depths:
            if all(depths[part] < self._frozen for part in module.modules()):
                module.training = False
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if self._unfreeze_by is not None:
            frozen = max(0, self._freeze - int(self._freeze * self.progress / self._unfreeze_by))
            if frozen != self._frozen:
                self._frozen = frozen
                self.train()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        # Layers still to be released take part in the graph, since DDP must know them from the start: an optimizer
        # leaves a parameter without a gradient as it is, weight decay and momentum included.
        if self._unfreeze_by is not None:
            for parameter in self._frozen_parameters():
                parameter.grad = None

    # ---------------------------------------------------------------- optimizer, checkpoint

    def _parameter_groups(self) -> list[dict[str, Any]]:
        backbone_scale, decay, head_scale = self._lr_scales
        depth = len(self.backbone.layers)
        scales: dict[nn.Parameter, tuple[str, float]] = {}
        for module, at in module_depths(self.backbone, self.backbone.layers):
            below_last = max(depth - 1 - at, 0)
            for parameter in module.parameters(recurse=False):
                name = "backbone" if decay == 1 else f"backbone-{below_last}"
                scales[parameter] = (name, backbone_scale * decay**below_last)
        for part in (self.bottleneck, self.head):
            scales |= dict.fromkeys(part.parameters(), ("head", head_scale))
        groups: dict[str, dict[str, Any]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                name, scale = scales.get(parameter, ("domain", 1.0))
                groups.setdefault(name, {"name": name, "lr_scale": scale, "params": []})["params"].append(parameter)
        return list(groups.values())

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self._parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_scale")
        scheduler = LambdaLR(optimizer, lambda _step: self._lr_schedule(self.progress))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _PerDomainNorm(nn.Module):
    """A batch-norm layer with statistics of its own for each domain; weight and bias are shared."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.source, self.target = norm, copy.deepcopy(norm)
        self.target.weight, self.target.bias = norm.weight, norm.bias
        self.domain = "target"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # the weights of a network without domains, pretrained ones say, are those of both
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if prefix + part in state_dict:
                value = state_dict.pop(prefix + part)
                state_dict |= {f"{prefix}{domain}.{part}": value for domain in ("source", "target")}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.get_submodule(self.domain)(x)
        return normalised


def _split_norms(network: nn.Module) -> None:
    for name, child in list(network.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(network, name, _PerDomainNorm(child))
        else:
            _split_norms(child)


class AdaptationModule(TransferModule):
    """A method with a domain loss between source and target activations; a subclass fills `domain_loss`.

    The weight of the domain loss is applied to the gradient that the loss sends into the network. For a loss without
    parameters this is the weighted sum of task and domain loss; parameters that belong to the loss, a domain
    discriminator's say, learn at full rate (Ganin et al., JMLR 2016, section 5.2.2).

    Args:
        layers: The adapted layers, by name: the backbone's `layers`, `bottleneck` (the features that the head reads,
            which are the backbone's output where there is no bottleneck) and `head` (the logits).
        batch_norm: `joint` passes both domains through the network in one batch, `separate` one after the other, so
            that each is normalised with its own batch statistics, `per_domain` keeps the running statistics apart as
            well.
        domain_weight: Final weight of the domain loss.
        domain_schedule: From the progress of training in [0, 1] to a factor of that weight.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If the network has no layer of such a name, or one is named twice.
    """

    def __init__(
        self,
        layers: tuple[str, ...] = ("bottleneck",),
        batch_norm: Literal["joint", "separate", "per_domain"] = "separate",
        domain_weight: float = 1.0,
        domain_schedule: Callable[[float], float] = ramp,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not layers or len(set(layers)) < len(layers):
            raise ConfigError(f"layers: name at least one layer to adapt, and each once, not {list(layers)}")
        for layer in layers:
            if layer not in self.depths:
                raise ConfigError(f"layers: the network has no layer {layer!r}; {list_choices(layer, self.depths)}")
        self.adapted = tuple(layers)
        self.unlabelled = tuple(domain for domain in DOMAINS if domain not in self.supervised)
        self._batch_norm = batch_norm
        if batch_norm == "per_domain":
            _split_norms(self)
        self._domain_weight, self._domain_schedule = domain_weight, domain_schedule

    def adapted_widths(self) -> list[int]:
        """Width of the activations of each adapted layer."""
        training = self.training
        with torch.no_grad():
            _, activations = self.eval().activations(torch.zeros(1, *self.input_shape), "target", self.adapted)
        self.train(training)
        return [activation.shape[1] for activation in activations]

    def domain_loss(self, source: list[Tensor], target: list[Tensor]) -> Tensor:
        """The method's idea: how far the domains are apart.

        Args:
            source: Activations of each adapted layer, shape (n_s, width), all processes' samples.
            target: The same of the target, shape (n_t, width).

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def set_domain(self, domain: str) -> None:
        if self._batch_norm == "per_domain":
            for module in self.modules():
                if isinstance(module, _PerDomainNorm):
                    module.domain = domain

    @property
    def domain_weight(self) -> float:
        """The weight of the domain loss at this step."""
        return self._domain_weight * self._domain_schedule(self.progress)

    @property
    def logs_now(self) -> bool:
        """Whether what this step logs is written."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the trainer itself
        whole = (self.trainer.fit_loop.batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        return (whole or self.trainer.is_last_batch) and (self.trainer.global_step + 1) % max(every, 1) == 0

    def weighted_domain_loss(self, source: list[Tensor], target: list[Tensor]) -> Tensor:
        """The domain loss of all processes' samples, its gradient in the activations multiplied by the weight.

        Args:
            source: This process's activations of each adapted layer, shape (n_s, width).
            target: The same of the target, shape (n_t, width).
        """
        weight = self.domain_weight
        loss = self.domain_loss(
            *([gather(scale_gradient(activation, weight)) for activation in part] for part in (source, target))
        )
        self.log_dict({"train/domain_loss": loss, "train/domain_weight": weight})
        return loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        x = {domain: batch[domain][0] if domain in self.supervised else batch[domain] for domain in DOMAINS}
        # With weight 0 the domains are passed apart, so that the arithmetic is that of training without a domain loss.
        if self._batch_norm == "joint" and self.domain_weight:
            logits, both = self.activations(torch.cat(list(x.values())), "source", self.adapted)
            sizes = [len(part) for part in x.values()]
            parts = zip(*(whole.split(sizes) for whole in (logits, *both)), strict=True)
            (source_logits, *source), (target_logits, *target) = parts
        else:
            source_logits, source = self.activations(x["source"], "source", self.adapted)
            target_logits, target = self.activations(x["target"], "target", self.adapted)
        logits_of = {"source": source_logits, "target": target_logits}
        task_loss = self.task_loss(
            torch.cat([logits_of[domain] for domain in self.supervised]),
            torch.cat([batch[domain][1] for domain in self.supervised]),
        )
        self.log("train/task_loss", task_loss)
        return task_loss + self.weighted_domain_loss(source, target)
