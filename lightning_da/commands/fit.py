"""`lightning-da fit`: trains a method, after the method that it starts from."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_only

from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError
from lightning_da.tracking import chosen_checkpoint


def run(args: Sequence[str]) -> TransferCLI:
    """Trains a method.

    Args:
        args: The words behind `fit`.
    """
    return fit(TransferCLI("fit", args))


def fit(cli: TransferCLI) -> TransferCLI:
    """Runs a fit that is parsed, with its first stage."""
    before, start = cli.first_stage(), None
    if before is not None:
        rank_zero_only(print)(f"first {cli.config.after}, from which {cli.config.name} starts", flush=True)
        start = chosen_checkpoint(fit(TransferCLI("fit", before)).trainer)
        if not start:
            raise ConfigError(
                f"after: {cli.config.after} leaves no checkpoint to start from; set enable_checkpointing to true"
            )
    return cli.build(start).run()
