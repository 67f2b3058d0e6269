"""What the waiting of threads costs: training steps under each policy, quiet and beside one busy core.

Threads that share the work of a small layer wait for one another. By default they spin, which takes the core from
whoever else needs it; `OMP_WAIT_POLICY=passive`, which `lightning-da` sets unless the user has chosen, lets them sleep.

    python benchmarks/threads.py --networks LeNet ResNet-18 --rounds 3

The policies alternate, and the table has for each the median seconds of the steps, as a ratio to spinning threads on a
quiet machine. Measure alone: what else runs on the machine is in the figures.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

POLICIES = {
    "spinning": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "short spin": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
STEPS = {"LeNet": 100, "ResNet-18": 5}


def steps(network: str) -> float:
    """Seconds of some steps of DANN, after a few that are not counted."""
    import lightning as L  # noqa: PLC0415  # after the policy is set
    import torch  # noqa: PLC0415

    from lightning_da.methods import DANN  # noqa: PLC0415
    from lightning_da.networks import LeNet, TimmBackbone  # noqa: PLC0415

    shape = (1, 28, 28) if network == "LeNet" else (3, 64, 64)
    backbone = partial(LeNet, batch_norm=True) if network == "LeNet" else partial(TimmBackbone, model="resnet18")
    model = DANN(num_classes=10, input_shape=shape, backbone=backbone, optimizer=partial(torch.optim.Adam, lr=1e-3))
    trainer = L.Trainer(max_steps=10**6, logger=False, enable_checkpointing=False, accelerator="cpu")
    model.trainer = trainer
    trainer.fit_loop.max_epochs = 1
    model.log = model.log_dict = lambda *_args, **_kwargs: None  # type: ignore[method-assign,assignment]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"source": (torch.rand(64, *shape), torch.randint(10, (64,))), "target": torch.rand(64, *shape)}

    def step() -> None:
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()

    for _ in range(3):
        step()
    start = time.perf_counter()
    for _ in range(STEPS[network]):
        step()
    return time.perf_counter() - start


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def measure(network: str, policy: str, busy: bool) -> float:
    own = {name for settings in POLICIES.values() for name in settings}
    environment = {key: value for key, value in os.environ.items() if key not in own} | POLICIES[policy]
    command = [sys.executable, __file__, "--child", network]
    with busy_core(busy):
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(found.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(steps(given.child))
        return
    for network in given.networks:
        seconds: dict[tuple[str, bool], list[float]] = {}
        for _ in range(given.rounds):
            for policy in POLICIES:
                for busy in (False, True):
                    found = measure(network, policy, busy)
                    seconds.setdefault((policy, busy), []).append(found)
                    print(f"{network}, {policy}, {'busy' if busy else 'quiet'}: {found:.1f} s", file=sys.stderr)
        base = statistics.median(seconds["spinning", False])
        print(f"{network}, {STEPS[network]} steps of 64 + 64 samples, spinning and quiet {base:.1f} s")
        for (policy, busy), values in seconds.items():
            ratio = statistics.median(values) / base
            print(f"  {policy:10} {'beside a busy core' if busy else 'quiet':18} {ratio:.2f}  {min(values) / base:.2f}"
                  f" to {max(values) / base:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
