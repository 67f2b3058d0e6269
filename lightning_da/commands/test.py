"""`lightning-da test`: evaluates a fit on the test splits."""

from collections.abc import Sequence

from lightning_da.cli import TransferCLI


def run(args: Sequence[str]) -> TransferCLI:
    """Evaluates a fit on the test splits.

    Args:
        args: The arguments after `test`.
    """
    return TransferCLI("test", args).build().run()
