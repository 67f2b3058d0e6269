"""`lightning-da ensemble`: combines the networks of earlier runs."""

from collections.abc import Sequence
from typing import Any

from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError
from lightning_da.grids.ensembles import join
from lightning_da.parser import CommandParser
from lightning_da.store import client
from lightning_da.tracking import Tracker, find_fit


def run(args: Sequence[str]) -> Any:
    """Combines runs into an ensemble, tests it, and records it as a run for `test` and `predict`.

    Args:
        args: The arguments after `ensemble`.

    Returns:
        The trainer of the ensemble.
    """
    parser = CommandParser(
        "lightning-da ensemble",
        description="Combine the networks of earlier runs: the network with the largest margin classifies each sample; "
        "in a regression the answer is the mean. The data come from the first run. All options of `fit` are accepted "
        "too.",
        usage="lightning-da ensemble RUN RUN [RUN ...] [--OPTION VALUE ...]",
    )
    parser.add_argument("members", nargs="+", metavar="RUN", help="checkpoint file, run id or run name")
    given, options = parser.parse_known_args(args)
    fits = [find_fit(member) for member in given.members]
    first = fits[0]
    if first.config is None:
        raise ConfigError(
            f"members: the run of {given.members[0]!r} is not in this MLflow store; start the list with another run"
        )
    config = TransferCLI("fit", ["--config", str(first.config), "--name", "margin_ensemble", *options]).plain()
    config |= {"after": None, "ckpt_path": None}
    if config["trainer"]["logger"]:
        config["trainer"]["logger"]["init_args"] |= {"run_name": None, "run_id": None, "tags": None}
    trainer = join(given.members, fits, config)
    if isinstance(trainer.logger, Tracker):
        run_of_it = client().get_run(str(trainer.logger.run_id))
        for domain in ("source", "target"):
            for name in ("acc", "rmse"):
                if (score := run_of_it.data.metrics.get(f"test/{domain}/{name}")) is not None:
                    print(f"test/{domain}/{name} {score:.3f}")
        print(f"run {run_of_it.info.run_name} ({run_of_it.info.run_id})")
    return trainer
