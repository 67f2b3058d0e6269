"""`lightning-da test`: measures a fit on the test splits."""

from collections.abc import Sequence

from lightning_da.cli import TransferCLI


def run(args: Sequence[str]) -> TransferCLI:
    """Measures a fit on the test splits.

    Args:
        args: The words behind `test`.
    """
    return TransferCLI("test", args).build().run()
