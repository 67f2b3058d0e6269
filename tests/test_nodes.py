"""Several machines: two agents of torchrun on this one, each with a process of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_da.main import main
from lightning_da.paths import CONF, PROJECT
from lightning_da.store import client
from tests.test_distributed import arguments, lightning_da


def two_nodes(*args: str) -> list[subprocess.CompletedProcess[str]]:
    """Runs a command on two nodes with a process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *place, f"--node_rank={rank}", "-m", "lightning_da", *args],
            env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [subprocess.CompletedProcess(args, p.returncode, text) for p, text in zip(processes, said, strict=True)]


METHODS = ["source_only", "dann", "deep_coral", "ddc", "dan", "dan linear", "jan", "adda", "fine_tune"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_nodes_train_as_one_process_with_the_whole_batch(name: str) -> None:
    method, _, estimator = name.partition(" ")
    experiment = f"nodes, {name}"
    args = arguments(method, experiment)
    args += ["--model.init_args.backbone.init_args.batch_norm", "false", "--trainer.max_steps", "6"]
    args += ["--model.init_args.optimizer", "torch.optim.SGD", "--model.init_args.optimizer.init_args.lr", "0.1"]
    args += ["--trainer.log_every_n_steps", "1"]
    if method not in ("source_only", "fine_tune"):
        args += ["--model.init_args.domain_schedule", "lightning_da.schedules.constant"]
    if estimator:
        args += ["--model.init_args.estimator", estimator]
    lightning_da("fit", *args, "--data.init_args.batch_size", "32")
    for found in two_nodes("fit", *args, "--trainer.num_nodes", "2", "--trainer.strategy", "ddp"):
        assert found.returncode == 0, found.stdout[-3000:]
    where = client().get_experiment_by_name(experiment)
    assert where is not None
    runs = [run for run in client().search_runs([where.experiment_id]) if run.data.params["method"] == method]
    both, alone = runs
    assert both.info.status == "FINISHED"
    states = [
        torch.load(client().download_artifacts(run.info.run_id, "checkpoints/last.ckpt"), weights_only=True)
        for run in (both, alone)
    ]
    for key, value in states[1]["state_dict"].items():
        torch.testing.assert_close(states[0]["state_dict"][key], value, rtol=1e-3, atol=1e-5, msg=key)
    for key in ("train/domain_loss", "train/task_loss"):
        if key in alone.data.metrics:
            histories = [client().get_metric_history(run.info.run_id, key) for run in (both, alone)]
            assert [point.step for point in histories[0]] == [point.step for point in histories[1]]
            if key == "train/domain_loss":
                values = [[point.value for point in history] for history in histories]
                assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_an_error_ends_all_nodes_with_its_message() -> None:
    for found in two_nodes("fit", *arguments("dann", "nodes, wrong"), "--model.domain_weight", "-1"):
        assert found.returncode != 0
        assert "lightning-da: error: " in found.stdout
        assert "domain_weight: -1" in found.stdout


def test_a_trainer_of_another_size_than_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("GROUP_RANK", "0")
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments("dann", "nodes, size")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "torchrun has started 4 processes" in said
    assert "--trainer.num_nodes 2 --trainer.devices 2" in said
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--methods", "dann"])
    assert stop.value.code == 2
    assert "sweep starts its own processes; start it once, without torchrun" in capsys.readouterr().err
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # the rest was left by another program
    with pytest.raises(SystemExit):
        main(["sweep", "--methods", "dan", "--typo"])
    assert "unknown key 'typo'" in capsys.readouterr().err


def test_machines_that_nobody_starts_are_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments("dann", "nodes, alone"), "--trainer.num_nodes", "2", "--trainer.strategy", "ddp"])
    assert stop.value.code == 2
    assert "trainer.num_nodes: 2, but nothing starts the other machines" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((CONF / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_trainer_file_is_parsed(path: Path) -> None:
    files = [word for part in ("method/dann", "data/digits") for word in ("--config", f"{part}.yaml")]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *files, "--config", str(path), "--print_config"])
    assert stop.value.code in (0, None)


def test_debug_records_nothing(tmp_path: Path) -> None:
    number = len(client().search_experiments())
    files = [word for part in ("method/dann", "data/digits", "trainer/debug") for word in ("--config", f"{part}.yaml")]
    cli = main(["fit", *files, "--data.num_typeset", "401", "--trainer.enable_progress_bar", "false"])
    assert cli.trainer.global_step == 5
    assert len(client().search_experiments()) == number
    assert not list(tmp_path.iterdir())
