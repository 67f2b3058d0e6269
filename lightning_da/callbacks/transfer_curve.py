"""Transferability curves: what the layers of a network say of two domains, over depth and over training."""

from typing import Any, Literal, cast

import lightning as L
import pandas as pd
from matplotlib.figure import Figure

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import ConfigError
from lightning_da.methods import TransferModule
from lightning_da.tracking import Tracker
from lightning_da.transferability.depth import DEFAULT_MEASURES, check_measures, depth_table, measures_for
from lightning_da.transferability.features import check_layers, collect
from lightning_da.transferability.plots import curve_files


def network_name(module: TransferModule, steps: int) -> str:
    """Names a network in tables and legends.

    Args:
        module: The network.
        steps: The training steps that it has taken.

    Returns:
        `trained`; without a step `untrained` if the weights are random, else `pretrained`.
    """
    if steps > 0:
        return "trained"
    return "untrained" if module.starts_random() else "pretrained"


class TransferCurve(L.Callback):
    """Measures the layers of the network on both validation splits in the course of training, and draws the curves.

    At the start, at chosen epochs and at the end it logs `transfer/<measure>/<layer>`. At the end it logs
    `depth/<measure>` with the depth as step, from 1, and the files `curve/curve.csv`, `curve.png` and `curve.html`. The
    same network with random weights is drawn for comparison. Training is not touched: the weights are those of a fit
    without curves.

    Some measures, `probe_target` for example, read the labels of the target's validation split. Nothing is trained or
    chosen with these labels. If there is one domain, the measures of two domains are left out.

    Args:
        every_n_epochs: Epochs between two points of the curves over training; with 0 there are only start and end.
        samples: The largest number of samples of each domain.
        layers: Names of the backbone's submodules, `bottleneck` and `head`; `auto` takes the backbone's `layers` and
            those two.
        measures: Names of measures (`lightning_da.transferability.depth.MEASURES`), or import paths of your own
            `Measure` objects, for example `my_module.energy`.

    Raises:
        ConfigError: If `every_n_epochs` is negative, or a measure is not known or named twice. As a fit begins: if
            `samples` are too few or the network has no such layer.
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        samples: int = 1000,
        layers: Literal["auto"] | list[str] = "auto",
        measures: tuple[str, ...] = DEFAULT_MEASURES,
    ) -> None:
        check_measures(measures)
        if every_n_epochs < 0:
            raise ConfigError(f"every_n_epochs: {every_n_epochs} is less than 0")
        self.every_n_epochs, self.samples, self.layers, self.measures = every_n_epochs, samples, layers, measures
        self.table = pd.DataFrame()
        """Rows of `depth_table`, with the columns `network` and `step`."""

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
        # The weights that a fit starts from are loaded after this.
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
        name = network_name(cast(TransferModule, pl_module), trainer.global_step)
        if not self.table.empty:
            # These weights may have a curve without a band: of the last epoch, or of a start without any step.
            same = self.table["step"] == trainer.global_step
            same &= self.table["network"].ne("untrained") | (name == "untrained")
            self.table = self.table[~same]
        self._add(trainer, self._measure(trainer, pl_module, name, spread=True))
        if trainer.is_global_zero and isinstance(trainer.logger, Tracker) and not self.table.empty:
            record(trainer.logger, self.table, curve_files(self.table, trainer.logger.info.run_name))

    def _measure(self, trainer: L.Trainer, module: L.LightningModule, network: str, spread: bool) -> pd.DataFrame:
        """The rows of the network with its present weights, in the first process; none in the others."""
        module = cast(TransferModule, module)
        data = cast(DomainPairDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        features = collect(trainer, module, data, check_layers(module, self.layers), self.samples)
        if not trainer.is_global_zero:
            return pd.DataFrame()
        measures = measures_for(self.measures, data.domains)
        return depth_table(features, measures, spread).assign(network=network, step=trainer.global_step)

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
        # A resumed fit draws the earlier curves too.
        return {"table": self.table.to_dict("list")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.table = pd.DataFrame(state_dict["table"])


def record(logger: Tracker, table: pd.DataFrame, files: dict[str, Figure | str]) -> None:
    """Logs a run's curves over depth, with the depth as step, and their files.

    Args:
        logger: Logger of the run.
        table: Rows of `depth_table`, with a column `network`. The run's own network is the last.
        files: As from `curve_files`.
    """
    own = table[table["network"] == table["network"].iloc[-1]].dropna(subset="value")
    for depth, rows in own.groupby("depth"):
        names = "depth/" + rows["measure"]
        logger.log_metrics(dict(zip(names, rows["value"], strict=True)), int(str(depth)))
    for name, content in files.items():
        log = logger.experiment.log_text if isinstance(content, str) else logger.experiment.log_figure
        log(logger.run_id, content, f"curve/{name}")
