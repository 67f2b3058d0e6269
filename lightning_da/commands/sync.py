"""`lightning-da sync`: sends the writes that a store did not take."""

from collections.abc import Sequence

from lightning_da.errors import RunError
from lightning_da.parser import CommandParser
from lightning_da.tracking import send_waiting


def run(args: Sequence[str]) -> None:
    """Sends the writes of fits that wait on this machine.

    Args:
        args: The arguments after `sync`.

    Raises:
        RunError: If the store does not take the writes of a run.
    """
    CommandParser(
        "lightning-da sync",
        description="Send to the MLflow store what fits on this machine have logged while it did not answer.",
    ).parse_args(args)
    if left := send_waiting():
        raise RunError(f"the writes of {left} runs still wait")
    print("nothing waits any more")
