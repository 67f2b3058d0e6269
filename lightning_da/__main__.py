import os
import sys
from typing import NoReturn

from lightning_da.errors import one_line
from lightning_da.main import main
from lightning_da.process import end


def run() -> NoReturn:
    """The console script: as `main`, with nothing returned to the shell, and an unforeseen error in one line.

    With `LIGHTNING_DA_DEBUG=1` in the environment Python shows where the error is.
    """
    try:
        main()
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            print(stop.code, file=sys.stderr)
            end(1)
        end(stop.code or 0)
    except Exception as error:
        if os.environ.get("LIGHTNING_DA_DEBUG"):
            raise
        name = f"{type(error).__name__}: {one_line(error)}"
        print(f"lightning-da: error: {name} (LIGHTNING_DA_DEBUG=1 shows where)", file=sys.stderr)
        end(1)
    end(0)


if __name__ == "__main__":
    run()
