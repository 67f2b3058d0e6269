from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_da.errors import ConfigError
from lightning_da.methods.classifier import Classifier
from lightning_da.tracking import client, find_fit


class MarginEnsemble(Classifier):
    """Several networks of earlier runs, of which, for each sample, the one with the largest margin decides.

    Source: Huang et al., CCPR 2016 (see `SpeechFFN`), who join two sizes of a network. A fit trains nothing: it joins
    the networks, and its checkpoint has all that `test` and `predict` need.

    Args:
        num_classes: Number of classes; the data module gives it.
        input_shape: Shape of one sample; the data module gives it.
        members: The runs, at least two: checkpoint files, or MLflow run ids or names. Of equal margins the earlier
            member's counts.

    Raises:
        ConfigError: When a fit begins, if there are fewer than two members, one is given twice or was not fitted by the
            command line, or it was fitted on other classes, features or splits.
    """

    unlabelled = ("target",)

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], members: tuple[str, ...] = ()) -> None:
        super().__init__(num_classes, input_shape)
        self.save_hyperparameters(logger=False)
        self.starts_from = members
        self.networks = nn.ModuleList()
        self._settings: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        if stage != "fit" or self.networks:
            return
        fits = [find_fit(run) for run in self.starts_from]
        if len({fit.checkpoint for fit in fits}) < max(2, len(fits)):
            raise ConfigError(f"members: an ensemble needs two runs or more, each once, not {list(self.starts_from)}")
        found = [torch.load(fit.checkpoint, map_location="cpu", weights_only=True) for fit in fits]
        data = self.trainer.datamodule.fingerprint()  # type: ignore[attr-defined]
        for run, fit, checkpoint in zip(self.starts_from, fits, found, strict=True):
            settings = checkpoint.get("hyper_parameters", {})
            if "_instantiator" not in settings:
                raise ConfigError(f"members: {run!r} does not say what network it is; fit it with `lightning-da fit`")
            self.check_shapes(settings, f"members: {run!r}")
            if fit.run_id is None:
                rank_zero_warn(f"what {run!r} was trained on is not known: its run is not in this MLflow store")
            elif client().get_run(fit.run_id).data.tags.get("data") != data:
                raise ConfigError(
                    f"members: {run!r} was fitted on other data, or on another split of them, and may have been "
                    "trained on what is tested here; join runs of one data configuration"
                )
        self._build([checkpoint["hyper_parameters"] for checkpoint in found])
        for network, checkpoint in zip(self.networks, found, strict=True):
            network.load_state_dict(checkpoint["state_dict"])

    def _build(self, settings: list[dict[str, Any]]) -> None:
        self._settings = settings
        for arguments in settings:
            given = {key: value for key, value in arguments.items() if key != "_instantiator"}
            self.networks.append(instantiate_module(Classifier, given))

    def _members(self) -> list[Classifier]:
        return [cast(Classifier, network) for network in self.networks]

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (B, *input_shape) to the members' features, side by side, and log-probabilities (B, num_classes)."""
        found = [network.classify(x) for network in self._members()]
        joined = join_by_margin([logits.softmax(dim=1) for _, logits in found])
        return torch.cat([features for features, _ in found], dim=1), joined.log()

    def set_domain(self, domain: str) -> None:
        for network in self._members():
            network.set_domain(domain)

    def on_fit_start(self) -> None:
        self.trainer.should_stop = True

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """There is nothing to train, and no step is taken."""

    def configure_optimizers(self) -> None:
        """There is nothing to train."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["members"] = self._settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if not self.networks:
            self._build(checkpoint["members"])


def join_by_margin(probabilities: Sequence[Tensor]) -> Tensor:
    """Class probabilities of the member whose two likeliest classes are furthest apart; of equals, the earlier one's.

    Args:
        probabilities: Of each member, shape (n, num_classes).

    Returns:
        Shape (n, num_classes).
    """
    chosen = probabilities[0]
    for other in probabilities[1:]:
        chosen = torch.where((_margin(chosen) >= _margin(other))[:, None], chosen, other)
    return chosen


def _margin(probabilities: Tensor) -> Tensor:
    best = probabilities.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
