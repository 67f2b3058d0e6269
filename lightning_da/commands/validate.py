"""`lightning-da validate`: evaluates a fit on the validation splits."""

from collections.abc import Sequence

from lightning_da.cli import TransferCLI
from lightning_da.commands.test import evaluate


def run(args: Sequence[str]) -> TransferCLI:
    """Evaluates a fit on the validation splits.

    Args:
        args: The arguments after `validate`.
    """
    return evaluate("validate", args)
