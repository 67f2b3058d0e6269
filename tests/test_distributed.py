"""Several processes are one: same loss, same step, same figures."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from lightning_da.gather import gather
from lightning_da.methods import ADDA, AdaptationModule, TransferModule
from lightning_da.paths import PROJECT
from lightning_da.tracking import client
from tests import toy

SLOW = ("source_only", "deep_coral", "dan", "jan", "adda", "fine_tune")


class Step(nn.Module):
    """A training step as a forward pass, for DistributedDataParallel to wrap."""

    def __init__(self, method: TransferModule) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any) -> Tensor:
        return self.method.training_step(batch, 0)


def step(name: str, logged: dict[str, Any]) -> Step:
    """In float64 and with a dictionary for a logger; the weights are those of the seed alone."""
    model = toy.build(name).double()
    model.trainer = toy.trainer()
    model.trainer.fit_loop.max_epochs = 1
    model.log = logged.__setitem__  # type: ignore[method-assign,assignment]
    model.log_dict = logged.update  # type: ignore[method-assign,assignment]
    if isinstance(model, ADDA):
        model.initialise()
    return Step(model)


def batch(model: TransferModule, n_source: slice, n_target: slice) -> dict[str, Any]:
    """A share of 12 source and 16 target samples, in which the domains are far apart."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (12, 16))
    x, y = source[n_source], (torch.arange(12) % 3)[n_source]
    return {"source": (x, y) if "source" in model.supervised else x, "target": 2 * target[n_target] + 1}


def stepped(model: nn.Module, content: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    loss = model(content)
    loss.backward()
    optimizer.step()
    return loss.detach(), {key: value.clone() for key, value in model.state_dict().items()}


def work(rank: int, folder: str, weight: float) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name in toy.ADAPTING:
        with steady(weight):
            # as many source samples, but not the same number of target samples
            mine = (slice(0, 6), slice(0, 4)) if rank == 0 else (slice(6, 12), slice(4, 16))
            logged: dict[str, Any] = {}
            model = step(name, logged)
            content = batch(model.method, *mine)
            wrapped = nn.parallel.DistributedDataParallel(model)
            torch.save((*stepped(wrapped, content), shared(logged)), f"{folder}/{name}{rank}.pt")
    dist.destroy_process_group()


def shared(logged: dict[str, Any]) -> dict[str, Tensor]:
    """What is logged of all processes' samples: everything but the task loss, a mean over each process's own."""
    return {key: torch.as_tensor(value).detach() for key, value in logged.items() if key != "train/task_loss"}


@contextmanager
def steady(weight: float) -> Iterator[None]:
    """A weight of the domain loss that does not ask the trainer for its progress."""
    with patch.object(AdaptationModule, "domain_weight", weight), patch.object(AdaptationModule, "logs_now", True):
        yield


def test_two_processes_make_the_step_of_one(tmp_path: Path) -> None:
    """The same loss and, after a step, the same weights and running statistics, in float64, for every method."""
    spawn(work, (str(tmp_path), 3.0), nprocs=2)
    for name in toy.ADAPTING:
        with steady(3.0):
            logged: dict[str, Any] = {}
            model = step(name, logged)
            before = {key: value.clone() for key, value in model.state_dict().items()}
            loss, state = stepped(model, batch(model.method, slice(0, 12), slice(0, 16)))
        # the task loss is the mean over processes; what is left is the domain loss, which is equal on both
        found = [torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)]
        torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss, rtol=1e-10, atol=0, msg=name)
        for _, theirs, log in found:
            assert log.keys() == shared(logged).keys()
            for key, value in shared(logged).items():
                torch.testing.assert_close(log[key], value, rtol=1e-6, atol=1e-9, msg=f"{name} {key}")
            for key, value in state.items():
                torch.testing.assert_close(theirs[f"module.{key}"], value, rtol=1e-9, atol=1e-11, msg=f"{name} {key}")
        assert any(not torch.equal(before[key], value) for key, value in state.items()), name


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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["source_only", "dann", "deep_coral", "dan", "jan", "adda", "fine_tune"])
def test_every_method_trains_on_two_processes(method: str) -> None:
    """Uneven validation and test splits, one run, and the figures of one process from the same weights."""
    experiment = f"two processes, {method}"
    args = arguments(method, experiment)
    lightning_da("fit", *args, *TWO)
    where = client().get_experiment_by_name(experiment)
    assert where is not None
    runs = client().search_runs([where.experiment_id])
    assert len(runs) == (2 if method == "adda" else 1)  # both stages of ADDA
    (run,) = [run for run in runs if run.data.params["method"] == method]
    assert run.info.status == "FINISHED"
    lightning_da("test", *args, "--trainer.devices", "1")
    alone = client().get_run(run.info.run_id).data.metrics
    lightning_da("test", *args, *TWO)
    both = client().get_run(run.info.run_id).data.metrics
    for key in ("test/source/acc", "test/target/acc", "test/target/class_acc"):
        assert both[key] == pytest.approx(alone[key], abs=1e-9), key
    assert len(client().search_runs([where.experiment_id])) == len(runs)


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
    # the curves: of the same sample, in the same order, logged once
    tables = [pd.read_csv(client().download_artifacts(run.info.run_id, "curve/curve.csv")) for run in runs]
    assert len(tables[0]) == len(tables[1])
    for network in ("untrained", "trained"):
        alone, both = (table[table["network"] == network].reset_index(drop=True) for table in tables)
        columns = ["layer", "measure", "value", "null", "low"]
        pd.testing.assert_frame_equal(alone[columns], both[columns], rtol=1e-3, atol=1e-3)
    for run in runs:
        assert len(client().get_metric_history(run.info.run_id, "depth/mmd")) == 6


@pytest.mark.slow
def test_predictions_of_two_processes_are_those_of_one() -> None:
    args = arguments("source_only", "two predict")
    lightning_da("fit", *args)
    lightning_da("predict", *args, "--predictions.path", "one.csv")
    lightning_da("predict", *args, *TWO, "--predictions.path", "two.csv")
    one, two = pd.read_csv("one.csv"), pd.read_csv("two.csv")
    assert len(one) == 1797
    pd.testing.assert_frame_equal(one, two, atol=2e-4)
