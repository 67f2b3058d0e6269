"""Transferability curves: what the layers of a network say of two domains, over depth and over training."""

from typing import Any, Literal, cast

import lightning as L
import pandas as pd
from matplotlib.figure import Figure

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import ConfigError
from lightning_da.methods import TransferModule
from lightning_da.tracking import Tracker
from lightning_da.transferability.depth import DEFAULT_MEASURES, Measure, check_measures, depth_table
from lightning_da.transferability.features import check_layers, collect
from lightning_da.transferability.plots import curve_files


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
        ConfigError: If `every_n_epochs` is negative, a measure is not known or named twice, or, as a fit begins, if
            `samples` are too few or the network has no such layer.
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        samples: int = 1000,
        layers: Literal["auto"] | list[str] = "auto",
        measures: tuple[Measure, ...] = DEFAULT_MEASURES,
    ) -> None:
        check_measures(measures)
        if every_n_epochs < 0:
            raise ConfigError(f"every_n_epochs: {every_n_epochs} is less than 0")
        self.every_n_epochs, self.samples, self.layers, self.measures = every_n_epochs, samples, layers, measures
        self.table = pd.DataFrame()
        """Of `depth_table`, with the columns `network` and `step`."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, TransferModule):
            raise ConfigError(
                f"TransferCurve reads the layers of one network, which {type(pl_module).__name__} is not; leave it out "
                "of trainer.callbacks"
            )
        if not isinstance(trainer.datamodule, DomainPairDataModule):  # type: ignore[attr-defined]
            raise ConfigError("TransferCurve reads the two domains from a DomainPairDataModule; fit with `datamodule=`")
        check_layers(pl_module, self.layers)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Weights that a fit starts from are loaded after this.
        if trainer.ckpt_path is None:
            self.table = self._measure(trainer, pl_module, "untrained", spread=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        if cast(TransferModule, pl_module).starts_random():
            self._log(trainer, self.table)
        else:
            self._add(trainer, self._measure(trainer, pl_module, "start", spread=False))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ends = trainer.global_step == trainer.max_steps or trainer.current_epoch + 1 == trainer.max_epochs
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not ends:
            self._add(trainer, self._measure(trainer, pl_module, f"step {trainer.global_step}", spread=False))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._add(trainer, self._measure(trainer, pl_module, "trained", spread=True))
        if trainer.is_global_zero and isinstance(trainer.logger, Tracker) and not self.table.empty:
            run = trainer.logger.experiment.get_run(str(trainer.logger.run_id))
            record(trainer.logger, self.table, curve_files(self.table, run.info.run_name))

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
        self.table = pd.DataFrame(state_dict["table"])


def record(logger: Tracker, table: pd.DataFrame, files: dict[str, Figure | str]) -> None:
    """Logs a run's curves over depth, with the depth as step, and their files.

    Args:
        logger: Of the run.
        table: Of `depth_table`, with a column `network`, in which the run's own is `trained`.
        files: Of `curve_files`.
    """
    last = table[table["network"] == "trained"].dropna(subset="value")
    for depth, rows in last.groupby("depth"):
        names = "depth/" + rows["measure"]
        logger.log_metrics(dict(zip(names, rows["value"], strict=True)), int(str(depth)))
    for name, content in files.items():
        log = logger.experiment.log_text if isinstance(content, str) else logger.experiment.log_figure
        log(logger.run_id, content, f"curve/{name}")
