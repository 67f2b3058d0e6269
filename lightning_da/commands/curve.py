"""`lightning-da curve`: draws the curves of existing networks, without training."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd
from matplotlib.figure import Figure

from lightning_da.callbacks.transfer_curve import network_name, record
from lightning_da.cli import TransferCLI
from lightning_da.data.base import Roles
from lightning_da.errors import ConfigError
from lightning_da.methods import TransferModule
from lightning_da.networks.weights import read_checkpoint
from lightning_da.parser import CommandParser
from lightning_da.paths import write_whole
from lightning_da.store import client
from lightning_da.tracking import Tracker, find_fit, parameters
from lightning_da.transferability.depth import (
    DEFAULT_MEASURES,
    MEASURES,
    Features,
    check_measures,
    depth_table,
    measures_for,
)
from lightning_da.transferability.features import check_layers, collect
from lightning_da.transferability.measures import cka
from lightning_da.transferability.plots import FILES, curve_files


class _Network(NamedTuple):
    """A network and its features of the samples.

    Attributes:
        title: Name of the network in titles, and in the legend if there are two networks.
        kind: `trained`, `pretrained` or `untrained`.
        run_id: Id of the network's run, if it has one.
        baseline: Features of the same network with random weights. Empty if the network itself is untrained, or if two
            networks are compared.
        features: Features of the network.
    """

    title: str
    kind: str
    run_id: str | None
    baseline: dict[str, Features]
    features: dict[str, Features]


def run(args: Sequence[str]) -> pd.DataFrame:
    """Measures the layers of one network, or of two side by side, and draws the curves.

    Args:
        args: The arguments after `curve`.

    Returns:
        The table that is written to `curve.csv`.

    Raises:
        ConfigError: If an argument is wrong, a network or its data cannot be opened, or nothing can be measured.
    """
    parser = CommandParser(
        "lightning-da curve",
        description="Measure each layer of a network on the two domains, and draw the curves. Nothing is trained. "
        "With --ckpt_path, network and data come from a finished run. With two runs, both networks read the data of "
        "the first run, and their layers are compared. Without --ckpt_path, the network has its initial weights, for "
        "example the pretrained weights of a timm model. All options of `fit` are accepted too.",
        usage="lightning-da curve --ckpt_path RUN [RUN] [--OPTION VALUE ...]\n"
        "       lightning-da curve --config backbone/NAME.yaml --config data/NAME.yaml [--OPTION VALUE ...]",
    )
    parser.add_argument("--ckpt_path", nargs="+", metavar="RUN", help="checkpoint file, run id or run name")
    parser.add_argument(
        "--out", type=Path, default=Path("curve"), help=f"folder for {', '.join(FILES)} (default: curve)"
    )
    parser.add_argument("--samples", type=int, default=1000, help="number of samples per domain (default: 1000)")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="names of layers (default: the backbone's layers)")
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="NAME",
        default=DEFAULT_MEASURES,
        help=f"{', '.join(MEASURES)}, or import paths of your own measures (default: {' '.join(DEFAULT_MEASURES)})",
    )
    given, options = parser.parse_known_args(args)
    check_measures(given.measures)
    references = given.ckpt_path or [None]
    if len(references) > 2:
        raise ConfigError(f"ckpt_path: give one run or two, not {len(references)}")
    if any((given.out / name).is_dir() for name in FILES) or (given.out.exists() and not given.out.is_dir()):
        raise ConfigError(f"out: cannot write {', '.join(FILES)} to {given.out}; choose another folder")

    clis = [_open(reference, options) for reference in references]
    first = clis[0]
    first.datamodule.check(Roles((), ()))
    networks = [_look(cli, first, given.layers, given.samples, alone=len(clis) == 1) for cli in clis]
    domains = first.datamodule.domains
    table = _table(networks, measures_for(given.measures, domains), domains)
    if table.empty:
        raise ConfigError("no measure could be computed; see the warnings")
    title = " and ".join(network.title for network in networks)
    given.out.mkdir(parents=True, exist_ok=True)
    files = curve_files(table, title)
    for name, content in files.items():
        with write_whole(given.out / name) as part:
            if isinstance(content, str):
                part.write_text(content)
            else:
                content.savefig(part, format="png")
    _print(table)
    print(f"\nin {given.out}: {', '.join(FILES)}")
    if len(networks) == 1:
        _record(first, networks[0], table, files)
    return table


def _open(reference: str | None, options: list[str]) -> TransferCLI:
    if reference is not None:
        cli = TransferCLI("test", ["--ckpt_path", reference, *options]).build()
    else:
        cli = TransferCLI("fit", ["--config", "method/source_only.yaml", *options]).build()
    if not isinstance(cli.model, TransferModule):
        raise ConfigError(
            f"ckpt_path: {type(cli.model).__name__} combines several networks; give the run of one of them"
        )
    cli.model.fit_inputs(cli.datamodule)  # the statistics of `standardize`, also for a network with random weights
    return cli


def _look(cli: TransferCLI, on: TransferCLI, layers: list[str] | None, samples: int, alone: bool) -> _Network:
    """Passes the data of `on` through the network of `cli`, and through a random network if there is only one."""
    module, data, trainer = cast(TransferModule, cli.model), on.datamodule, cli.trainer
    if module.input_shape != tuple(data.input_shape):
        raise ConfigError(
            f"ckpt_path: the network reads samples of shape {module.input_shape}, but the data have {data.input_shape}"
        )
    trainer.precision_plugin.convert_module(module.to(trainer.strategy.root_device))
    names = check_layers(module, layers or "auto")

    def features() -> dict[str, Features]:
        return collect(trainer, module, data, names, samples)

    reference = cli.config.ckpt_path
    checkpoint = None if reference is None else read_checkpoint(reference)
    kind = network_name(module, checkpoint["global_step"] if checkpoint else 0)
    baseline = features() if alone and kind != "untrained" else {}
    if checkpoint is None:
        module.initialise()
        title = getattr(module.backbone, "name", type(module.backbone).__name__)
        return _Network(title, kind, None, baseline, features())
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        wrong = " ".join(str(error).split())[:300]
        raise ConfigError(f"ckpt_path: {reference} does not fit these data or options: {wrong}") from error
    run_id = find_fit(reference).run_id
    title = client().get_run(run_id).info.run_name if run_id else Path(reference).stem
    return _Network(title, kind, run_id, baseline, features())


def _table(networks: list[_Network], measures: Sequence[str], domains: Sequence[str]) -> pd.DataFrame:
    if len(networks) == 1:
        (network,) = networks
        parts = [depth_table(network.features, measures).assign(network=network.kind)]
        if network.baseline:
            parts.insert(0, depth_table(network.baseline, measures, spread=False).assign(network="untrained"))
        return pd.concat(parts, ignore_index=True)
    titles = [network.title for network in networks]
    if titles[0] == titles[1]:
        titles = [f"{title} ({place})" for place, title in enumerate(titles, start=1)]
    parts = [depth_table(n.features, measures).assign(network=title) for title, n in zip(titles, networks, strict=True)]
    one, other = (network.features for network in networks)
    rows = [
        {"depth": depth, "layer": layer, "measure": f"cka_{domain}", "panel": "CKA of the two networks"}
        | {"network": "both", "value": cka(getattr(one[layer], domain), getattr(other[layer], domain))}
        for depth, layer in enumerate(one, start=1)
        if layer in other
        for domain in domains
    ]
    return pd.concat([*parts, pd.DataFrame(rows)], ignore_index=True)


def _print(table: pd.DataFrame) -> None:
    for network, rows in table.groupby("network", sort=False):
        if rows["value"].isna().all():
            print(f"\n{network}: the activations are not finite, so the network has diverged")
            continue
        wide = rows.pivot_table(index=["depth", "layer"], columns="measure", values="value", sort=False)
        wide = wide.droplevel("depth").rename_axis(columns=None, index=None)
        print(f"\n{network}\n{wide.to_string(float_format='%.3f')}")


def _record(cli: TransferCLI, network: _Network, table: pd.DataFrame, files: dict[str, Figure | str]) -> None:
    """Adds the curves to the network's run if it has none yet. A network without a checkpoint gets a new run."""
    logger, config = cli.trainer.logger, cli.config
    if not isinstance(logger, Tracker):
        return
    if network.run_id is None:
        if config.ckpt_path is not None:
            return
        config.name = network.title
        logger = Tracker(config.trainer.logger.init_args.experiment_name, cli.run_name)
        logger.log_hyperparams(parameters(cli.plain(), ("data",)) | {"network": network.title})
    elif any(key.startswith("depth/") for key in client().get_run(network.run_id).data.metrics):
        return
    record(logger, table, files)
    logger.finalize()
    print(f"and in MLflow, run {client().get_run(str(logger.run_id)).info.run_name} ({logger.run_id})")
