"""`lightning-da fit`: trains a method, and first the method that it starts from."""

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_only

from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError
from lightning_da.tracking import Tracker, chosen_checkpoint


def run(args: Sequence[str]) -> TransferCLI:
    """Trains a method.

    Args:
        args: The arguments after `fit`.
    """
    cli = fit(TransferCLI("fit", args))
    logger = cli.trainer.logger
    if isinstance(logger, Tracker) and chosen_checkpoint(cli.trainer):
        said = f"run {logger.run_name} is finished; to test it: lightning-da test --ckpt_path {logger.run_id}"
        rank_zero_only(print)(said, flush=True)
    return cli


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
