"""Does a sweep lose or repeat anything when it is killed, its store is locked and its disk is full? Rounds for hours.

    python benchmarks/soak.py --out results [--minutes 120] [--seed 0]

A round is one sweep of ADDA, with its first stage, and DANN with two seeds, in an experiment of its own. It meets three
faults at random times: kill -9 of all its processes or of one of them, SIGTERM, SIGINT, a lock on the store for up to
45 seconds, a disk that takes no large file. After each, the same command is called again. Then the round is compared
with an undisturbed one: each training is there once, with the same values of all metrics at the same steps, bit by bit,
no run is RUNNING, no write waits. Prints a line for each round and the number of faults; `results/soak.jsonl`
keeps them, so that more minutes can be added later.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from lightning_da.store import client, search_runs

CELLS = 6
"""Trainings of a round: the first stage, ADDA and DANN, with two seeds each."""
FAULTS = ("kill all", "kill one", "SIGTERM", "SIGINT", "lock", "lock", "full disk")
KILOBYTES = 300
"""Size of the largest file on a full disk: the store and the checkpoints are larger."""


def command(name: str) -> list[str]:
    words = ["sweep", "--methods", "adda", "dann", "--seeds", "0", "1", "--config", "data/digits.yaml"]
    words += ["--data.num_typeset=401", "--trainer.max_steps=60", "--trainer.log_every_n_steps=2", "--jobs=2"]
    words += [f"--trainer.logger.experiment_name={name}"]
    return [sys.executable, "-m", "lightning_da", *words]


def start(name: str, log: Path, full: bool) -> subprocess.Popen[bytes]:
    """A sweep in a process group of its own, perhaps on a disk that takes no large file."""
    words = command(name)
    if full:
        words = ["bash", "-c", f'ulimit -f {KILOBYTES}; exec "$@"', "bash", *words]
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)


def lock(path: Path, seconds: float) -> None:
    """Holds the store, so that nobody reads or writes it."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path, timeout=60)) as held:
        held.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        held.rollback()


def members(group: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "-g", str(group)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def disturb(process: subprocess.Popen[bytes], fault: str, path: Path, rng: random.Random) -> None:
    """Does a fault to a sweep that runs."""
    group = process.pid
    with suppress(ProcessLookupError):
        if fault == "kill all":
            os.killpg(group, signal.SIGKILL)
        elif fault == "kill one":
            os.kill(rng.choice(members(group) or [group]), signal.SIGKILL)
        elif fault in ("SIGTERM", "SIGINT"):
            os.kill(group, getattr(signal, fault))
        elif fault == "lock":
            threading.Thread(target=lock, args=(path, rng.uniform(5, 45)), daemon=True).start()


def one_round(name: str, folder: Path, faults: list[str], rng: random.Random) -> None:
    """Calls a sweep until it ends well, with these faults on the way, one for each call."""
    for fault in [*faults, "", ""]:
        process = start(name, folder / "log.txt", fault == "full disk")
        if fault not in ("", "full disk"):
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(5, 90))
            disturb(process, fault, folder / "mlflow.db", rng)
        code = process.wait()
        with suppress(ProcessLookupError):  # the rest of a killed sweep
            os.killpg(process.pid, signal.SIGKILL)
        if code == 0:
            return
    sys.exit(f"the sweep {name} does not end; see {folder / 'log.txt'}")


def read(name: str) -> tuple[dict[str, Any], list[str]]:
    """The trainings of a round with the histories of their metrics, and what is wrong with it."""
    experiment = client().get_experiment_by_name(name)
    assert experiment is not None
    wrong, found = [], {}
    for run in search_runs(experiment.experiment_id):
        if run.info.status == "RUNNING":
            wrong.append(f"{run.info.run_name} is RUNNING")
        if "whole" not in run.data.tags:
            continue
        cell = run.data.tags["cell"]
        if cell in found:
            wrong.append(f"{cell} is there twice")
        found[cell] = {
            key: [(point.step, point.value) for point in client().get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
            if key != "fit/seconds"
        }
    return found, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the store and the results")
    parser.add_argument("--minutes", type=float, default=120, help="rounds start for so long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (default: %(default)s)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    client()
    results, rng = given.out / "soak.jsonl", random.Random(given.seed)
    if client().get_experiment_by_name("undisturbed") is None:
        one_round("undisturbed", given.out, [], rng)
    expected, wrong = read("undisturbed")
    assert len(expected) == CELLS, "the undisturbed sweep is not whole"
    done = len(results.read_text().splitlines()) if results.exists() else 0
    end, counted = time.monotonic() + 60 * given.minutes, Counter[str]()
    while time.monotonic() < end:
        name, faults = f"round {done}", [rng.choice(FAULTS) for _ in range(3)]
        one_round(name, given.out, faults, rng)
        found, wrong = read(name)
        wrong += [f"{cell} differs" for cell, values in found.items() if values != expected[cell]]
        wrong += [f"{cell} is lost" for cell in expected.keys() - found.keys()]
        wrong += ["writes wait"] * bool(list(given.out.glob("artifacts/*/*/artifacts/checkpoints/unsent")))
        with results.open("a") as file:
            file.write(json.dumps({"round": done, "faults": faults, "wrong": wrong}) + "\n")
        print(f"{name}: {', '.join(faults)}: {'; '.join(wrong) or 'nothing lost, twice or left running'}", flush=True)
        counted += Counter(faults)
        done += 1
    print(f"{sum(counted.values())} faults: {dict(counted)}")


if __name__ == "__main__":
    main()
