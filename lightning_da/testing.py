"""Checks of the properties of every method, every domain loss and all data, ours and yours.

In a test of any runner:

    check_method(MyMethod, my_argument=3)
    check_domain_loss(my_loss)
    check_data(MyDataModule())

A failure is an AssertionError. Its message names the property and the usual causes.
"""

import hashlib
import inspect
import logging
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from lightning_da.data.base import SPLITS, UNKNOWN, DomainPairDataModule, Roles, TensorDomain
from lightning_da.errors import list_choices
from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.base import TransferModule
from lightning_da.methods.fine_tune import FineTune
from lightning_da.networks.backbones import FeedForward
from lightning_da.schedules import constant

Method: TypeAlias = Callable[..., Any]
"""A method's class, or a callable that is called like one."""
DomainLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From activations (n_s, d) and (n_t, d) to a scalar."""
Shift: TypeAlias = Literal["wide", "moved", "turned"]
"""How the target of `Toy` differs from its source."""

SHIFTS: tuple[Shift, ...] = ("moved", "wide", "turned")
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=5e-3)
NETWORK: dict[str, Any] = {
    "num_classes": 3,
    "input_shape": (8,),
    "backbone": partial(FeedForward, hidden=[32, 16]),
    "optimizer": SGD,
}
"""Arguments of a method, where a check is given no others."""
AT_ONCE: dict[str, Any] = {"domain_schedule": constant}
"""The domain loss at its full weight from the first step on."""


# ---------------------------------------------------------------- data, models, fits


class Toy(DomainPairDataModule):
    """Three classes told apart by two of eight dimensions, in domains small enough to train on in a second.

    Args:
        batch_size: Samples of each domain in a batch.
        number: Samples of each split.
        classes: Number of classes.
        shift: `wide` makes the other six dimensions twelve times as large in the target, `moved` moves all eight,
            `turned` turns the two by 50 degrees, so that most predictions for the target are right from the start.
    """

    def __init__(self, batch_size: int = 32, number: int = 320, classes: int = 3, shift: Shift = "wide") -> None:
        super().__init__("calm", "noisy", batch_size)
        self.number, self.classes_wanted, self.shift = number, classes, shift

    def dataset(self, domain: str, split: str) -> TensorDomain:
        rng = np.random.default_rng([["train", "val", "test"].index(split), len(domain)])
        y = rng.integers(self.classes_wanted, size=self.number)
        angle = 2 * np.pi * y / self.classes_wanted
        if domain == "noisy" and self.shift == "turned":
            angle = angle + np.pi * 50 / 180
        x = rng.normal(0, 0.4, (self.number, 8))
        x[:, 0] += 2 * np.cos(angle)
        x[:, 1] += 2 * np.sin(angle)
        if domain == "noisy" and self.shift == "moved":
            x += 1.5
        elif domain == "noisy" and self.shift == "wide":
            x[:, 2:] *= 12
        return TensorDomain(
            torch.from_numpy(x).float(), torch.from_numpy(y), [f"class {i}" for i in range(self.classes_wanted)]
        )


class Uneven(Toy):
    """The training split of one domain is shorter than the other's."""

    def __init__(self, short: str) -> None:
        super().__init__()
        self.short = short

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        if (domain, split) == (self.short, "train"):
            data = TensorDomain(data.x[:72], data.y[:72], data.classes)
        return data


class _Relabelled(Toy):
    """Every label of the target is another."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        if domain == self.target:
            data.y = (data.y + 1) % self.classes_wanted
        return data


def build(method: Method, seed: int = 0, **kwargs: Any) -> Any:
    """A method with random weights of a seed.

    Args:
        method: Its class.
        seed: Of all random states.
        **kwargs: Arguments of the method, beside or instead of those of `NETWORK`.
    """
    L.seed_everything(seed, verbose=False)
    return method(**(NETWORK | kwargs))


def trainer(steps: int = 30, **kwargs: Any) -> L.Trainer:
    """A trainer that runs on the CPU, prints nothing and leaves nothing behind."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "num_sanity_val_steps": 0,
        "max_steps": steps,
    }
    return L.Trainer(**(quiet | kwargs))


def fit(model: Any, steps: int = 30, data: DomainPairDataModule | None = None, **kwargs: Any) -> Any:
    """Trains a model, without validation, and returns it."""
    trainer(steps, limit_val_batches=0, **kwargs).fit(model, data or Toy())
    return model


def accuracy(model: TransferModule, data: DomainPairDataModule | None = None) -> dict[str, float]:
    """The test metrics of a model."""
    results = trainer().test(model, data or Toy(), verbose=False)
    return {key: value for part in results for key, value in part.items()}


def state(model: nn.Module, prefix: str | tuple[str, ...] = ("backbone.", "bottleneck.", "head.")) -> dict[str, Tensor]:
    """A copy of the parameters and buffers whose names begin with one of the prefixes."""
    return {key: value.clone() for key, value in model.state_dict().items() if key.startswith(prefix)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def source_only(model: TransferModule, seed: int = 0) -> FineTune:
    """Training without a domain loss: the network, the random weights and the arguments of a method's model."""
    shared = inspect.signature(TransferModule).parameters
    found: FineTune = build(FineTune, seed, **{key: value for key, value in model.hparams.items() if key in shared})
    return found


# ---------------------------------------------------------------- one step, by itself


def ready(method: Method, logged: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """A method in float64 whose training step can be called by itself.

    Args:
        method: Its class.
        logged: Receives all values that the step logs, also those that are not logged at every step.
        **kwargs: Arguments of the method.
    """
    values = {} if logged is None else logged
    model = build(method, **kwargs)
    model.trainer = trainer(log_every_n_steps=50 if logged is None else 1)
    model.log = lambda key, value, **_: values.__setitem__(key, value)
    model.log_dict = lambda more, **_: values.update(more)
    model.on_fit_start()
    return model.double()


def batch_of(model: TransferModule, source: Tensor, target: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
    """A training batch, with labels where the model reads them.

    Args:
        model: What reads it.
        source: Samples, shape (n_s, *input_shape).
        target: Samples, shape (n_t, *input_shape).
        labels: Of the source, shape (n_s,); 0, 1, 2, 0, ... if None.
    """
    given = {"source": labels, "target": None}
    batch: dict[str, Any] = {}
    for domain, x in (("source", source), ("target", target)):
        y = given[domain]
        with_labels = (x, torch.arange(len(x)) % model.num_classes if y is None else y)
        batch[domain] = with_labels if domain in model.supervised else x
    return batch


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _far_apart(
    model: TransferModule, labels: Tensor | None = None, sizes: tuple[int, int] = (13, 15)
) -> dict[str, Any]:
    n_s, n_t = sizes
    return batch_of(model, _normal(n_s, 8, seed=0), 2 * _normal(n_t, 8, seed=1) + 1, labels)


class Step(NamedTuple):
    """A training step, seen from its domain loss.

    Attributes:
        loss: What the training step returns.
        source: What the domain loss gets.
        target: What the domain loss gets.
        domain_loss: What the domain loss returns.
    """

    loss: Tensor
    source: DomainBatch
    target: DomainBatch
    domain_loss: Tensor


def step(model: AdaptationModule, batch: dict[str, Any]) -> Step:
    """Calls the training step of a `ready` model.

    Raises:
        AssertionError: If the step does not call the domain loss, or calls it twice.
    """
    seen: list[tuple[DomainBatch, DomainBatch, Tensor]] = []
    domain_loss = model.domain_loss

    def watched(source: DomainBatch, target: DomainBatch) -> Tensor:
        seen.append((source, target, domain_loss(source, target)))
        return seen[-1][-1]

    with patch.object(model, "domain_loss", watched):
        loss = model.training_step(batch, 0)
    if len(seen) != 1:
        raise AssertionError(f"a training step calls domain_loss {len(seen)} times, not once; leave it to the base")
    return Step(loss, *seen[0])


def gradients(loss: Tensor, inputs: Any) -> list[Tensor]:
    """The gradient of a loss with respect to tensors, 0 where there is none."""
    reached = {part: torch.zeros_like(part) for part in inputs}
    able = [part for part in reached if part.requires_grad]
    if loss.requires_grad and able:
        found = torch.autograd.grad(loss, able, retain_graph=True, materialize_grads=True, allow_unused=True)
        reached.update(zip(able, found, strict=True))
    return list(reached.values())


# ---------------------------------------------------------------- properties of a method


def check_gradient(method: Method, **kwargs: Any) -> None:
    """The domain loss sends a gradient into each parameter of the backbone that its layers depend on."""
    model = ready(method, **(AT_ONCE | kwargs))
    seen = step(model, _far_apart(model))
    names, parameters = zip(*model.backbone.named_parameters(), strict=True)
    layers = [*seen.source.layers, *seen.target.layers]
    anything = torch.stack([(layer * _normal(*layer.shape, seed=2)).sum() for layer in layers]).sum()
    for name, sent, able in zip(
        names, gradients(seen.domain_loss, parameters), gradients(anything, parameters), strict=True
    ):
        if not sent.isfinite().all():
            raise AssertionError(f"gradient: that of the domain loss in backbone.{name} is not finite")
        # a bias in front of batch norm has no effect but for rounding
        if able.abs().max() > 1e-12 and sent.abs().max() <= 1e-12:
            raise AssertionError(
                f"gradient: the domain loss sends none into backbone.{name}; look for no_grad, detach, .item(), or a "
                "softmax over one unit"
            )
    if not _reads(seen.domain_loss, seen.target):
        raise AssertionError(
            "gradient: the domain loss sends none into the target's features and logits; look for detach, or one "
            "argument that is read twice"
        )


def _reads(loss: Tensor, batch: DomainBatch) -> bool:
    return any(gradient.any() for gradient in gradients(loss, [*batch.layers, batch.logits]))


def check_weight(method: Method, **kwargs: Any) -> None:
    """The backbone's gradient is that of the task loss plus the weight times that of the domain loss, in float64."""

    def taken(weight: float) -> tuple[list[Tensor], list[Tensor]]:
        model = ready(method, **(AT_ONCE | {"domain_weight": weight} | kwargs))
        seen = step(model, _far_apart(model))
        return gradients(seen.loss, model.backbone.parameters()), gradients(
            seen.domain_loss, model.backbone.parameters()
        )

    (task, _), (_, domain), (whole, _) = taken(0.0), taken(1.0), taken(3.0)
    for t, d, w in zip(task, domain, whole, strict=True):
        if not torch.allclose(w, t + 3 * d, rtol=1e-8, atol=1e-12):
            raise AssertionError(
                "weight: with domain_weight 3 the backbone's gradient is not that of the task loss plus 3 times that "
                "of the domain loss; multiply by domain_weight once: weighted_domain_loss does"
            )


def check_weight_zero(method: Method, short: Literal["calm", "noisy"] = "noisy", **kwargs: Any) -> None:
    """With weight 0 the network is that of training without a domain loss, bit by bit.

    For a method that reads no labels that is the network it starts from.

    Args:
        method: Its class.
        short: The domain with the shorter training split.
        **kwargs: Arguments of the method.
    """

    def weights(model: TransferModule, steps: int = 12) -> dict[str, Tensor]:
        return state(fit(model, steps, Uneven(short)))

    without = build(method, domain_weight=0.0, **kwargs)
    found = weights(without)
    expected = weights(source_only(without)) if without.supervised else weights(without, 0)
    if not equal(found, expected):
        raise AssertionError(
            "weight_zero: with domain_weight 0 the network is not that of training without a domain loss; the step "
            "ignores domain_weight, or draws random numbers or batch statistics of its own"
        )
    if equal(weights(build(method, domain_weight=0.1, **kwargs)), expected):
        raise AssertionError("weight_zero: with domain_weight 0.1 the network is still that without a domain loss")


def check_null(method: Method, **kwargs: Any) -> None:
    """On equal distributions the domain loss has the value of equal samples, in the mean over small samples.

    For a distance that is 0. A loss with parameters of its own, or one that reads one domain only, is no distance:
    there it is the loss of a sample and itself.
    """
    model = ready(method, **(AT_ONCE | kwargs))
    known = ("backbone.", "bottleneck.", "head.")
    own = any(p.requires_grad and not name.startswith(known) for name, p in model.named_parameters())
    seen = step(model, _far_apart(model))
    both = _reads(seen.domain_loss, seen.source) and _reads(seen.domain_loss, seen.target)

    def mean(target: Callable[[Tensor, Tensor], Tensor]) -> float:
        losses = []
        for seed in range(_DRAWS):
            x, other = _normal(2, 8, 8, seed=seed)
            losses.append(step(model, batch_of(model, x, target(x, other))).domain_loss.item())
        return sum(losses) / len(losses)

    chance = 0.0 if both and not own else mean(lambda x, _: x)
    _compare_null(mean(lambda _, other: other), chance, mean(lambda _, other: 4 * other + 4))


_DRAWS = 100


def _compare_null(equal: float, chance: float, shifted: float) -> None:
    if not equal - chance <= 0.1 * max(shifted - chance, abs(chance)):
        raise AssertionError(
            f"null: on equal distributions the domain loss of 8 samples averages {equal:.3g}, where {chance:.3g} says "
            f"that there is nothing to tell (and {shifted:.3g} is that of distributions far apart); a biased MMD "
            "(V-statistic), or wrong factors of its terms"
        )


def check_order(method: Method, **kwargs: Any) -> None:
    """The domain loss does not depend on the order of the rows."""
    losses = []
    for order in (torch.arange, lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(0))):
        model = ready(method, **(AT_ONCE | kwargs))
        batch = {
            domain: tuple(part[order(len(part))] for part in parts)
            if isinstance(parts, tuple)
            else parts[order(len(parts))]
            for domain, parts in _far_apart(model).items()
        }
        losses.append(step(model, batch).domain_loss)
    if not torch.allclose(losses[0], losses[1], rtol=1e-8, atol=1e-12):
        raise AssertionError(
            f"order: the domain loss is {losses[0].item():.6g}, and {losses[1].item():.6g} with the rows of each "
            "domain in another order; it pairs rows of source and target, or neighbours (a linear estimator does, by "
            'design: skip=("order",))'
        )


def check_collapsed(method: Method, **kwargs: Any) -> None:
    """Loss and gradient are finite where all samples of a domain have the same features."""
    model = build(method, **kwargs)
    widths = model.adapted_widths()
    model = ready(method, **kwargs).float()

    def collapsed(value: float, n: int) -> DomainBatch:
        layers = [torch.full((n, width), value, requires_grad=True) for width in widths]
        logits = torch.full((n, model.num_classes), value, requires_grad=True)
        return DomainBatch(layers, logits, torch.arange(n) % model.num_classes)

    for s, t in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        source, target = collapsed(s, 8), collapsed(t, 6)
        loss = model.domain_loss(source, target)
        inputs = [*source.layers, source.logits, *target.layers, target.logits]
        _check_finite("collapsed", f"all features are {s} in the source and {t} in the target", loss, inputs)


def _check_finite(name: str, where: str, loss: Tensor, inputs: list[Tensor]) -> None:
    for what, values in (("the domain loss", [loss]), ("its gradient", gradients(loss, inputs))):
        if not all(value.isfinite().all() for value in values):
            raise AssertionError(
                f"{name}: {what} is not finite where {where}; a square root, a norm, a logarithm or a division at 0: "
                "clamp the input"
            )


def check_precision(method: Method, **kwargs: Any) -> None:
    """In mixed precision (bfloat16) the weights move, stay finite and stay float32; weights in bfloat16 train, too."""
    model = build(method, **kwargs)
    model.on_fit_start()
    before = state(model)
    after = state(fit(model, steps=4, precision="bf16-mixed", log_every_n_steps=2), "")
    for key, value in after.items():
        if not value.isfinite().all() or value.dtype == torch.bfloat16:
            raise AssertionError(
                f"precision: after 4 steps in bf16-mixed {key} is not finite, or not float32; compute the loss in "
                "float32 (lightning_da.losses.precision.full_precision)"
            )
    if equal(before, state(model)):
        raise AssertionError("precision: 4 steps in bf16-mixed leave the network as it was")
    half = fit(build(method, **kwargs), steps=2, precision="bf16-true", log_every_n_steps=1)
    if not all(value.isfinite().all() for value in state(half, "").values()):
        raise AssertionError(
            "precision: after 2 steps in bf16-true the network is not finite; compute the loss in float32"
        )


def check_checkpoint(method: Method, **kwargs: Any) -> None:
    """A checkpoint loads with `weights_only` into a model of other random weights, which then predicts the same."""
    model, data = build(method, **kwargs), Toy(number=96)
    runner = trainer(3, limit_train_batches=3)
    runner.fit(model, data)
    runner.test(model, data, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.ckpt")
        runner.save_checkpoint(path)
        loaded = trainer().predict(build(method, 9, **kwargs), data, ckpt_path=path, weights_only=True)
    saved = trainer().predict(model, data)
    own, other = (torch.cat([batch for split in found or [] for batch in split]) for found in (saved, loaded))
    if not torch.equal(own, other):
        raise AssertionError(
            "checkpoint: the loaded network predicts other values than the saved one; keep what a method learns in "
            "parameters and buffers"
        )


def check_labels(method: Method, **kwargs: Any) -> None:
    """No training batch holds labels of the target, and other labels of the target leave the weights as they are."""
    look = _Look()
    one, other = (
        state(fit(build(method, **kwargs), 12, data, callbacks=[look]), "") for data in (Toy(), _Relabelled())
    )
    alone = [isinstance(target, Tensor) and target.shape == (32, 8) for target in look.seen]
    if not all(alone):
        raise AssertionError("labels: a training batch holds more than the samples of the target; train on the source")
    if not equal(one, other):
        raise AssertionError(
            "labels: other labels of the target give other weights; the method reads them past the training batch, "
            "from the data module for example"
        )


class _Look(L.Callback):
    """Keeps the target part of the training batches that hold more than the source."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if set(batch) != {"source"}:
            self.seen.append(batch["target"] if set(batch) <= {"source", "target"} else None)


def check_better(method: Method, shifts: tuple[Shift, ...] = SHIFTS, **kwargs: Any) -> None:
    """On the target it is more accurate than source-only under one of the shifts, by 0.05 over three seeds.

    Args:
        method: Its class.
        shifts: Those that are tried.
        **kwargs: Arguments of the method.
    """
    gains = dict.fromkeys(shifts, 0.0)
    for shift in shifts:
        data = Toy(shift=shift)
        for seed in range(3):
            model = build(method, seed, **(NETWORK | {"optimizer": ADAM} | kwargs))
            reference = source_only(model, seed)
            L.seed_everything(seed, verbose=False)
            found, lower = (accuracy(fit(m, 100, data), data)["test/target/acc"] for m in (model, reference))
            gains[shift] += (found - lower) / 3
        if gains[shift] > 0.05:
            return
    raise AssertionError(
        f"better: the accuracy on the target is above that of source-only by {gains} under the shifts of this kit; the "
        "domain loss does not adapt, or sees none of these shifts"
    )


# ---------------------------------------------------------------- several processes


class Outcome(NamedTuple):
    """What a training step of one process makes.

    Attributes:
        loss: What the training step returns.
        state: Parameters and buffers after the step.
        logged: What the step logs.
    """

    loss: Tensor
    state: dict[str, Tensor]
    logged: dict[str, Tensor]


class _AsForward(nn.Module):
    """A training step as a forward pass, for DistributedDataParallel to wrap."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any) -> Tensor:
        loss: Tensor = self.method.training_step(batch, 0)
        return loss


def _deal(batch: Any, rank: int) -> Any:
    """The rows of one of two processes, as the samplers deal them."""
    if isinstance(batch, Tensor):
        return batch[rank::2]
    return {
        key: tuple(x[rank::2] for x in part) if isinstance(part, tuple) else part[rank::2]
        for key, part in batch.items()
    }


def _outcome(
    method: Method, labels: Tensor | None, sizes: tuple[int, int], kwargs: dict[str, Any], rank: int | None = None
) -> Outcome:
    logged: dict[str, Any] = {}
    model = ready(method, logged, **kwargs)
    batch, network = _far_apart(model, labels, sizes), _AsForward(model)
    if rank is not None:
        batch, network = _deal(batch, rank), nn.parallel.DistributedDataParallel(network)  # type: ignore[assignment]
    loss = network(batch)
    loss.backward()
    model.on_after_backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    return Outcome(
        loss.detach(), state(model, ""), {key: torch.as_tensor(value).detach() for key, value in logged.items()}
    )


def _work(
    rank: int,
    folder: str,
    method: Method,
    labels: Tensor | None,
    sizes: tuple[int, int],
    kwargs: dict[str, Any],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(tuple(_outcome(method, labels, sizes, kwargs, rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def two_processes(
    method: Method, labels: Tensor | None = None, sizes: tuple[int, int] = (13, 15), **kwargs: Any
) -> tuple[Outcome, list[Outcome]]:
    """A training step of one process, and of each of two that share its batch, in float64.

    Args:
        method: Its class, which other processes can import: it stands at the top of a module.
        labels: Of the source samples, shape (n_s,), int64; 0, 1, 2, 0, ... if None.
        sizes: The numbers n_s and n_t of source and target samples in the batch.
        **kwargs: Arguments of the method.
    """
    # A server imports the slow packages once and forks each process.
    multiprocessing.set_forkserver_preload(["lightning.pytorch.cli", "scipy.optimize", "torchmetrics.classification"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_processes(_work, (folder, method, labels, sizes, kwargs), nprocs=2, start_method="forkserver")
        except ProcessExitedException as error:
            raise AssertionError(
                "processes: the two processes could not start; in a script, call the checks below `if __name__ == "
                "'__main__':`, and import the method from a module"
            ) from error
        shares = [Outcome(*torch.load(f"{folder}/{rank}.pt")) for rank in range(2)]
    return _outcome(method, labels, sizes, kwargs), shares


def compare_processes(one: Outcome, shares: list[Outcome]) -> None:
    """The loss of one process is the mean over processes, and the weights after a step are the same.

    Raises:
        AssertionError: If not.
    """
    mean = torch.stack([share.loss for share in shares]).mean()
    if not torch.allclose(mean, one.loss, rtol=1e-10, atol=0):
        raise AssertionError(
            f"processes: the loss is {mean.item():.6g} on two processes, {one.loss.item():.6g} on one{_WHY}"
        )
    for key, value in one.state.items():
        for share in shares:
            if not torch.allclose(share.state[key], value, rtol=1e-9, atol=1e-11):
                raise AssertionError(f"processes: after a step {key} differs between two processes and one{_WHY}")


_WHY = (
    "; the loss of each process's own samples is no mean over them: use the arguments of domain_loss, which have the "
    "samples of all processes, and gather other tensors"
)


def check_processes(method: Method, **kwargs: Any) -> None:
    """Two processes that share a batch make the step of one."""
    compare_processes(*two_processes(method, **(AT_ONCE | {"domain_weight": 3.0} | kwargs)))


METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "gradient": check_gradient,
    "weight": check_weight,
    "weight_zero": check_weight_zero,
    "null": check_null,
    "order": check_order,
    "collapsed": check_collapsed,
    "precision": check_precision,
    "checkpoint": check_checkpoint,
    "labels": check_labels,
    "processes": check_processes,
    "better": check_better,
}
"""The properties of a method, by name."""
WITHOUT_DOMAIN_LOSS = ("checkpoint", "labels")
"""Those of a method without a domain loss, such as a classical one."""


def check_method(method: Method, skip: tuple[str, ...] = (), **kwargs: Any) -> None:
    """Checks every property of a method: some ten seconds; of one without a `domain_loss`, `WITHOUT_DOMAIN_LOSS`.

    Args:
        method: A subclass of `TransferModule`, or a callable that makes one; it is given `num_classes`,
            `input_shape`, `backbone`, `optimizer`, `domain_weight` and `domain_schedule`.
        skip: Names of properties that do not apply, keys of `METHOD_CHECKS`.
        **kwargs: Further arguments of the method.

    Raises:
        AssertionError: If a property does not hold; the message names it and the usual causes.
        ValueError: If there is no property of a name in `skip`.
    """
    if not hasattr(build(method, **kwargs), "domain_loss"):
        skip = (*skip, *(name for name in METHOD_CHECKS if name not in WITHOUT_DOMAIN_LOSS))
    _check_all(METHOD_CHECKS, skip, method, **kwargs)


def _check_all(checks: dict[str, Callable[..., None]], skip: tuple[str, ...], tested: Any, **kwargs: Any) -> None:
    for name in skip:
        if name not in checks:
            raise ValueError(f"skip: no property {name!r}; {list_choices(name, checks)}")
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with patch.object(chatter, "disabled", True):
        for name, check in checks.items():
            if name in skip:
                continue
            try:
                check(tested, **kwargs)
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(f"{name}: {str(error) or type(error).__name__}") from error


# ---------------------------------------------------------------- properties of a domain loss


def _samples(n: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return (scale * _normal(n, 16, seed=seed) + shift).requires_grad_()


def _loss_gradient(loss: DomainLoss) -> None:
    source, target = _samples(12, 0), _samples(12, 1, 2, 1)
    value = loss(source, target)
    if not isinstance(value, Tensor):
        raise AssertionError(f"gradient: the loss is a {type(value).__name__}, which has no gradient; return a tensor")
    if value.dim() != 0:
        raise AssertionError(f"gradient: the loss has shape {tuple(value.shape)}, not that of a scalar")
    _check_finite("gradient", "the domains are far apart", value, [source, target])
    if gradients(value, [target])[0].abs().max() == 0:
        raise AssertionError(
            "gradient: the loss sends none into the target; look for no_grad, detach, .item(), or one argument "
            "that is read twice"
        )


def _mean_losses(loss: DomainLoss) -> tuple[float, float]:
    """Of 8 samples of either domain, on equal distributions and on distributions far apart."""
    equal, shifted = (
        sum(loss(_samples(8, 2 * seed), _samples(8, 2 * seed + 1, *far)).item() for seed in range(_DRAWS)) / _DRAWS
        for far in ((), (4.0, 4.0))
    )
    return equal, shifted


def _loss_shift(loss: DomainLoss) -> None:
    equal, shifted = _mean_losses(loss)
    if not shifted > equal + 1e-3 * abs(equal):  # a loss that does not see the shift differs by rounding
        raise AssertionError(
            f"shift: the loss averages {shifted:.3g} on distributions far apart, and {equal:.3g} on equal ones; a "
            "missing term, a wrong sign, or one argument that is read twice"
        )


def _loss_null(loss: DomainLoss) -> None:
    equal, shifted = _mean_losses(loss)
    _compare_null(equal, 0.0, shifted)


def _loss_order(loss: DomainLoss) -> None:
    source, target = _samples(12, 0), _samples(12, 1, 2, 1)
    value, other = loss(source, target), loss(source.flip(0), target.roll(5, 0))
    if not torch.allclose(value, other, rtol=1e-8, atol=1e-12):
        raise AssertionError(
            f"order: the loss is {value.item():.6g}, and {other.item():.6g} with the rows in another order; it pairs "
            'rows of source and target, or neighbours (a linear estimator does, by design: skip=("order",))'
        )


def _loss_sizes(loss: DomainLoss) -> None:
    for n_s, n_t in ((12, 7), (7, 12)):
        try:
            value = loss(_samples(n_s, 0), _samples(n_t, 1, 2, 1))
        except Exception as error:
            raise AssertionError(f"sizes: the loss of {n_s} source and {n_t} target samples fails: {error}") from error
        if value.dim() != 0 or not value.isfinite():
            raise AssertionError(f"sizes: the loss of {n_s} source and {n_t} target samples is no finite scalar")


def _loss_precision(loss: DomainLoss) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for scale in (1.0, 100.0):
            half = [(scale * x).detach().to(dtype) for x in (_samples(64, 0, 1, 20), _samples(64, 1, 1.2, 20.1))]
            found, expected = loss(*half).float(), loss(*(x.float() for x in half))
            if not torch.allclose(found, expected, rtol=0.02, atol=1e-4):
                raise AssertionError(
                    f"precision: the loss is {found.item():.4g} in {dtype} and {expected.item():.4g} in float32 on "
                    f"values around {scale:g}; compute it in float32 (lightning_da.losses.precision.full_precision)"
                )


def _loss_collapsed(loss: DomainLoss) -> None:
    for s, t in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        source, target = torch.full((8, 16), s, requires_grad=True), torch.full((8, 16), t, requires_grad=True)
        where = f"all features are {s} in the source and {t} in the target"
        _check_finite("collapsed", where, loss(source, target), [source, target])


LOSS_CHECKS: dict[str, Callable[[DomainLoss], None]] = {
    "gradient": _loss_gradient,
    "sizes": _loss_sizes,
    "shift": _loss_shift,
    "null": _loss_null,
    "order": _loss_order,
    "precision": _loss_precision,
    "collapsed": _loss_collapsed,
}
"""The properties of a domain loss, by name."""


def check_domain_loss(loss: DomainLoss, skip: tuple[str, ...] = ()) -> None:
    """Checks every property of a distance between two samples, also one of another library.

    Args:
        loss: From source (n_s, 16) and target (n_t, 16), float64, float32 or half precision, to a scalar.
        skip: Names of properties that do not apply, keys of `LOSS_CHECKS`.

    Raises:
        AssertionError: If a property does not hold; the message names it and the usual causes.
        ValueError: If there is no property of a name in `skip`.
    """
    _check_all(LOSS_CHECKS, skip, loss)


# ---------------------------------------------------------------- properties of data


def _trains_a_source(data: DomainPairDataModule) -> bool:
    trains: list[Any] = [data.dataset(domain, "train") for domain in data.named["source"]]
    return len(data.domains) > 1 and all((torch.as_tensor(train.y) != UNKNOWN).any() for train in trains)


def _data_read(data: DomainPairDataModule) -> None:
    alone = Roles(("target",), () if len(data.domains) < 2 else ("source",))
    data.check(Roles() if _trains_a_source(data) else alone)


def _data_splits(data: DomainPairDataModule) -> None:
    for domain in (domain for role in data.domains for domain in data.named[role]):
        seen = dict[str, str]()
        for split in SPLITS:
            found = dict.fromkeys(_identities(data.dataset(domain, split)), split)
            for sample in found.keys() & seen.keys():
                raise AssertionError(
                    f"splits: a sample of domain {domain!r} is in {seen[sample]} and in {split} ({sample[:80]}); "
                    "draw the splits without overlap, and remove samples that are there twice"
                )
            seen |= found


def _identities(dataset: Any) -> list[str]:
    """The path of each sample, or a digest of its values."""
    if hasattr(dataset, "files"):
        return list(dataset.files)
    return [hashlib.sha256(dataset[i][0].numpy().tobytes()).hexdigest() for i in range(len(dataset))]


def _data_same(data: DomainPairDataModule) -> None:
    for domain in (domain for role in data.domains for domain in data.named[role]):
        for split in SPLITS:
            one, other = (cast(Any, data.dataset(domain, split)) for _ in range(2))
            if one.fingerprint() != other.fingerprint() or not np.array_equal(one.y, other.y):
                raise AssertionError(
                    f"same: the {split} split of domain {domain!r} is another one each time; draw it with "
                    "a generator of its own and a fixed seed"
                )


def _data_labels(data: DomainPairDataModule) -> None:
    if not _trains_a_source(data):
        return
    batch = next(iter(data.train_dataloader()))[0]
    if not isinstance(batch["target"], Tensor):
        raise AssertionError(
            "labels: a training batch of the target holds more than its samples; leave train_dataloader and the "
            "target's batch to DomainPairDataModule"
        )


DATA_CHECKS: dict[str, Callable[[DomainPairDataModule], None]] = {
    "read": _data_read,
    "splits": _data_splits,
    "same": _data_same,
    "labels": _data_labels,
}
"""The properties of data, by name."""


def check_data(data: DomainPairDataModule, skip: tuple[str, ...] = ()) -> None:
    """Checks every property of a data module.

    Its domains fit together (see `DomainPairDataModule.check`), no sample is in two splits of a domain, a split is the
    same each time it is made, and no training batch has labels of the target.

    Args:
        data: The data module.
        skip: Names of properties that do not apply, keys of `DATA_CHECKS`: `splits` for example if all samples are
            trained on and tested by design.

    Raises:
        AssertionError: If a property does not hold; the message names it and the usual causes.
        ValueError: If there is no property of a name in `skip`.
    """
    _check_all(DATA_CHECKS, skip, data)
