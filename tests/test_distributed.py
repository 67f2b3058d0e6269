"""Several processes are one: same loss, same step, same figures."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from lightning_da.gather import gather
from lightning_da.losses.adversarial import domain_classification
from lightning_da.losses.coral import coral
from lightning_da.tracking import PROJECT, client

WIDTH = 6


def discriminator() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 1)).double()


def adversarial(source: Tensor, target: Tensor) -> Tensor:
    return domain_classification(source, target, discriminator())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"coral": coral, "dann": adversarial}


def activations() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (12, 9))
    return source, target + 1


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, WIDTH)).double()


def stepped(model: nn.Module, source: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    value = loss(gather(model(source)), gather(model(target)))
    value.backward()
    optimizer.step()
    return value.detach(), [p.detach().clone() for p in model.parameters()]


def work(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    source, target = activations()
    # unequal shares of unequal content
    mine = (source[:8], target[:2]) if rank == 0 else (source[8:], target[2:])
    model = nn.parallel.DistributedDataParallel(network())
    torch.save(stepped(model, *mine, LOSSES[name]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_make_the_step_of_one(name: str, tmp_path: Path) -> None:
    spawn(work, (str(tmp_path), name), nprocs=2)
    value, parameters = stepped(network(), *activations(), LOSSES[name])
    before = list(network().parameters())
    for rank in range(2):
        their_value, theirs = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(their_value, value, rtol=1e-12, atol=0)
        for p, q in zip(theirs, parameters, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
        assert any(not torch.equal(p, start) for p, start in zip(theirs, before, strict=True))


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x


def lightning_da(*args: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "lightning_da", *args],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]


def arguments(method: str, experiment: str) -> list[str]:
    return [
        *(word for part in (f"method/{method}", "data/digits") for word in ("--config", f"{PROJECT}/conf/{part}.yaml")),
        *("--data.init_args.num_typeset", "401", "--data.init_args.batch_size", "16"),
        *("--trainer.max_epochs", "1", "--trainer.max_steps", "-1", "--trainer.enable_progress_bar", "false"),
        *("--trainer.logger.init_args.experiment_name", experiment, "--trainer.accelerator", "cpu"),
    ]


TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.mark.parametrize(
    "method", ["dann", *(pytest.param(m, marks=pytest.mark.slow) for m in ("source_only", "deep_coral", "fine_tune"))]
)
def test_every_method_trains_on_two_processes(method: str) -> None:
    """Uneven validation and test splits, one run, and the figures of one process from the same weights."""
    experiment = f"two processes, {method}"
    args = arguments(method, experiment)
    lightning_da("fit", *args, *TWO)
    where = client().get_experiment_by_name(experiment)
    assert where is not None
    (run,) = client().search_runs([where.experiment_id])
    assert run.info.status == "FINISHED"
    lightning_da("test", *args, "--trainer.devices", "1")
    alone = client().get_run(run.info.run_id).data.metrics
    lightning_da("test", *args, *TWO)
    both = client().get_run(run.info.run_id).data.metrics
    for key in ("test/source/acc", "test/target/acc", "test/target/class_acc"):
        assert both[key] == pytest.approx(alone[key], abs=1e-9), key
    assert len(client().search_runs([where.experiment_id])) == 1


def test_a_fit_on_two_processes_is_that_of_one_with_the_whole_batch() -> None:
    """The loss of each process's own samples would give other weights: CORAL is not a mean over samples.

    Its weight is large, since the first features of the network are small.
    """
    whole = ["--model.init_args.backbone.init_args.batch_norm", "false", "--trainer.max_steps", "4"]
    whole += ["--model.init_args.optimizer", "torch.optim.SGD", "--model.init_args.optimizer.init_args.lr", "0.1"]
    whole += ["--model.init_args.domain_schedule", "lightning_da.schedules.constant"]
    whole += ["--model.init_args.domain_weight", "3e6"]
    args = arguments("deep_coral", "one and two")
    lightning_da("fit", *args, *whole, "--data.init_args.batch_size", "32")
    lightning_da("fit", *args, *whole, "--data.init_args.batch_size", "16", *TWO)
    runs = client().search_runs([client().get_experiment_by_name("one and two").experiment_id])  # type: ignore[union-attr]
    one, two = (
        torch.load(client().download_artifacts(run.info.run_id, "checkpoints/last.ckpt"), weights_only=True)[
            "state_dict"
        ]
        for run in runs
    )
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-6, msg=key)


def test_predictions_of_two_processes_are_those_of_one() -> None:
    args = arguments("source_only", "two predict")
    lightning_da("fit", *args)
    lightning_da("predict", *args, "--predictions.path", "one.csv")
    lightning_da("predict", *args, *TWO, "--predictions.path", "two.csv")
    one, two = pd.read_csv("one.csv"), pd.read_csv("two.csv")
    assert len(one) == 1797
    pd.testing.assert_frame_equal(one, two, atol=2e-4)
