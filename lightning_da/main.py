"""`lightning-da COMMAND ...`: finds and runs the command; slow imports come after the check of the arguments."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from lightning_da.commands import COMMANDS
from lightning_da.errors import ConfigError, InterruptionError, RunError, list_choices, loading_errors
from lightning_da.paths import files_first, with_found_configs
from lightning_da.process import prepare, quick_imports, shorten_warnings
from lightning_da.signatures import check_options

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
USAGE = f"""\
usage: lightning-da COMMAND --config method/NAME.yaml --config data/NAME.yaml [--OPTION VALUE ...]

commands:
{"".join(f"  {name:16} {text}{chr(10)}" for name, text in COMMANDS.items())}
--config takes files of the folder conf, or your own. Options override their values, before and behind them:
--trainer.max_steps 1000
`lightning-da COMMAND --help` lists the options of a command, `lightning-da fit --model.help DANN` the options of a
method, and `lightning-da fit --data.help Digits` the options of a data module.
"""


def main(args: Sequence[str] | None = None) -> Any:
    """Runs a command.

    Args:
        args: The arguments after `lightning-da`; None uses the arguments of the process.

    Returns:
        For fit, validate, test and predict the `TransferCLI` with trainer, model and data; for ensemble the trainer;
        for the other commands a table.

    Raises:
        SystemExit: After an error message, with code 2 if arguments, configuration or data are wrong, and with code 1
            if the command failed while it ran.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return None
    name, words = args[0], files_first(args[1:])
    if name not in COMMANDS:
        _stop(f"no command {name!r}; {list_choices(name, COMMANDS)}", code=2)
    prepare()
    try:
        # torchrun sets both; other programs leave the second in the environment
        if name not in TRAINER_COMMANDS and "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1":
            raise ConfigError(f"{name} starts its own processes; start it once, without torchrun")
        check_options(with_found_configs(words), all_known=name in TRAINER_COMMANDS)
        with loading_errors():
            with quick_imports():
                command = import_module(f"lightning_da.commands.{name.replace('-', '_')}")
            shorten_warnings()
            return command.run(words)
    except ConfigError as error:
        _stop(str(error), code=2)
    except InterruptionError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit(1)  # the first process says it for all
        _stop(str(error), code=1)
    except RunError as error:
        _stop(str(error), code=1)
    except KeyboardInterrupt:
        _stop("interrupted", code=1)


def _stop(message: str, code: int) -> NoReturn:
    """Prints an error message and ends the command."""
    stop = SystemExit(f"lightning-da: error: {message}")
    print(stop, file=sys.stderr)
    stop.code = code
    raise stop
