"""`lightning-da fit`: trains a method, and first the method that it starts from."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_only

from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError
from lightning_da.tracking import chosen_checkpoint


def run(args: Sequence[str]) -> TransferCLI:
    """Trains a method.

    Args:
        args: The arguments after `fit`.
    """
    return fit(TransferCLI("fit", args))


def fit(cli: TransferCLI) -> TransferCLI:
    """Runs a parsed fit, after its first stage if it has one."""
    before, start = cli.first_stage(), None
    if before is not None:
        rank_zero_only(print)(f"first stage: {cli.config.after}, the start of {cli.config.name}", flush=True)
        start = chosen_checkpoint(fit(TransferCLI("fit", before)).trainer)
        if not start:
            raise ConfigError(
                f"after: {cli.config.after} saved no checkpoint to start from; set --trainer.enable_checkpointing true"
            )
    return cli.build(start).run()
