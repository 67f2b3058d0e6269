"""`lightning-da ui`: prints where the experiments are to be seen, and starts the MLflow UI."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from lightning_da.errors import ConfigError
from lightning_da.mlflow_view import VIEW_TAG, view_url
from lightning_da.parser import CommandParser
from lightning_da.store import client, tracking_uri

HOST = "127.0.0.1"
"""For this machine only: with another address, everybody in the network can read and change the runs."""


def run(args: Sequence[str]) -> None:
    """Prints the address of each experiment, and becomes the MLflow server of the store, unless that is a server.

    Args:
        args: The arguments after `ui`.

    Raises:
        ConfigError: If the port is not free.
    """
    parser = CommandParser(
        "lightning-da ui",
        description="Print the address of each experiment and start the MLflow UI for the store, on this machine only. "
        "Ctrl-C ends it. If the store is an MLflow server, that has a UI: only the addresses are printed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=5000, metavar="N", help="port of the UI")
    port = parser.parse_args(args).port
    served = tracking_uri().startswith("http")
    if not served:
        _check_free(port)
    experiments = [experiment for experiment in client().search_experiments() if VIEW_TAG in experiment.tags]
    print("open in a browser:" if experiments else "no experiment yet: run `make demo` or `lightning-da fit`")
    for experiment in experiments:
        print(f"  {experiment.name}: {view_url(experiment, port)}")
    if not served:
        sys.stdout.flush()
        environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": tracking_uri()}
        command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)]
        os.execve(sys.executable, command, environment)


def _check_free(port: int) -> None:
    try:
        with socket.create_server((HOST, port)):
            return
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"port: {port} is not free ({error}); take another, for example: lightning-da ui --port 5001"
        ) from error
