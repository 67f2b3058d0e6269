"""`lightning-da predict`: classifies the target."""

from collections.abc import Sequence

from lightning_da.cli import TransferCLI


def run(args: Sequence[str]) -> TransferCLI:
    """Classifies the target.

    Args:
        args: The arguments after `predict`.
    """
    return TransferCLI("predict", args).build().run()
