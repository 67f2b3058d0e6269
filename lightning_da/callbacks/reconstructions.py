"""Pictures of samples and of what a decoder makes of their features."""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_da.errors import check_range
from lightning_da.methods.pictures import DrawsPictures
from lightning_da.tracking import Tracker

GREY_OR_COLOUR = (1, 3)


class Reconstructions(L.Callback):
    """Draws images of both validation splits and their reconstructions: `reconstructions/step_<number>.png`.

    Only methods that reconstruct images have such pictures. Training is not touched.

    Args:
        every_n_epochs: Epochs between two pictures; with 0 there is only that of the end.
        samples: Number of images of each domain.

    Raises:
        ConfigError: If `every_n_epochs` is negative or `samples` is less than 1.
    """

    def __init__(self, every_n_epochs: int = 1, samples: int = 10) -> None:
        check_range("every_n_epochs", every_n_epochs, 0)
        check_range("samples", samples, 1)
        self.every_n_epochs, self.samples = every_n_epochs, samples

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ends = trainer.global_step == trainer.max_steps or trainer.current_epoch + 1 == trainer.max_epochs
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not ends:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not isinstance(module, DrawsPictures) or not trainer.is_global_zero:
            return
        shape = module.input_shape
        if isinstance(trainer.logger, Tracker) and len(shape) == 3 and shape[0] in GREY_OR_COLOUR:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            figure = reconstruction_figure(
                {getattr(data, domain): _images(trainer, module, domain, self.samples) for domain in data.domains}
            )
            figure.suptitle(f"{trainer.logger.info.run_name}, step {trainer.global_step}")
            name = f"reconstructions/step_{trainer.global_step:06d}.png"
            trainer.logger.experiment.log_figure(trainer.logger.run_id, figure, name)


@torch.no_grad()
def _images(trainer: L.Trainer, module: DrawsPictures, domain: str, number: int) -> dict[str, NDArray[Any]]:
    """The first images of a fixed sample, (n, height, width, channels), and their reconstructions."""
    training = module.training
    with isolate_rng():
        x, _ = next(iter(trainer.datamodule.sample_dataloader(domain, "val", number)))  # type: ignore[attr-defined]
        module.eval()
        with trainer.precision_plugin.forward_context():
            moved = trainer.precision_plugin.convert_input(x[:number].to(module.device))
            found = module.reconstructions(moved, domain)
    module.train(training)
    return {name: images.float().movedim(1, -1).cpu().numpy() for name, images in found.items()}


def reconstruction_figure(images: dict[str, dict[str, NDArray[Any]]]) -> Figure:
    """A row of images for the samples of each domain and for each reconstruction.

    Values below the smallest and above the largest of the samples are drawn as those.

    Args:
        images: Of each domain: from a name to images (n, height, width, channels), the samples first.
    """
    rows = [(f"{domain}\n{name}", row) for domain, kinds in images.items() for name, row in kinds.items()]
    read = [next(iter(kinds.values())) for kinds in images.values()]
    low, high = min(part.min() for part in read), max(part.max() for part in read)
    figure = Figure(figsize=(2 + max(map(len, read)), 0.3 + len(rows)), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        strip = np.clip((np.concatenate(list(row), axis=1) - low) / max(high - low, 1e-12), 0, 1)
        axes.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
