"""`lightning-da validate`: measures a fit on the validation splits."""

from collections.abc import Sequence

from lightning_da.cli import TransferCLI


def run(args: Sequence[str]) -> TransferCLI:
    """Measures a fit on the validation splits.

    Args:
        args: The words behind `validate`.
    """
    return TransferCLI("validate", args).build().run()
