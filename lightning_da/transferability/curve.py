"""Transferability curves: what the layers of a network say of two domains, over depth and over training."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple, cast, get_args

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_da.data.base import DOMAINS, UNKNOWN, DomainPairDataModule
from lightning_da.errors import ConfigError, list_choices
from lightning_da.gather import gather
from lightning_da.methods import TransferModule
from lightning_da.tracking import Tracker
from lightning_da.transferability import measures
from lightning_da.transferability.plots import curve_figure, curve_html

WIDTH = 256
"""Wider features are projected to so many dimensions."""
RESAMPLES = 20
"""Random halves for the spread of a value, and shuffles for its null floor."""

Measure = Literal["a_distance", "mmd", "coral", "probe_source", "probe_target", "logme", "h_score", "leep", "nce"]
DEFAULT_MEASURES: tuple[Measure, ...] = ("a_distance", "mmd", "coral", "probe_source", "probe_target")


COLUMNS = ("depth", "layer", "measure", "value", "low", "high", "null", "null_high", "p")


class Features(NamedTuple):
    """What a layer makes of a sample of both domains.

    Attributes:
        source: Shape (n_s, d).
        target: Shape (n_t, d).
        y_source: Labels, shape (n_s,), `UNKNOWN` where there is none.
        y_target: Labels, shape (n_t,).
    """

    source: Tensor
    target: Tensor
    y_source: Tensor
    y_target: Tensor

    def half(self, generator: torch.Generator) -> "Features":
        """A random half of each domain."""
        s, t = (measures.half(len(x), generator) for x in (self.source, self.target))
        return Features(self.source[s], self.target[t], self.y_source[s], self.y_target[t])

    def shuffled_domains(self, generator: torch.Generator) -> "Features":
        """The same samples, told at random which domain they are of."""
        both, y = torch.cat([self.source, self.target]), torch.cat([self.y_source, self.y_target])
        order = torch.randperm(len(both), generator=generator)
        n = len(self.source)
        return Features(both[order[:n]], both[order[n:]], y[order[:n]], y[order[n:]])

    def shuffled_labels(self, generator: torch.Generator) -> "Features":
        """The same samples with the labels of others of their domain."""
        y_source, y_target = (y[torch.randperm(len(y), generator=generator)] for y in (self.y_source, self.y_target))
        return Features(self.source, self.target, y_source, y_target)


def _probe_source(f: Features) -> float:
    """Accuracy on one half of the source of a probe fitted on the other, mean of both ways."""
    parts = torch.randperm(len(f.source), generator=torch.Generator().manual_seed(0)).tensor_split(2)
    found = [
        measures.Probe(f.source[a], f.y_source[a]).accuracy(f.source[b], f.y_source[b]) for a, b in (parts, parts[::-1])
    ]
    return sum(found) / 2


class _Kind(NamedTuple):
    """A measure: its value, what is shuffled for its null floor, its least and largest value, the labels it reads."""

    value: Callable[[Features], float]
    shuffle: Callable[[Features, torch.Generator], Features]
    low: float
    high: float
    labels: tuple[str, ...]
    head_only: bool = False


_domains, _labels, _inf = Features.shuffled_domains, Features.shuffled_labels, math.inf
KINDS: dict[Measure, _Kind] = {
    "a_distance": _Kind(lambda f: measures.a_distance(f.source, f.target), _domains, 0, 2, ()),
    "mmd": _Kind(lambda f: measures.mmd_test(f.source, f.target, 0).value, _domains, -_inf, _inf, ()),
    "coral": _Kind(lambda f: measures.coral_distance(f.source, f.target), _domains, 0, 1, ()),
    "probe_source": _Kind(_probe_source, _labels, 0, 1, ("source",)),
    "probe_target": _Kind(
        lambda f: measures.Probe(f.source, f.y_source).accuracy(f.target, f.y_target), _labels, 0, 1, DOMAINS
    ),
    "logme": _Kind(lambda f: measures.logme(f.target, f.y_target), _labels, -_inf, _inf, ("target",)),
    "h_score": _Kind(lambda f: measures.h_score(f.target, f.y_target), _labels, 0, _inf, ("target",)),
    "leep": _Kind(lambda f: measures.leep(f.target.softmax(1), f.y_target), _labels, -_inf, 0, ("target",), True),
    "nce": _Kind(lambda f: measures.nce(f.target.argmax(1), f.y_target), _labels, -_inf, 0, ("target",), True),
}
"""LogME, H-score, LEEP and NCE are of the target's labels, the last two of the logits alone."""


# ---------------------------------------------------------------- from a network to features


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices of a few hundred rows are small: several threads wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _projection(width: int) -> Tensor:
    return torch.randn(width, WIDTH, generator=torch.Generator().manual_seed(width)).div_(WIDTH**0.5)


def project(features: Tensor) -> Tensor:
    """Features of more than 256 dimensions brought to 256 by a fixed random map, which keeps distances.

    Squared distances are kept in the mean, with a relative deviation of sqrt(2 / 256) = 9 %.

    Source: Johnson and Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984.

    Args:
        features: Shape (n, d), floating point.

    Returns:
        Shape (n, min(d, 256)), float32 on the CPU.
    """
    kept = features.float().cpu()
    return kept if kept.shape[1] <= WIDTH else torch.mm(kept, _projection(kept.shape[1]))


def check_layers(module: TransferModule, layers: Sequence[str] | Literal["auto"]) -> list[str]:
    """The layers to look at, `bottleneck` and `head` included.

    Raises:
        ConfigError: If the backbone has no submodule of such a name.
    """
    if layers == "auto":
        return module.depths
    known = [*dict(module.backbone.named_modules()), "bottleneck", "head"]
    for layer in layers:
        if layer not in known:
            raise ConfigError(f"layers: the network has no layer {layer!r}; {list_choices(layer, module.depths)}")
    return list(layers)


@torch.no_grad()
def collect(
    trainer: L.Trainer, module: TransferModule, data: DomainPairDataModule, layers: Iterable[str], samples: int
) -> dict[str, Features]:
    """Passes a fixed sample of both validation splits through a network, once.

    The network is left as it was found: weights, gradients, statistics, modes, and the random state as well. Every
    process passes its share and returns the whole.

    Args:
        trainer: Its precision and device are used.
        module: The network, on the device.
        data: The two domains.
        layers: Names of layers.
        samples: How many of each domain at most.

    Returns:
        Pooled and projected activations of each layer, on the CPU.
    """
    layers = list(layers)
    modes = [(part, part.training) for part in module.modules()]
    parts: dict[str, list[Tensor]] = {}
    labels = {}
    with isolate_rng():
        module.eval()
        try:
            for domain in DOMAINS:
                rows: list[list[Tensor]] = [[] for _ in layers]
                seen = []
                for x, y in data.sample_dataloader(domain, "val", samples):
                    with trainer.precision_plugin.forward_context():
                        moved = trainer.precision_plugin.convert_input(x.to(module.device))
                        _, activations = module.activations(moved, domain, layers)
                    for kept, layer, activation in zip(rows, layers, activations, strict=True):
                        kept.append(activation.float().cpu() if layer == "head" else project(activation))
                    seen.append(y)
                labels[domain] = _whole(torch.cat(seen), module.device)
                for layer, kept in zip(layers, rows, strict=True):
                    parts.setdefault(layer, []).append(_whole(torch.cat(kept), module.device))
        finally:
            for part, mode in modes:
                part.training = mode
    return {
        layer: Features(source, target, labels["source"], labels["target"]) for layer, (source, target) in parts.items()
    }


def _whole(share: Tensor, device: torch.device) -> Tensor:
    """The rows of all processes in the order of the sample, of which process r of N has r, r + N, ..."""
    both = gather(share.to(device)).cpu()
    sizes = gather(torch.tensor([len(share)], device=device)).tolist()
    places = torch.cat([rank + len(sizes) * torch.arange(size) for rank, size in enumerate(sizes)])
    return both[places.argsort()]


# ---------------------------------------------------------------- from features to a table


@_one_thread()
def depth_table(
    features: dict[str, Features], chosen: Iterable[Measure], spread: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Measures of each layer; those that need labels which are not there are left out.

    The band is 1.96 standard deviations to both sides, from random halves of both domains drawn without replacement
    (the delete-half jackknife; near the null floor it is too wide, by up to a factor of 2). Samples drawn twice, as in
    a bootstrap with replacement, would stand in the part that a classifier is fitted on and in the part that it is
    judged on, and count as equal pairs in an MMD. The null floor is the mean over shuffles of the domain labels, or,
    for measures of labels, of those.

    Source: Shao and Wu, "A general theory for jackknife variance estimation", 1989.

    Args:
        features: Of each layer, in the order of depth.
        chosen: The measures.
        spread: Whether to compute band, null floor and p-value as well.
        seed: Of halves and shuffles.

    Returns:
        A row for each layer and measure: depth (from 1), layer, measure, value, low, high, null, null_high (the 95th
        percentile of the shuffles) and p (of MMD).
    """
    rows = []
    for depth, (layer, f) in enumerate(features.items(), start=1):
        known = {d for d, y in zip(DOMAINS, (f.y_source, f.y_target), strict=True) if (y != UNKNOWN).sum() > 1}
        for measure in chosen:
            kind = KINDS[measure]
            if known >= set(kind.labels) and (layer == "head" or not kind.head_only):
                row = {"depth": depth, "layer": layer, "measure": measure}
                rows.append(row | _measured(measure, f, spread, seed))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured(measure: Measure, f: Features, spread: bool, seed: int) -> dict[str, float]:
    if not all(part.isfinite().all() for part in (f.source, f.target)):
        return {"value": math.nan}  # the network has diverged
    kind, generator = KINDS[measure], torch.Generator().manual_seed(seed)
    if not spread:
        return {"value": kind.value(f)}
    if measure == "mmd":
        test = measures.mmd_test(f.source, f.target, seed=seed, halves=RESAMPLES)
        value, halves, null, more = test.value, test.halves, test.null, {"p": test.p}
    else:
        value, more = kind.value(f), {}
        halves = torch.tensor([kind.value(f.half(generator)) for _ in range(RESAMPLES)])
        null = torch.tensor([kind.value(kind.shuffle(f, generator)) for _ in range(RESAMPLES)])
    reach = 1.96 * float(halves.double().std())
    return more | {
        "value": value,
        "low": max(value - reach, kind.low),
        "high": min(value + reach, kind.high),
        "null": float(null.mean()),
        "null_high": float(null.double().quantile(0.95)),
    }


# ---------------------------------------------------------------- over training


class TransferCurve(L.Callback):
    """Measures the layers of the network on both validation splits as training goes on, and draws the curves.

    At the start, at chosen epochs and at the end it logs `transfer/<measure>/<layer>`; at the end `depth/<measure>`
    with the depth as step, from 1, and the files `curve/curve.csv`, `curve.png` and `curve.html`. An untrained network
    of the same kind stands beside them. Training is not touched: its weights are those of a fit without curves.

    Labels of the target's validation split, where it has any, go into `probe_target` and the measures that name the
    target, and into nothing that is trained or chosen.

    Args:
        every_n_epochs: Epochs between two points of the curves over training; 0 has the start and the end alone.
        samples: How many samples of each domain at most.
        layers: Names of the backbone's submodules, `bottleneck` and `head`; `auto` has the backbone's `layers` and
            those two.
        measures: What is measured. `a_distance`, `mmd` and `coral` compare the domains; `probe_source` and
            `probe_target` are the accuracies of a linear classifier of the source; `logme` and `h_score` rate the
            features, `leep` and `nce` the logits, for the labels of the target.

    Raises:
        ConfigError: If `samples` is too small, or a measure is named twice.
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        samples: int = 1000,
        layers: Literal["auto"] | list[str] = "auto",
        measures: tuple[Measure, ...] = DEFAULT_MEASURES,
    ) -> None:
        check_measures(measures)
        if every_n_epochs < 0 or samples < 8:
            raise ConfigError(f"every_n_epochs: {every_n_epochs} must not be negative, and {samples=} at least 8")
        self.every_n_epochs, self.samples, self.layers, self.measures = every_n_epochs, samples, layers, measures
        self.table = pd.DataFrame()
        """Of `depth_table`, with the columns `network` and `step`."""
        self._resumed = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(trainer.datamodule, DomainPairDataModule):  # type: ignore[attr-defined]
            raise ConfigError("TransferCurve reads the two domains from a DomainPairDataModule; fit with `datamodule=`")
        check_layers(cast(TransferModule, pl_module), self.layers)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Weights that a fit starts from are loaded after this.
        if not self._resumed:
            self.table = self._measure(trainer, pl_module, "untrained", spread=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._resumed:
            return
        if cast(TransferModule, pl_module).starts_random():
            self._log(trainer, self.table)
        else:
            self._add(trainer, self._measure(trainer, pl_module, "start", spread=False))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ends = trainer.global_step == trainer.max_steps or trainer.current_epoch + 1 == trainer.max_epochs
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not ends:
            self._add(trainer, self._measure(trainer, pl_module, f"step {trainer.global_step}", spread=False))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._add(trainer, self._measure(trainer, pl_module, "trained", spread=True))
        if trainer.is_global_zero and isinstance(trainer.logger, Tracker):
            run = trainer.logger.experiment.get_run(str(trainer.logger.run_id))
            record(trainer.logger, self.table, run.info.run_name)

    def _measure(self, trainer: L.Trainer, module: L.LightningModule, network: str, spread: bool) -> pd.DataFrame:
        """The rows of the network as it is now, in the first process; none in the others."""
        module = cast(TransferModule, module)
        data = cast(DomainPairDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        features = collect(trainer, module, data, check_layers(module, self.layers), self.samples)
        if not trainer.is_global_zero:
            return pd.DataFrame()
        return depth_table(features, self.measures, spread).assign(network=network, step=trainer.global_step)

    def _add(self, trainer: L.Trainer, rows: pd.DataFrame) -> None:
        if trainer.is_global_zero:
            self.table = pd.concat([self.table, rows], ignore_index=True)
            self._log(trainer, rows)

    def _log(self, trainer: L.Trainer, rows: pd.DataFrame) -> None:
        if trainer.is_global_zero and trainer.logger is not None:
            rows = rows.dropna(subset="value")
            names = "transfer/" + rows["measure"] + "/" + rows["layer"]
            trainer.logger.log_metrics(dict(zip(names, rows["value"], strict=True)), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        # a resumed fit has the curves from the start
        return {"table": self.table.to_dict("list")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.table, self._resumed = pd.DataFrame(state_dict["table"]), True
        ended = self.table["network"] == "trained"
        self.table.loc[ended, "network"] = "step " + self.table.loc[ended, "step"].astype(str)
        self.table.loc[ended, ["low", "high", "null", "null_high", "p"]] = math.nan


def check_measures(chosen: Sequence[str]) -> None:
    """Raises a `ConfigError` if a measure is not known, or named twice, or none is named."""
    for measure in chosen:
        if measure not in get_args(Measure):
            raise ConfigError(f"measures: no measure {measure!r}; {list_choices(measure, get_args(Measure))}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"measures: name at least one measure, and each once, not {list(chosen)}")


def record(logger: Tracker, table: pd.DataFrame, title: str) -> None:
    """Logs a run's curves over depth, with the depth as step, and the table and the figures as files.

    Args:
        logger: Of the run.
        table: Of `depth_table`, with a column `network`, in which the run's own is `trained`.
        title: Of the figures.
    """
    last = table[table["network"] == "trained"].dropna(subset="value")
    for depth, rows in last.groupby("depth"):
        names = "depth/" + rows["measure"]
        logger.log_metrics(dict(zip(names, rows["value"], strict=True)), int(str(depth)))
    tracked, run_id = logger.experiment, logger.run_id
    tracked.log_text(run_id, table.to_csv(index=False), "curve/curve.csv")
    tracked.log_figure(run_id, curve_figure(table, title), "curve/curve.png")
    tracked.log_text(run_id, curve_html(table, title), "curve/curve.html")
