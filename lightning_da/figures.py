"""Pictures of a tested network: confusion matrices and the embedding that the head reads."""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from lightning_da.data.base import DOMAINS, UNKNOWN
from lightning_da.gather import gather
from lightning_da.methods import Classifier
from lightning_da.tracking import Tracker


class TestFigures(L.Callback):
    """After a test, records `confusion.png` and `embedding.png` (t-SNE of the features that the head reads).

    Args:
        samples: How many samples of each domain the embedding shows.
    """

    __test__ = False  # no test class, whatever its name makes pytest believe

    def __init__(self, samples: int = 500) -> None:
        self.samples = samples

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {domain: [] for domain in DOMAINS}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        kept = self._kept[DOMAINS[dataloader_idx]]
        missing = -(-self.samples // trainer.world_size) - sum(len(y) for _, y in kept)
        if missing > 0:
            kept.append((outputs["features"][:missing].float(), outputs["y"][:missing]))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        counts = [pl_module.confusion("test", domain).compute().cpu().numpy() for domain in DOMAINS]
        features, labels = [], []
        for domain in DOMAINS:
            features.append(gather(torch.cat([x for x, _ in self._kept[domain]])).cpu().numpy())
            labels.append(gather(torch.cat([y for _, y in self._kept[domain]])).cpu().numpy())
        if not trainer.is_global_zero or not isinstance(trainer.logger, Tracker):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = [data.source, data.target]
        tracked, run_id = trainer.logger.experiment, trainer.logger.run_id
        figures = {"confusion.png": confusion_figure(counts, names, data.classes)}
        if all(np.isfinite(part).all() for part in features):
            figures["embedding.png"] = embedding_figure(features, labels, names, data.classes)
        else:
            rank_zero_warn("no embedding is drawn: the features hold NaN or infinite values, the network has diverged")
        for path, figure in figures.items():
            figure.suptitle(tracked.get_run(run_id).info.run_name)
            tracked.log_figure(run_id, figure, path)


def confusion_figure(counts: list[NDArray[Any]], names: list[str], classes: list[str]) -> Figure:
    """Confusion matrices side by side, each row a true class in per cent.

    Args:
        counts: A matrix (classes, classes) a domain.
        names: Names of the domains.
        classes: Names of the classes.
    """
    size = 0.45 * len(classes)
    figure = Figure(figsize=(2 * (size + 2), size + 1.6), layout="constrained")
    for axes, matrix, name in zip(figure.subplots(1, len(counts)), counts, names, strict=True):
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


def embedding_figure(
    features: list[NDArray[Any]], labels: list[NDArray[Any]], names: list[str], classes: list[str]
) -> Figure:
    """t-SNE of both domains' features, coloured by class and by domain.

    Args:
        features: A matrix (n, width) a domain.
        labels: Labels (n,) a domain, `UNKNOWN` where there is none.
        names: Names of the domains.
        classes: Names of the classes.
    """
    both, label = np.concatenate(features), np.concatenate(labels)
    domain = np.repeat(np.arange(len(features)), [len(part) for part in features])
    places = TSNE(perplexity=min(30, (len(both) - 1) / 3), init="pca", random_state=0).fit_transform(both)
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    by_class, by_domain = figure.subplots(1, 2)
    colours = colormaps["tab10" if len(classes) <= 10 else "nipy_spectral"].resampled(max(len(classes), 10))
    for part, marker in enumerate("ox"):
        known = (domain == part) & (label != UNKNOWN)
        by_class.scatter(*places[known].T, c=colours(label[known]), s=14, marker=marker, linewidths=0.8)
        unknown = (domain == part) & (label == UNKNOWN)
        by_class.scatter(*places[unknown].T, c="lightgrey", s=14, marker=marker, linewidths=0.8)
        here = domain == part
        by_domain.scatter(*places[here].T, s=14, marker=marker, linewidths=0.8, label=names[part])
    if len(classes) <= 20:
        handles = [by_class.scatter([], [], color=colours(i), label=name) for i, name in enumerate(classes)]
        by_class.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    by_class.set_title(f"by class ({names[0]} o, {names[1]} x)")
    by_domain.set_title("by domain")
    by_domain.legend(fontsize=8)
    for axes in (by_class, by_domain):
        axes.set(xticks=[], yticks=[])
    return figure
