"""How masks are predicted: a table of classes, and a picture."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from lightning_da.data.base import UNKNOWN
from lightning_da.methods.masks import SCORES

SHOWN = 4
"""Images of each domain in the picture."""


class Drawn(NamedTuple):
    """Some images of a domain.

    Attributes:
        images: Shape (n, channels, height, width).
        true: True masks, shape (n, height, width), `UNKNOWN` where the class is not known.
        predicted: Predicted masks, shape (n, height, width).
    """

    images: NDArray[Any]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]


def mask_table(scores: dict[str, dict[str, Tensor]], classes: list[str]) -> pd.DataFrame:
    """One row per domain and class: images in which it occurs, and the means of its scores over images.

    Args:
        scores: Of each domain, by its name, as `MaskScores.compute` gives them.
        classes: Names of the classes.
    """
    parts = [
        pd.DataFrame(
            {"domain": name, "class": classes, "images": found["images"].cpu()}
            | {score: found[score].cpu() for score in SCORES}
        )
        for name, found in scores.items()
        if found["images"].any()
    ]
    return pd.concat(parts) if parts else pd.DataFrame(columns=["domain", "class", "images", *SCORES])


def masks_figure(drawn: dict[str, Drawn], classes: list[str]) -> Figure:
    """Images, true masks and predicted masks side by side; what has no class is white.

    Args:
        drawn: Of each domain, by its name.
        classes: Names of the classes.
    """
    rows = max(len(part.images) for part in drawn.values())
    figure = Figure(figsize=(4.2 * len(drawn) + 1.4, 1.35 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, 3 * len(drawn), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    colours = colormaps["viridis"].resampled(len(classes))
    for place, (name, part) in enumerate(drawn.items()):
        for row, (image, *masks) in enumerate(zip(*part, strict=True)):
            first, *others = panels[row, 3 * place : 3 * place + 3]
            low, high = image.min(), image.max()
            pixels = np.moveaxis((image - low) / max(high - low, 1e-12), 0, -1)
            first.imshow(pixels if len(image) == 3 else pixels.mean(axis=-1), cmap="gray")
            for axes, mask in zip(others, masks, strict=True):
                shown = np.ma.masked_equal(mask, UNKNOWN)
                axes.imshow(shown, cmap=colours, vmin=0, vmax=len(classes) - 1, interpolation="nearest")
        for axes, title in zip(panels[0, 3 * place :], (name, "true", "predicted"), strict=False):
            axes.set_title(title, fontsize=9)
    handles = [Patch(color=colours(label), label=name) for label, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    return figure
