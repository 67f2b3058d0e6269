"""Several processes are one: same loss, same step, same figures."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from lightning_da import testing
from lightning_da.data.base import UNKNOWN
from lightning_da.gather import gather
from lightning_da.losses.mmd import Estimator
from lightning_da.methods import JAN
from lightning_da.paths import PROJECT
from lightning_da.store import client
from tests import shared_pairs, toy

AT_ONCE = testing.AT_ONCE | {"domain_weight": 3.0}


def shared(logged: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is logged of all processes' samples: everything but the task loss, of which the logger takes the mean."""
    return {key: value for key, value in logged.items() if key != "train/task_loss"}


@pytest.mark.parametrize("name", toy.each(toy.ADAPTING))
def test_two_processes_make_the_step_of_one(name: str) -> None:
    """The same loss, logged values and, after a step, the same weights and running statistics, in float64."""
    method = toy.METHODS[name].method
    one, two = testing.two_processes(method, **AT_ONCE)
    testing.compare_processes(one, two)
    assert not toy.equal(one.state, toy.state(testing.ready(method, **AT_ONCE), ""))
    for share in two:
        assert shared(share.logged).keys() == shared(one.logged).keys()
        for key, value in shared(one.logged).items():
            torch.testing.assert_close(share.logged[key], value, rtol=1e-6, atol=1e-9, msg=key)
    assert "train/domain_gradient" in one.logged, "what is logged on some steps only is compared as well"


@pytest.mark.parametrize("name", toy.each(name for name in toy.OF_LABELS if name != "conservative"))
def test_two_processes_make_the_step_of_one_of_a_method_of_labels(name: str) -> None:
    """In float64, of uneven batches with labels in both domains."""
    labels = torch.arange(13) % 3
    labels[[1, 4]] = UNKNOWN
    testing.compare_processes(*testing.two_processes(toy.METHODS[name].method, labels))


@pytest.mark.parametrize("name", ["source_only", "dann"])
def test_two_processes_count_the_known_labels_of_both(name: str) -> None:
    # 4 of 13 source labels are known: 3 of those with even places, which one process has, 1 of the other's
    labels = torch.full((13,), UNKNOWN)
    labels[[0, 2, 5, 8]] = torch.tensor([0, 2, 1, 1])
    one, two = testing.two_processes(toy.METHODS[name].method, labels, **({} if name == "source_only" else AT_ONCE))
    testing.compare_processes(one, two)
    found = torch.stack([share.logged["train/task_loss"] for share in two]).mean()
    torch.testing.assert_close(found, one.logged["train/task_loss"])


@pytest.mark.parametrize("method", [toy.CountedDAN, JAN])
def test_two_processes_share_the_pairs_of_a_large_batch(method: testing.Method) -> None:
    """The batches of the tests above have so few pairs that each process computes all."""
    one, two = testing.two_processes(method, sizes=(330, 270), **AT_ONCE)
    testing.compare_processes(one, two)
    if method is toy.CountedDAN:
        seen, *shares = (int(outcome.logged.pop("distances")) for outcome in (one, *two))
        assert sum(shares) == seen
        assert max(shares) < 0.7 * seen
    for share in two:
        for key, value in shared(one.logged).items():
            torch.testing.assert_close(share.logged[key], value, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize(("processes", "estimator"), [(2, "biased"), (4, "unbiased")])
def test_the_pairs_fall_to_the_processes_in_equal_shares(processes: int, estimator: Estimator, tmp_path: Path) -> None:
    """Value and gradient are those of one process in float64, and nearly 1 / processes of its work is left to each."""
    start_processes(
        shared_pairs.work, (str(tmp_path), processes, estimator), nprocs=processes, start_method="forkserver"
    )
    value, *gradients, null, seen = shared_pairs.discrepancy(slice(None), estimator)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for rank, (found, *own, found_null, _) in enumerate(shares):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=0)
        torch.testing.assert_close(found_null, null, rtol=1e-8, atol=1e-14)
        for gradient, whole in zip(own, gradients, strict=True):
            # DistributedDataParallel takes the mean over processes
            torch.testing.assert_close(gradient / processes, whole[rank::processes], rtol=1e-10, atol=1e-16)
    work_done = [int(share[-1]) for share in shares]
    assert sum(work_done) == seen
    assert max(work_done) <= seen / processes + 256**2


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x


def lightning_da(*args: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "lightning_da", *args],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
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


@pytest.mark.slow
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
