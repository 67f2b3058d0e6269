"""Does a fit that is killed and goes on equal an unbroken one? Bit by bit, on a CPU.

    python benchmarks/kills.py --out results [--kills 20] [--seed 0]

Each case is a method with its file in `conf/`, a network and settings (dropout, image augmentation, loading processes,
accumulation, gradual unfreezing). A process trains, is killed with SIGKILL at a random step, and goes on with
`lightning-da fit --ckpt_path RUN`; then the weights are compared with those of an unbroken run. The checkpoints are
those of `every_n_train_steps`, so that most kills are within an epoch. Prints a line for each case; cases that are in
`results/kills.jsonl` are not run again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_da.store import client

NETWORK = "{class_path: LeNet, init_args: {dropout: 0.5}}"
KEEP = (
    "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    "init_args: {save_top_k: 0, save_last: true, every_n_train_steps: 7}}"
)
STEPS = 60
DIGITS = ("--config", "data/digits.yaml", f"--model.backbone={NETWORK}")
IMAGES = ("--config", "data/image_folders.yaml", "--data.batch_size=8", "--data.image_size=28")
SETTINGS: dict[str, tuple[str, ...]] = {
    "dropout": DIGITS,
    "accumulate": (*DIGITS, "--trainer.accumulate_grad_batches=3", "--data.batch_size=16"),
    "images": (
        *IMAGES,
        "--data.source=one",
        "--data.target=two",
        "--data.num_workers=0",
        f"--model.backbone={NETWORK}",
    ),
    "workers": (
        *IMAGES,
        "--data.source=one",
        "--data.target=two",
        "--data.num_workers=2",
        f"--model.backbone={NETWORK}",
    ),
}
FEW = "--data.target_labels=5/class"
METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("source_only", "dan", "cogan", "adda", "cycle_gan", "dann_paper", "jan", "dlid", "deep_coral"), ()
    ),
    "gan_classifier": (FEW,),
    "dann": (),
    "label_efficient": (FEW, "--model.train_on=both"),
    "dual_gan": (),
    "dhn": (),
    "multimodal": (FEW, f"--model.source_backbone={NETWORK}"),
    **dict.fromkeys(("dsn", "cdan", "pseudo_labels", "dtml"), ()),
}
"""The methods, each with options that it needs here."""


def images(root: Path) -> None:
    """Two domains of noise with two classes."""
    for domain in ("one", "two"):
        for label in ("a", "b"):
            for number in range(60):
                path = root / domain / label / f"{number}.png"
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    seed = [number, label == "a", domain == "one"]
                    pixels = np.random.default_rng(seed).integers(256, size=(40, 40, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(path)


def start(words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lightning_da", "fit", *words, "--trainer.enable_progress_bar=false"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def latest(experiment: str) -> tuple[str, int]:
    """Id of the latest run of an experiment, and the step that it has logged last; empty before there is one."""
    found = client().get_experiment_by_name(experiment)
    runs = client().search_runs([found.experiment_id], order_by=["start_time DESC"]) if found else []
    if not runs:
        return "", -1
    history = client().get_metric_history(runs[0].info.run_id, "epoch")  # logged with each metric
    return runs[0].info.run_id, max((point.step for point in history), default=-1)


def weights(run_id: str) -> dict[str, torch.Tensor]:
    path = client().download_artifacts(run_id, "checkpoints/last.ckpt")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def finish(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(said[-2000:])


def case(root: Path, number: int, seed: int) -> dict[str, object]:
    """One kill: its settings, its step, and whether the weights are equal."""
    drawn = random.Random(f"{seed} {number}")
    method, setting = list(METHODS)[number % len(METHODS)], list(SETTINGS)[number % len(SETTINGS)]
    kill = drawn.randint(8, STEPS - 5)
    words = ["--config", f"method/{method}.yaml", *SETTINGS[setting], *METHODS[method], f"--trainer.max_steps={STEPS}"]
    words += [f"--trainer.callbacks=[{KEEP}]", "--trainer.log_every_n_steps=1", f"--seed_everything={number}"]
    words += [
        "--trainer.accelerator=cpu",
        *([f"--data.root={root / 'images'}"] if setting in ("images", "workers") else []),
    ]
    names = [f"{method}-{setting}-{number}-{kind}" for kind in ("whole", "killed")]
    options = [[*words, f"--trainer.logger.experiment_name={name}"] for name in names]
    finish(start(options[0]))
    process = start(options[1])
    while (method == "adda" and _stages(names[1]) < 2) or latest(names[1])[1] < kill:
        if process.poll() is not None:
            break
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # a short fit may have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run_id = latest(names[1])[0]
    finish(start(["--ckpt_path", run_id]))
    one, other = weights(latest(names[0])[0]), weights(run_id)
    equal = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    status = client().get_run(run_id).info.status
    return {"method": method, "setting": setting, "seed": number, "kill": kill, "equal": equal, "status": status}


def _stages(experiment: str) -> int:
    found = client().get_experiment_by_name(experiment)
    return len(client().search_runs([found.experiment_id])) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    images(given.out.absolute() / "images")
    path = given.out / "kills.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for number in range(len(done), given.kills):
        done.append(case(given.out.absolute(), number, given.seed))
        with path.open("a") as file:
            file.write(f"{json.dumps(done[-1])}\n")
        print(done[-1], flush=True)
    print(f"{sum(found['equal'] for found in done)} of {len(done)} are equal bit by bit")


if __name__ == "__main__":
    main()
