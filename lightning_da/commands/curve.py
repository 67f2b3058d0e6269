"""`lightning-da curve`: the curves of networks that are there, without training."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pandas as pd
import torch
from matplotlib.figure import Figure

from lightning_da.callbacks.transfer_curve import record
from lightning_da.cli import TransferCLI
from lightning_da.data.base import DOMAINS, Roles
from lightning_da.errors import ConfigError
from lightning_da.paths import write_whole
from lightning_da.tracking import Tracker, client, find_fit, parameters
from lightning_da.transferability.depth import DEFAULT_MEASURES, Features, Measure, check_measures, depth_table
from lightning_da.transferability.features import check_layers, collect
from lightning_da.transferability.measures import cka
from lightning_da.transferability.plots import FILES, curve_files


class _Network(NamedTuple):
    """A network with what it makes of the sample.

    Attributes:
        name: In legends.
        run_id: Its run, if it has one.
        untrained: Features of the same network with random weights, where it stands alone.
        features: Its own.
    """

    name: str
    run_id: str | None
    untrained: dict[str, Features]
    features: dict[str, Features]


def run(args: Sequence[str]) -> pd.DataFrame:
    """Measures the layers of one network, or of two side by side, and draws the curves.

    Args:
        args: The words behind `curve`.

    Returns:
        The table that is written as `curve.csv`.
    """
    parser = argparse.ArgumentParser(
        "lightning-da curve",
        description="Measure what each layer of a network says of the two domains, and draw it; nothing is trained. "
        "With --ckpt_path the network and the data are those of a finished run; of two, both networks see the data of "
        "the first, and their layers are compared. Without, it is the network of the configuration as a fit of it "
        "begins: a timm model with its pretrained weights, say. Further options are those of `fit`.",
        usage="lightning-da curve --ckpt_path RUN [RUN] [--OPTION VALUE ...]\n"
        "       lightning-da curve --config conf/backbone/NAME.yaml --config conf/data/NAME.yaml [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", nargs="+", metavar="RUN", help="checkpoint file, or id or name of a run")
    parser.add_argument(
        "--out", type=Path, default=Path("curve"), help=f"folder for {', '.join(FILES)} (default: curve)"
    )
    parser.add_argument("--samples", type=int, default=1000, help="samples of each domain (default: 1000)")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="layers, by name (default: those of the backbone)")
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="NAME",
        default=DEFAULT_MEASURES,
        help=f"of {', '.join(get_args(Measure))} (default: {' '.join(DEFAULT_MEASURES)})",
    )
    given, options = parser.parse_known_args(args)
    check_measures(given.measures)
    references = given.ckpt_path or [None]
    if len(references) > 2:
        raise ConfigError(f"ckpt_path: one network or two are drawn, not {len(references)}")
    if any((given.out / name).is_dir() for name in FILES) or (given.out.exists() and not given.out.is_dir()):
        raise ConfigError(f"out: {given.out} is not a folder to write {', '.join(FILES)} into")

    first = _open(references[0], options)
    first.datamodule.check(Roles((), ()))
    clis = [first, *(_open(reference, options) for reference in references[1:])]
    networks = [_look(cli, first, given.layers, given.samples, baseline=len(clis) == 1) for cli in clis]
    table = _table(networks, given.measures)
    if table.empty:
        raise ConfigError("there is nothing to measure; see the warnings")
    title = " and ".join(network.name for network in networks)
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
    if len(networks) == 1 and isinstance(first.trainer.logger, Tracker):
        _record(first, networks[0], table, files)
    return table


def _open(reference: str | None, options: list[str]) -> TransferCLI:
    if reference is not None:
        return TransferCLI("test", ["--ckpt_path", reference, *options]).build()
    return TransferCLI("fit", ["--config", "method/source_only.yaml", *options]).build()


def _look(cli: Any, on: Any, layers: list[str] | None, samples: int, baseline: bool) -> _Network:
    """Passes the data of `on` through the network of `cli`, for a baseline before its weights are loaded as well."""
    module, data, trainer = cli.model, on.datamodule, cli.trainer
    if module.input_shape != tuple(data.input_shape):
        raise ConfigError(f"ckpt_path: a network for samples {module.input_shape} cannot see {data.input_shape}")
    module = trainer.precision_plugin.convert_module(module.to(trainer.strategy.root_device))
    names = check_layers(module, layers or "auto")
    untrained = collect(trainer, module, data, names, samples) if baseline else {}
    reference = cli.config.ckpt_path
    if reference is None:
        module.initialise()
        name, run_id = getattr(module.backbone, "name", type(module.backbone).__name__), None
    else:
        try:
            module.load_state_dict(torch.load(reference, map_location="cpu", weights_only=True)["state_dict"])
        except RuntimeError as error:
            wrong = " ".join(str(error).split())[:300]
            raise ConfigError(f"ckpt_path: {reference} does not fit these data or options: {wrong}") from error
        run_id = find_fit(reference).run_id
        name = client().get_run(run_id).info.run_name if run_id else Path(reference).stem
    return _Network(name, run_id, untrained, collect(trainer, module, data, names, samples))


def _table(networks: list[_Network], measures: Sequence[Measure]) -> pd.DataFrame:
    if len(networks) == 1:
        untrained = depth_table(networks[0].untrained, measures, spread=False).assign(network="untrained")
        trained = depth_table(networks[0].features, measures).assign(network="trained")
        return pd.concat([untrained, trained], ignore_index=True)
    names = [network.name for network in networks]
    if names[0] == names[1]:
        names = [f"{name} ({place})" for place, name in enumerate(names, start=1)]
    parts = [depth_table(n.features, measures).assign(network=name) for name, n in zip(names, networks, strict=True)]
    one, other = (network.features for network in networks)
    rows = [
        {"depth": depth, "layer": layer, "measure": f"cka_{domain}", "network": "both"}
        | {"value": cka(getattr(one[layer], domain), getattr(other[layer], domain))}
        for depth, layer in enumerate(one, start=1)
        if layer in other
        for domain in DOMAINS
    ]
    return pd.concat([*parts, pd.DataFrame(rows)], ignore_index=True)


def _print(table: pd.DataFrame) -> None:
    for network, rows in table.groupby("network", sort=False):
        if rows["value"].isna().all():
            print(f"\n{network}: its activations are not finite, the network has diverged")
            continue
        wide = rows.pivot_table(index=["depth", "layer"], columns="measure", values="value", sort=False)
        wide = wide.droplevel("depth").rename_axis(columns=None, index=None)
        print(f"\n{network}\n{wide.to_string(float_format='%.3f')}")


def _record(cli: Any, network: _Network, table: pd.DataFrame, files: dict[str, Figure | str]) -> None:
    """Adds the curves to the network's run, unless it has some; a network without a run gets one."""
    logger, config = cli.trainer.logger, cli.config
    if network.run_id is None:
        if config.ckpt_path is not None:
            return
        config.name = network.name
        logger = Tracker(config.trainer.logger.init_args.experiment_name, cli.run_name)
        logger.log_hyperparams(parameters(cli.plain(), ("data",)) | {"network": network.name})
    elif any(key.startswith("depth/") for key in client().get_run(network.run_id).data.metrics):
        return
    record(logger, table, files)
    logger.finalize()
    print(f"and in MLflow, run {client().get_run(logger.run_id).info.run_name} ({logger.run_id})")
