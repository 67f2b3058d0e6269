"""What a process needs before torch is imported."""

import atexit
import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

UNWRITTEN = 120
"""Exit status of a process whose output cannot be written, as Python has it."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads per training of a grid: `OMP_NUM_THREADS`, otherwise 1, so that results do not depend on their number."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else 1


def prepare() -> None:
    """Prepares the process: imports from the working folder, waiting threads, and hidden warnings."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    # By default, OpenMP threads wait in a busy loop, which makes small networks several times slower on a busy machine.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for message in (
        ".*does not have many workers.*",
        ".*suggested max number of worker.*",  # their number decides what augmentation draws, on any machine
        ".*LeafSpec.*",
        ".*LightningCLI's args parameter.*",
        ".*smaller than the logging interval.*",
        ".*in eval mode at the start of training.*",  # frozen layers
        ".*this fit will run with no optimizer.*",  # classical methods
        ".*`srun` command is available on your system but is not used.*",  # jobs of SLURM are for grids
    ):
        warnings.filterwarnings("ignore", message=message)
    seed = "lightning.fabric.utilities.seed"  # the seed is in the recorded configuration
    for logger in (seed, "alembic.runtime.migration", "alembic", "mlflow.pyfunc"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `store.py` says what fails
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # `TimmBackbone` says what does not fit
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)


def freeze() -> None:
    """Leaves all present objects out of garbage collections until the process ends."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # triton reports what Python does not free in the end as leaks


@contextmanager
def quick_imports() -> Iterator[None]:
    """Imports without garbage collections, which would go through all objects of torch and MLflow again and again.

    Later collections leave these objects out too, if this process imports torch here. Loading processes then share
    their memory with the training for longer. https://docs.python.org/3/library/gc.html#gc.freeze
    """
    first, enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        if first:
            freeze()


def end(code: int) -> NoReturn:
    """Ends the process in the steps of Python, but leaves its memory to the system, as multiprocessing does.

    To free all objects of torch and MLflow one by one takes up to two seconds.

    Args:
        code: Exit status of the process; it is `UNWRITTEN` if the output cannot be written.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # ends pools of threads, and waits for other threads
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:  # its reader has gone
            code = UNWRITTEN
        except OSError as error:
            code = UNWRITTEN
            with suppress(OSError):
                print(f"lightning-da: error: the output cannot be written ({error.strerror})", file=sys.stderr)
    os._exit(code)


def shorten_warnings() -> None:
    """Leaves out file and line of the project's own warnings; after the import of Lightning, which sets a form too."""
    warnings.formatwarning = _short


def _short(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,  # noqa: ARG001
) -> str:
    own = Path(filename).is_relative_to(Path(__file__).parent)
    return f"warning: {message}\n" if own else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _is_news(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage() and "TPU" not in record.getMessage()
