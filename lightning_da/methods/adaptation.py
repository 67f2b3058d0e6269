"""The base of the methods with a domain loss."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.errors import ConfigError, check_range, list_choices
from lightning_da.gather import gather, total, world_size
from lightning_da.losses.adversarial import scale_gradient
from lightning_da.methods.hooks import essential
from lightning_da.methods.signs import largest_share
from lightning_da.methods.watched import WatchedModule
from lightning_da.networks.norms import keep_statistics, split_norms
from lightning_da.networks.weights import load_weights
from lightning_da.schedules import check_schedule, ramp


class DomainBatch(NamedTuple):
    """The samples of one domain in a training batch, in one process or in all.

    Attributes:
        layers: Activations of each adapted layer, shape (n, width), then those of `further_layers`.
        logits: Shape (n, num_classes); of a segmentation (n, num_classes, height, width).
        labels: Shape (n,), int64, `UNKNOWN` (-1) where the class is not known; of a segmentation (n, height, width).
            Those of a domain whose labels the method does not read are all `UNKNOWN`.
    """

    layers: list[Tensor]
    logits: Tensor
    labels: Tensor


class AdaptationModule(WatchedModule):
    """A method with a domain loss between source and target; a subclass fills `domain_loss`.

    The weight of the domain loss multiplies the gradient that the loss sends into the network. For a loss without
    parameters this is the weighted sum of task and domain loss. Parameters of the loss itself, for example those of a
    domain discriminator, learn at full rate (Ganin et al., JMLR 2016, section 5.2.2).

    Args:
        layers: Names of the adapted layers: the backbone's `layers`, `bottleneck` (the input of the head, which is the
            backbone's output where there is no bottleneck) and `head` (the logits).
        batch_norm: `joint` passes both domains through the network in one batch. `separate` passes one after the other,
            so that each is normalised with its own batch statistics. `per_domain` keeps the running statistics apart
            as well.
        domain_weight: Final weight of the domain loss.
        domain_schedule: From the progress of training in [0, 1] to a factor of that weight.
        micro_batch: The number of samples of a domain that pass through the network at once; the losses see the whole
            batch all the same. A step then needs the memory of so many samples and of the features of the batch, and a
            second forward pass (Chen et al., "Training deep nets with sublinear memory cost", 2016). Batch norm takes
            the statistics of each part. None passes the batch at once.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If the network has no layer of such a name, one is named twice, or a number is out of range.
    """

    reads_unlabelled = True
    fewest_for_domain_loss: ClassVar[int] = 1
    """The smallest batch of a domain from which the domain loss can be computed."""

    def __init__(
        self,
        layers: tuple[str, ...] = ("bottleneck",),
        batch_norm: Literal["joint", "separate", "per_domain"] = "separate",
        domain_weight: float = 1.0,
        domain_schedule: Callable[[float], float] = ramp,
        micro_batch: int | None = None,
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
            split_norms(self)
        check_range("domain_weight", domain_weight, 0)
        if micro_batch is not None:
            check_range("micro_batch", micro_batch, 2)
        self._micro_batch = micro_batch
        check_schedule("domain_schedule", domain_schedule)
        self._domain_weight, self._domain_schedule = domain_weight, domain_schedule
        self._gradients: list[Tensor] = []

    @property
    def fewest_samples(self) -> int:  # type: ignore[override]
        """The smallest batch of a domain, for the network and the domain loss."""
        return max(super().fewest_samples, self.fewest_for_domain_loss)

    def adapted_widths(self) -> list[int]:
        """Width of the activations of each adapted layer, then of `further_layers`."""
        training = self.training
        x = torch.zeros(1, *self.input_shape)
        with torch.no_grad():
            _, activations = self.eval().activations(x, "target", self.adapted)
            activations += self.further_layers(x, "target")
        self.train(training)
        return [activation.shape[1] for activation in activations]

    def start_from_source_run(self, prefixes: tuple[str, ...]) -> None:
        """Copies weights of the supervised source run `init_from`, for methods whose second stage adapts it.

        Args:
            prefixes: Name prefixes of the weights.

        Raises:
            ConfigError: If there is no such run, its network differs, or it has read labels of the target.
        """
        name = type(self).__name__
        if not self.starts_from:
            raise ConfigError(
                f"{name} starts from a supervised run of the source; set --model.init_from to its checkpoint file, run "
                "id or run name, or train it first with --after source_only"
            )
        (start,) = self.starts_from
        settings = load_weights(self, start, prefixes)
        if settings.get("train_on", "source") != "source":
            raise ConfigError(
                f"init_from {start!r} has read labels of the target (train_on: {settings['train_on']}); {name} "
                "starts from a run on source labels only"
            )

    def further_layers(self, x: Tensor, domain: str) -> list[Tensor]:  # noqa: ARG002
        """What the domain loss reads beside the activations of the adapted layers, for example the samples.

        Args:
            x: Samples of the domain that is set, shape (n, *input_shape).
            domain: `source` or `target`.

        Returns:
            Tensors (n, width); nothing by default.
        """
        return []

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        """The idea of the method: the distance between the domains.

        Args:
            source: Source samples of all processes, n_s in number.
            target: Target samples of all processes, n_t in number.

        Returns:
            A scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} has no domain_loss; fill it")

    @property
    def domain_weight(self) -> float:
        """The weight of the domain loss at this step."""
        return self._domain_weight * self._domain_schedule(self.progress)

    def weighted_domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        """The domain loss of the samples of all processes, its gradient multiplied by the weight.

        Args:
            source: Source samples of this process.
            target: Target samples of this process.
        """
        weight = self.domain_weight

        def scaled(x: Tensor) -> Tensor:
            x = scale_gradient(x, weight)
            if self.logs_now and x.requires_grad:
                x.register_hook(lambda gradient: self._gradients.append(gradient.detach().float().square().sum()))
            return gather(x)

        def whole(batch: DomainBatch) -> DomainBatch:
            return DomainBatch([scaled(x) for x in batch.layers], scaled(batch.logits), gather(batch.labels))

        every_source, every_target = whole(source), whole(target)
        loss = self.domain_loss(every_source, every_target)
        self.log_dict({"train/domain_loss": loss, "train/domain_weight": weight})
        if self.logs_now:
            with torch.no_grad():
                self._watched = self.watched(every_source, every_target)
        return loss

    def watched(self, source: DomainBatch, target: DomainBatch) -> dict[str, Tensor]:
        """Values of a logged step that show whether adaptation fails (see `Signs.add`).

        Args:
            source: As for `domain_loss`.
            target: As for `domain_loss`.
        """
        if self.regresses:
            return {}
        known = source.labels[source.labels != UNKNOWN]
        shares = {"source_top_class": largest_share(known)} if len(known) else {}
        return shares | {"target_top_class": largest_share(target.logits.argmax(dim=1))}

    @essential
    def on_after_backward(self) -> None:
        if self._watched is not None:
            squares = torch.stack(self._gradients).sum() if self._gradients else torch.zeros((), device=self.device)
            self._watched["domain_gradient"] = total(squares).sqrt() / world_size()
            self._gradients = []
        super().on_after_backward()

    def domain_batches(
        self, batch: dict[str, Any], joint: bool = False
    ) -> tuple[DomainBatch, DomainBatch, DomainBatch | None]:
        """Passes a training batch through the network.

        Args:
            batch: For each domain its samples, shape (n, *input_shape), with labels (n,) if the method reads them. If
                only some samples of the target have a label, those are in `labelled`, with labels.
            joint: Whether to pass both domains at once.

        Returns:
            Source and target samples of this process, and the samples in `labelled`. Those pass through the network
            together with the target, and are in the task loss alone: they are too few to stand for their domain.
        """
        given = {domain: part if isinstance(part, list | tuple) else (part, None) for domain, part in batch.items()}
        x = {domain: given[domain][0] for domain in DOMAINS}
        if "labelled" in given:
            x["target"] = torch.cat([x["target"], given["labelled"][0]])
        together = [x] if joint else [{domain: part} for domain, part in x.items()]
        parts = {domain: outputs for group in together for domain, outputs in self._pass(group).items()}

        def known(part: str, logits: Tensor) -> Tensor:
            y: Tensor | None = given[part][1]
            return torch.full_like(logits[:, 0], UNKNOWN, dtype=torch.int64) if y is None else y

        if "labelled" in given:
            numbers = [len(given[part][0]) for part in ("target", "labelled")]
            halves = [output.split(numbers) for output in parts["target"]]
            parts["target"], parts["labelled"] = (tuple(half[i] for half in halves) for i in (0, 1))
        found = {
            part: DomainBatch(list(layers), logits, known(part, logits)) for part, (logits, *layers) in parts.items()
        }
        return found["source"], found["target"], found.get("labelled")

    def _pass(self, x: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        """Logits and activations of the adapted layers for samples of one domain, or of both in one batch."""
        if self._micro_batch is None:
            return self._pass_at_once(x)
        sizes = [len(part) for part in x.values()]
        number = min(-(-max(sizes) // self._micro_batch), max(min(sizes) // 2, 1))  # batch norm needs two samples
        pieces = zip(*(part.tensor_split(number) for part in x.values()), strict=True)
        outputs = [
            checkpoint(
                self._pass_at_once,
                dict(zip(x, piece, strict=True)),
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), keep_statistics(self)),
            )
            for piece in pieces
        ]
        return {domain: tuple(map(torch.cat, zip(*(part[domain] for part in outputs), strict=True))) for domain in x}

    def _pass_at_once(self, x: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        sizes = {domain: len(part) for domain, part in x.items()}
        try:
            together = sizes if len(x) > 1 else next(iter(x))
            logits, layers = self.activations(torch.cat(list(x.values())), together, self.adapted)
            outputs = (part.split(list(sizes.values())) for part in (logits, *layers))
            found = dict(zip(x, zip(*outputs, strict=True), strict=True))
            for domain, samples in x.items():
                self.set_domain(domain)
                found[domain] = (*found[domain], *self.further_layers(samples, domain))
        finally:  # the second pass of `checkpoint` ends early by an exception
            self.set_domain("target")
        return found

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        # With weight 0 the domains are passed apart, so that the arithmetic is that of training without a domain loss.
        joint = self._batch_norm == "joint" and self.domain_weight != 0
        source, target, labelled = self.domain_batches(batch, joint)
        parts = {"source": source, "target": labelled or target}
        task_loss = self.mean_task_loss((parts[domain].logits, parts[domain].labels) for domain in self.supervised)
        self.log("train/task_loss", task_loss)
        return task_loss + self.weighted_domain_loss(source, target)
