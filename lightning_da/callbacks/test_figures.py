"""Pictures and tables of test results."""

import copy
from typing import Any, cast

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lightning_da.callbacks.attention import ReadSentences, attention_figure, attention_table
from lightning_da.callbacks.masks import SHOWN, Drawn, mask_table, masks_figure
from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.gather import gather
from lightning_da.methods import Classifier, TransferModule
from lightning_da.methods.verification import Curves
from lightning_da.networks.memory import MemoryNetwork
from lightning_da.networks.weights import load_weights
from lightning_da.tracking import Tracker, find_fit

MATCH_RANKS = 20
"""Ranks in the drawn cumulative match curve."""


class TestFigures(L.Callback):
    """After a test, records tables and pictures of the test splits.

    `per_class.csv` has recall and precision per class, `confusion.png` the confusion matrices, and `embedding.png` a
    t-SNE of the head's input. Of a network that embeds, `verification.png` has the ROC and the cumulative match curves
    in place of the first two, and a regression has none. `attention.csv` and `attention.png` have the words that a
    memory network reads. If the fit started from an earlier run, `before_after.png` has a t-SNE of the target features
    with the earlier weights and with the final weights.

    Of a segmentation `per_class.csv` has Dice, Jaccard and sensitivity, `confusion.png` shares of pixels, `masks.png`
    has images with their true and predicted masks; there is no t-SNE.

    Args:
        samples: The largest number of samples per domain in the t-SNE pictures and in those of attention, evenly over
            the test split.
    """

    __test__ = False  # pytest would collect it because of its name

    def __init__(self, samples: int = 500) -> None:
        self.samples = samples

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._kept: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {
            domain: [] for domain in cast(Classifier, pl_module).evaluated
        }
        self._seen = dict.fromkeys(self._kept, 0)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        domain = cast(Classifier, pl_module).evaluated[dataloader_idx]
        number = len(trainer.test_dataloaders[dataloader_idx].sampler)  # type: ignore[index]  # of this process
        step = max(-(-number * trainer.world_size // self.samples), 1)  # evenly over the split, and over its domains
        y = outputs["y"]
        rows = (torch.arange(len(y), device=y.device) + self._seen[domain]) % step == 0
        self._seen[domain] += len(y)
        self._kept[domain].append((batch[0][rows], outputs["features"][rows].float(), y[rows]))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if pl_module.regresses:
            return
        if pl_module.segments:
            self._record_masks(trainer, pl_module)
            return
        counted = [pl_module.counted("test", domain) for domain in self._kept]
        if not pl_module.embeds:
            counts = [matrix.compute().cpu().numpy() for matrix in counted]
        features, labels = [], []
        for domain in self._kept:
            _, x, y = (torch.cat(parts) for parts in zip(*self._kept[domain], strict=True))
            features.append(gather(x).cpu().numpy())
            labels.append(gather(y).cpu().numpy())
        before, read = self._before(trainer, pl_module), self._read(pl_module)
        if not trainer.is_global_zero or not isinstance(trainer.logger, Tracker):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = [getattr(data, domain) for domain in self._kept]
        tracked, run_id = trainer.logger.experiment, trainer.logger.run_id
        if pl_module.embeds:
            figures = {"verification.png": verification_figure([part.curves() for part in counted], names)}
        else:
            tracked.log_text(run_id, per_class(counts, names, data.classes).to_csv(index=False), "per_class.csv")
            figures = {"confusion.png": confusion_figure(counts, names, data.classes)}
        if not all(np.isfinite(part).all() for part in features):
            rank_zero_warn("no embedding is drawn: the features have NaN or infinite values, the network has diverged")
        else:
            figures["embedding.png"] = embedding_figure(features, labels, names, data.classes)
            if before is not None:
                figures["before_after.png"] = before_after_figure([before, features[-1]], labels[-1], data.classes)
        if read and (spelling := data.spelling()):
            by_name = dict(zip(names, read, strict=True))
            tracked.log_text(run_id, attention_table(by_name, spelling).to_csv(index=False), "attention.csv")
            figures["attention.png"] = attention_figure(by_name, spelling)
        _log(trainer.logger, figures)

    @torch.no_grad()
    def _record_masks(self, trainer: L.Trainer, module: Classifier) -> None:
        """Records the scores of each class, the confusion matrices of pixels, and some masks."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        scores, drawn = {}, {}
        for domain, parts in self._kept.items():
            name = getattr(data, domain)
            scores[name] = module.counted("test", domain).compute()
            images, _, y = (torch.cat(part) for part in zip(*parts, strict=True))
            rows = torch.linspace(0, len(y) - 1, min(SHOWN, len(y))).long()
            module.set_domain(domain)
            with trainer.precision_plugin.forward_context():
                predicted = module(images[rows]).argmax(dim=1)
            drawn[name] = Drawn(*(part.cpu().numpy() for part in (images[rows].float(), y[rows], predicted)))
        module.set_domain("target")
        if not trainer.is_global_zero or not isinstance(trainer.logger, Tracker):
            return
        tracked, run_id = trainer.logger.experiment, trainer.logger.run_id
        tracked.log_text(run_id, mask_table(scores, data.classes).to_csv(index=False), "per_class.csv")
        pixels = [found["pixels"].cpu().numpy() for found in scores.values()]
        figures = {
            "confusion.png": confusion_figure(pixels, list(scores), data.classes),
            "masks.png": masks_figure(drawn, data.classes),
        }
        _log(trainer.logger, figures)

    @torch.no_grad()
    def _read(self, module: Classifier) -> list[ReadSentences]:
        """What a memory network reads in each domain; nothing of another network."""
        network = getattr(module, "backbone", None)
        if not isinstance(network, MemoryNetwork):
            return []
        sentences = [torch.cat([x for x, _, _ in parts]) for parts in self._kept.values()]
        weights = [network.attention(x).mean(dim=1).double() for x in sentences]
        parts = zip(sentences, weights, strict=True)
        return [ReadSentences(*(gather(part).cpu().numpy() for part in pair)) for pair in parts]

    @torch.no_grad()
    def _before(self, trainer: L.Trainer, module: Classifier) -> NDArray[Any] | None:
        """Features of the target with the earlier run's weights; None if the fit did not start from a whole network."""
        start = ""
        if trainer.is_global_zero and isinstance(trainer.logger, Tracker):
            run = trainer.logger.experiment.get_run(str(trainer.logger.run_id))
            start = run.data.tags.get("started_from", "")
        start = trainer.strategy.broadcast(start)
        number = sum(len(y) for _, _, y in self._kept["target"])
        if not start or not isinstance(module, TransferModule) or "bottleneck." not in module.initialised or number < 4:
            return None
        trained = copy.deepcopy(module.state_dict())
        try:
            load_weights(module, find_fit(start).checkpoint, module.initialised)
            module.set_domain("target")
            with trainer.precision_plugin.forward_context():
                before = torch.cat([module.features(x).float() for x, _, _ in self._kept["target"]])
        except ConfigError:  # the earlier run is gone
            return None
        finally:
            module.load_state_dict(trained)
        return gather(before).cpu().numpy()


def _log(tracker: Tracker, figures: dict[str, Figure]) -> None:
    """Logs figures by their files, with the name of the run above each."""
    tracked, run_id = tracker.experiment, tracker.run_id
    name = tracked.get_run(run_id).info.run_name
    for path, figure in figures.items():
        figure.suptitle(name)
        tracked.log_figure(run_id, figure, path)


def per_class(counts: list[NDArray[Any]], names: list[str], classes: list[str]) -> pd.DataFrame:
    """One row per domain and class: samples, recall and precision, which are empty for a division by zero.

    Args:
        counts: Confusion matrix of each domain, shape (classes, classes), rows are true classes.
        names: Names of the domains.
        classes: Names of the classes.
    """
    parts = []
    for matrix, name in zip(counts, names, strict=True):
        true, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
        with np.errstate(invalid="ignore"):
            columns = {"samples": true, "recall": right / true, "precision": right / predicted}
        if true.any():
            parts.append(pd.DataFrame({"domain": name, "class": classes} | columns))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["domain", "class", "samples", "recall", "precision"])


def confusion_figure(counts: list[NDArray[Any]], names: list[str], classes: list[str]) -> Figure:
    """Confusion matrices side by side, in per cent of each true class.

    Args:
        counts: Confusion matrix of each domain, shape (classes, classes), rows are true classes.
        names: Names of the domains.
        classes: Names of the classes.
    """
    size = 0.45 * len(classes)
    figure = Figure(figsize=(len(counts) * (size + 2), size + 1.6), layout="constrained")
    for axes, matrix, name in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, names, strict=True):
        rows = matrix.sum(axis=1, keepdims=True)
        shares = 100 * matrix / np.maximum(rows, 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        known = matrix.sum()
        axes.set_title(f"{name}: accuracy {matrix.trace() / known:.3f}" if known else f"{name}: no labels")
        axes.set_xticks(range(len(classes)), classes, rotation=0 if max(map(len, classes)) < 3 else 90)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="predicted", ylabel="true")
        if len(classes) <= 20:
            for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
                colour = "white" if shares[row, column] > 50 else "black"
                axes.text(
                    column,
                    row,
                    f"{shares[row, column]:.0f}",
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize=8,
                )
    return figure


def verification_figure(curves: list[Curves | None], names: list[str]) -> Figure:
    """ROC and cumulative match curves of both domains.

    Args:
        curves: Of each domain; None if there is nothing to verify.
        names: Names of the domains.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    roc, match = figure.subplots(1, 2)
    for found, name in zip(curves, names, strict=True):
        if found is not None:
            area = np.trapezoid(found.true_positive, found.false_positive)
            roc.plot(found.false_positive, found.true_positive, label=f"{name}: area {area:.3f}")
            ranks = found.cmc[:MATCH_RANKS]
            match.plot(range(1, len(ranks) + 1), ranks, marker=".", label=f"{name}: rank 1 {ranks[0]:.3f}")
    roc.plot([0, 1], [0, 1], color="lightgrey", linewidth=0.8)
    roc.set(title="verification", xlabel="false positive rate", ylabel="true positive rate")
    match.xaxis.get_major_locator().set_params(integer=True)
    match.set(title="cumulative match", xlabel="rank", ylabel="share of samples with a match", ylim=(0, 1.02))
    for axes in (roc, match):
        axes.legend(loc="lower right", fontsize=8)
    return figure


def before_after_figure(features: list[NDArray[Any]], labels: NDArray[Any], classes: list[str]) -> Figure:
    """t-SNE of the target's features before and after a fit, coloured by class.

    Args:
        features: Features before and after the fit, each of shape (n, width).
        labels: Labels, shape (n,), `UNKNOWN` where the class is unknown.
        classes: Names of the classes.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, part, title in zip(figure.subplots(1, 2), features, ("before", "after"), strict=True):
        places = _places(part)
        _scatter_classes(axes, places, labels, classes, "o")
        axes.set(xticks=[], yticks=[], title=title)
    _add_legend(axes, classes)
    return figure


def embedding_figure(
    features: list[NDArray[Any]], labels: list[NDArray[Any]], names: list[str], classes: list[str]
) -> Figure:
    """t-SNE of the features, coloured by class and, if there are two domains, by domain.

    Args:
        features: Features of each domain, shape (n, width).
        labels: Labels of each domain, shape (n,), `UNKNOWN` where the class is unknown.
        names: Names of the domains.
        classes: Names of the classes.
    """
    both, label = np.concatenate(features), np.concatenate(labels)
    domain = np.repeat(np.arange(len(features)), [len(part) for part in features])
    places = _places(both)
    figure = Figure(figsize=(6 * len(names), 5.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for part, (name, marker) in enumerate(zip(names, "ox", strict=False)):
        here = domain == part
        _scatter_classes(panels[0], places[here], label[here], classes, marker)
        for axes in panels[1:]:
            axes.scatter(*places[here].T, s=14, marker=marker, linewidths=0.8, label=name)
    _add_legend(panels[0], classes)
    panels[0].set_title("by class" + (f" ({names[0]} o, {names[1]} x)" if len(names) > 1 else ""))
    for axes in panels[1:]:
        axes.set_title("by domain")
        axes.legend(fontsize=8)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
    return figure


def _places(features: NDArray[Any]) -> NDArray[Any]:
    from sklearn.manifold import TSNE  # noqa: PLC0415  # slow to import, and not needed for a fit

    places: NDArray[Any] = TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0).fit_transform(
        features
    )
    return places


def _colours(classes: list[str]) -> Colormap:
    return colormaps["tab10" if len(classes) <= 10 else "nipy_spectral"].resampled(max(len(classes), 10))


def _scatter_classes(axes: Axes, places: NDArray[Any], labels: NDArray[Any], classes: list[str], marker: str) -> None:
    known = labels != UNKNOWN
    x, y = places.T
    axes.scatter(x[known], y[known], color=_colours(classes)(labels[known]), s=14, marker=marker, linewidths=0.8)
    axes.scatter(x[~known], y[~known], color="lightgrey", s=14, marker=marker, linewidths=0.8)


def _add_legend(axes: Axes, classes: list[str]) -> None:
    if len(classes) <= 20:
        handles = [axes.scatter([], [], color=_colours(classes)(i), label=name) for i, name in enumerate(classes)]
        axes.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
