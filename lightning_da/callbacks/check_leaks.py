from collections.abc import Iterable
from pathlib import Path
from typing import cast

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from lightning_da.data.base import DOMAINS, DomainPairDataModule
from lightning_da.data.splits import check_apart
from lightning_da.errors import ConfigError
from lightning_da.store import client
from lightning_da.tracking import find_fit


class CheckLeaks(L.Callback):
    """Refuses a test split with samples from the training split of an earlier stage.

    At the start of a fit it checks the runs that the fit starts from; at the start of a test, the tested run. In both
    cases it also checks the earlier stages of these runs, as far as their data are of the same kind and identify their
    samples (`DomainPairDataModule.trained_on`): speakers and sounds do.

    Raises:
        DataError: If a sample is in both training and test.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        reads = any(getattr(pl_module, role, ()) for role in ("supervised", "unlabelled"))
        if stage == "fit" and reads:
            self._check(getattr(pl_module, "starts_from", ()), trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if trainer.ckpt_path is not None:
            self._check([str(trainer.ckpt_path)], trainer)

    def _check(self, checkpoints: Iterable[str], trainer: L.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, DomainPairDataModule) or not (tested := data.tested()):
            return
        for checkpoint in checkpoints:
            check_apart(
                _learnt_by(checkpoint, type(data)),
                tested,
                f"was trained on by {checkpoint!r}",
                f"in the test split of {data.target!r}; give both runs the same seed and the same "
                "options of the splits",
            )


def _learnt_by(run: str, kind: type[DomainPairDataModule]) -> dict[str, str]:
    """Training samples of an earlier run and of the runs that it started from, as far as they still exist."""
    try:
        fit = find_fit(run)
        if fit.run_id is None:
            raise ConfigError("its run is not in this MLflow store")
        tags = client().get_run(fit.run_id).data.tags
        earlier = [part for part in tags.get("started_from", "").split(", ") if part]
        learnt = {key: name for part in earlier for key, name in _learnt_by(part, kind).items()}
        config = yaml.safe_load(cast(Path, fit.config).read_text())["data"]
        if config["class_path"].rpartition(".")[2] == kind.__name__:
            data = kind(**config["init_args"])
            for role in filter(None, tags.get("trained_on", ", ".join(DOMAINS)).split(", ")):
                for domain in data.named[role]:
                    learnt |= data.trained_on(domain)
        return learnt
    except ConfigError as error:
        rank_zero_warn(f"the training samples of {run!r} cannot be compared with the test split: {error}")
        return {}
