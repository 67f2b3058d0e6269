"""What a fit of five steps costs besides the imports of torch, lightning, torchvision and mlflow.

    python benchmarks/short_fit.py [--rounds 5]

The imports alone and the fit alternate, each in a process of its own. Prints median seconds of the processor, and the
ratio of the rest of the fit to the imports. The fit tracks into a new store in a temporary folder.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from tempfile import TemporaryDirectory

IMPORTS = [sys.executable, "-c", "import torch, lightning, torchvision, mlflow"]
FIT = [
    *(sys.executable, "-m", "lightning_da", "fit", "--config", "method/dann.yaml", "--config", "data/digits.yaml"),
    *("--trainer.max_steps", "5"),
]


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of the processor that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        seconds(FIT, environment)  # the store and the cache of the digits are made
        pairs = [(seconds(IMPORTS, environment), seconds(FIT, environment)) for _ in range(rounds)]
    imports, fit = (statistics.median(column) for column in zip(*pairs, strict=True))
    rest = fit - imports
    print(f"imports {imports:.1f} s, fit {fit:.1f} s, rest {rest:.1f} s, {rest / imports:.2f} of the imports")


if __name__ == "__main__":
    main()
