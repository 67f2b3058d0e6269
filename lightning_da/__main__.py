import os
import sys

from lightning_da.errors import one_line
from lightning_da.main import main


def run() -> None:
    """The console script: as `main`, with nothing returned to the shell, and an unforeseen error in one line.

    With `LIGHTNING_DA_DEBUG=1` in the environment Python shows where the error is.
    """
    try:
        main()
    except Exception as error:
        if os.environ.get("LIGHTNING_DA_DEBUG"):
            raise
        name = f"{type(error).__name__}: {one_line(error)}"
        print(f"lightning-da: error: {name} (LIGHTNING_DA_DEBUG=1 shows where)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
