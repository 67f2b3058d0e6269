"""Layer transfer: the tasks, the treatments, and a grid that can be interrupted and shared between processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import Run

from lightning_da.data import DataError, Task, TensorDomain
from lightning_da.data.base import UNKNOWN, Selection
from lightning_da.errors import ConfigError
from lightning_da.grids.engine import Result
from lightning_da.grids.layers import TREATMENTS, Layers, cells_table, curves, means_table
from lightning_da.main import main
from lightning_da.methods import FineTune
from lightning_da.paths import PROJECT
from lightning_da.store import client
from lightning_da.tracking import find_fit
from tests import toy

CLASSES = [f"class {i}" for i in range(6)]


class Six(toy.Toy):
    """Six classes, some samples without a label; with `lazy`, no tensors but single samples."""

    def __init__(self, lazy: bool = False) -> None:
        super().__init__(classes=6)
        self.lazy = lazy

    def dataset(self, domain: str, split: str) -> Any:
        data = super().dataset(domain, split)
        data.y[:10] = UNKNOWN
        return Selection(data, torch.arange(len(data)), data.y, data.classes) if self.lazy else data


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("lazy", [False, True])
def test_a_task_is_some_classes_numbered_from_0(lazy: bool) -> None:
    task = Task(Six(lazy), classes=["class 4", "class 1"])
    assert task.classes == ["class 4", "class 1"]
    for split in ("train", "val", "test"):
        whole, part = Six().dataset("calm", split), task.dataset("calm", split)
        assert len(part) == sum(int(y) in (1, 4) for y in whole.y)
        for i in (0, 5, len(part) - 1):
            x, y = part[i]
            index = int(part.names[i])
            assert torch.equal(x, whole[index][0])
            assert {4: 0, 1: 1}[int(whole.y[index])] == y
    assert isinstance(task.dataset("calm", "val"), Selection if lazy else TensorDomain)


def test_few_labels_are_balanced_seeded_and_of_the_training_split_alone() -> None:
    def drawn(seed: int) -> TensorDomain:
        data = Task(Six(), labels=30, seed=seed).dataset("calm", "train")
        assert isinstance(data, TensorDomain)
        return data

    assert torch.bincount(drawn(0).y).tolist() == [5] * 6
    assert drawn(0).names == drawn(0).names
    assert drawn(0).names != drawn(1).names
    few, all_of_them = Task(Six(), labels=30), Task(Six())
    few.check()
    assert len(few.dataset("calm", "test")) == len(all_of_them.dataset("calm", "test"))
    assert few.batch_size == 30
    # what is not of the task has no label
    assert UNKNOWN not in all_of_them.dataset("calm", "train").y


def test_the_digest_of_a_task_is_that_of_its_content() -> None:
    prints = [
        Task(Six(lazy), classes=classes, labels=labels).fingerprint()
        for lazy in (False, True)
        for classes, labels in ((CLASSES[:3], None), (CLASSES[3:], None), (CLASSES[:3], 20))
    ]
    assert len(set(prints)) == 6
    assert Task(Six(), classes=CLASSES[:3]).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["class 9", "class 1"]}, "no class 'class 9'"),
        ({"classes": ["class 1"]}, "at least two"),
        ({"classes": ["class 1", "class 1"]}, "each once"),
        ({"labels": 3}, "fewer than the 6 classes"),
    ],
)
def test_a_task_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task(Six(), **arguments)


def test_more_labels_than_there_are() -> None:
    with pytest.raises(ConfigError, match="310 training samples with a label, fewer than 5000"):
        Task(Six(), labels=5000).dataset("calm", "train")


# ---------------------------------------------------------------- the first layers


def network(**kwargs: Any) -> FineTune:
    return FineTune(num_classes=3, input_shape=(8,), backbone=toy.BACKBONE, **kwargs)


def test_the_first_layers_are_copied_and_no_more(tmp_path: Path) -> None:
    base = network()
    toy.fit(base, 5).trainer.save_checkpoint(tmp_path / "base.ckpt")
    copied = network(init_from=str(tmp_path / "base.ckpt"), init_layers=1, freeze=1)
    before = {key: value.clone() for key, value in copied.state_dict().items()}
    copied.initialise()
    for key, value in copied.state_dict().items():
        origin = base if key.startswith("backbone.fc1") else None
        assert torch.equal(value, base.state_dict()[key] if origin else before[key]), key
    assert not torch.equal(copied.backbone.get_submodule("fc2.0").weight, base.backbone.get_submodule("fc2.0").weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"init_layers": 1}, {"keep_head": True}])
def test_what_is_copied_needs_a_run(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs an earlier run to copy from"):
        network(**arguments).initialise()


def test_layers_to_copy_need_a_new_head() -> None:
    with pytest.raises(ConfigError, match="init_layers: 1 is not 1 to 2 with a new head"):
        network(init_layers=1, init_from="x", keep_head=True)
    with pytest.raises(ConfigError, match="init_layers: 3"):
        network(init_from="x", init_layers=3)


# ---------------------------------------------------------------- the plan


CONFIG: dict[str, Any] = {"model": {"init_args": {}}, "data": {"class_path": "x"}, "trainer": {}}


def setting(**kwargs: Any) -> Layers:
    given = {"config": CONFIG, "classes": CLASSES, "layers": ["fc1"], "task_a": None, "of_target": None}
    return Layers(**(given | kwargs))


def test_tasks_are_disjoint_halves_that_the_seed_draws() -> None:
    halves = set()
    for seed in range(10):
        a, b = (setting().task(name, seed)["classes"] for name in "AB")
        assert sorted(a + b) == CLASSES
        assert len(a) == len(b) == 3
        halves.add(tuple(a))
    assert len(halves) > 3
    given = setting(task_a=["class 5", "class 0"])
    assert given.task("A", 0)["classes"] == ["class 0", "class 5"]
    assert given.task("B", 7)["classes"] == ["class 1", "class 2", "class 3", "class 4"]
    across = setting(of_target=["one", "two"])
    assert [across.task(name, 0) for name in "AB"] == [
        {"domain": "source", "classes": None},
        {"domain": "target", "classes": None},
    ]


def test_what_is_copied_from_comes_first_and_every_cell_has_its_own_seed() -> None:
    cells = setting(layers=["fc1", "fc2", "fc3"]).plan([0, 1], [None, 100], [1, 2, 3], TREATMENTS)
    assert len(cells) == len({cell.key for cell in cells}) == 2 * (1 + 2 + 2 * 3 * 5)
    for place, cell in enumerate(cells):
        assert {base.key for base in cell.bases} <= {earlier.key for earlier in cells[:place]}
    named = {cell.name: cell for cell in cells}
    assert len(named) == len(cells)
    bases = {name: [base.name for base in named[name].bases] for name in ("A2B+-100-s1", "B2B-100-s1", "random2-s0")}
    assert bases == {"A2B+-100-s1": ["baseA-s1"], "B2B-100-s1": ["baseB-100-s1"], "random2-s0": []}
    assert named["A3B+-100-s1"].factors == {"labels": 100, "treatment": "AnB+", "n": 3, "seed": 1}
    assert len({cell.config["seed_everything"] for cell in cells}) == len(cells)
    assert CONFIG == {"model": {"init_args": {}}, "data": {"class_path": "x"}, "trainer": {}}


def test_the_summary_starts_at_base_b() -> None:
    accuracy = {"A": 0.5, "B": 0.9, "AnB": 0.8, "random": 0.2}
    results = [
        Result(
            dict(cell.factors),
            {"test/target/acc": accuracy[cell.factors["treatment"]] + cell.factors["seed"] / 10},
            1.0,
            "",
        )
        for cell in setting().plan([0, 1], [None], [1], ["AnB", "random"])
    ]
    rows = cells_table(results[::-1], ["fc1"])
    assert rows["treatment"].tolist() == ["A", "B", "AnB", "random"] * 2
    assert rows["layer"].tolist() == ["", "", "fc1", "fc1"] * 2
    found = means_table(rows).set_index(["treatment", "n"])
    assert found["mean"].to_dict() == pytest.approx(
        {("AnB", 0): 0.95, ("random", 0): 0.95, ("AnB", 1): 0.85, ("random", 1): 0.25}
    )
    assert found["std"].tolist() == pytest.approx([0.1 / 2**0.5] * 4)
    lines = {line.get_label(): line for line in curves(rows, ["fc1"], "title").axes[0].get_lines()}
    assert np.asarray(lines["AnB"].get_ydata()) == pytest.approx([0.95, 0.85])


# ---------------------------------------------------------------- whole grids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of eight classes, in which the domains differ by a shift."""
    path, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    for name, shift in (("one", 0.0), ("two", 1.0)):
        y = np.arange(480) % 8
        np.savez(path / f"{name}.npz", x=rng.normal(size=(480, 12)) + 2 * np.eye(12)[y] + shift, y=y)
    return path


def words(folder: Path, experiment: str, *more: str, steps: int = 40) -> list[str]:
    return [
        *("layer-transfer", "--config", str(PROJECT / "conf/data/features.yaml"), "--data.init_args.root", str(folder)),
        *("--data.init_args.source", "one.npz", "--data.init_args.target", "two.npz"),
        *("--data.init_args.batch_size", "32", "--model.init_args.backbone.init_args.hidden", "[16,16]"),
        *("--model.init_args.backbone.init_args.batch_norm", "true", "--trainer.max_steps", str(steps)),
        *("--trainer.accelerator", "cpu", "--trainer.logger.init_args.experiment_name", experiment, *more),
    ]


def children(experiment: str) -> dict[str, Run]:
    found = client().get_experiment_by_name(experiment)
    assert found is not None
    runs = client().search_runs([found.experiment_id])
    return {run.info.run_name: run for run in runs if "cell" in run.data.tags}


@pytest.fixture(scope="module")
def finished(folder: Path) -> pd.DataFrame:
    rows: pd.DataFrame = main(words(folder, "grid", "--jobs", "2", "--labels", "all", "40", "--depths", "1", "2"))
    return rows


def test_the_grid_is_whole(finished: pd.DataFrame) -> None:
    assert len(finished) == 1 + 2 * (1 + 2 * 5)
    assert finished["accuracy"].between(0, 1).all()
    runs = children("grid")
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in runs.values()}
    assert len(runs) == len(finished)
    for row in finished.to_dict("records"):
        run = next(run for run in runs.values() if run.info.run_id == row["run"])
        assert run.data.metrics["test/target/acc"] == row["accuracy"]
        task = setting(classes=[str(i) for i in range(8)]).task("A" if row["treatment"] == "A" else "B", 0)
        assert run.data.params["classes"] == str(task["classes"])
        assert run.info.status == "FINISHED"
    means = means_table(finished)
    for row in means.to_dict("records"):
        prefix = f"layer_transfer_{row['labels']}" if row["labels"] else "layer_transfer"
        history = client().get_metric_history(parent, f"{prefix}/{row['treatment'].replace('+', '_plus')}")
        assert [point.value for point in history if point.step == row["n"]] == [row["mean"]]
    files = {artifact.path for artifact in client().list_artifacts(parent)}
    assert files == {"config.yaml", "cells.csv", "layer_transfer.csv", "layer_transfer.png"}
    assert client().get_run(parent).info.status == "FINISHED"


@pytest.mark.parametrize(("name", "frozen"), [("A2B-s0", 2), ("A2B+-s0", 0), ("B1B-40-s0", 1), ("random2-s0", 2)])
def test_a_cell_is_what_its_name_says(finished: pd.DataFrame, name: str, frozen: int) -> None:
    """Its recorded configuration repeats it: the copied layers, the frozen ones, and the accuracy to the digit."""
    run = children("grid")[name]
    config = client().download_artifacts(run.info.run_id, "config.yaml")
    cli = main(["fit", "--config", config, "--trainer.logger", "false"])
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    assert float(cli.trainer.callback_metrics["test/target/acc"]) == run.data.metrics["test/target/acc"]
    (row,) = finished[finished["run"] == run.info.run_id].to_dict("records")
    state = {key: value for key, value in cli.model.state_dict().items() if key.startswith("backbone.")}
    start = {"A": "baseA-s0", "B": f"baseB{'-40' if row['labels'] else ''}-s0"}.get(row["treatment"][0])
    copied = [key for key in state if int(key.split(".")[1].removeprefix("fc")) <= row["n"]]
    if not start:
        assert not any(p.requires_grad for p in cli.model.backbone.parameters())
        return
    origin = children("grid")[start]
    there = torch.load(client().download_artifacts(origin.info.run_id, "checkpoints/last.ckpt"), weights_only=True)
    equal = [torch.equal(state[key], there["state_dict"][key]) for key in copied]
    assert len(equal) == 7 * row["n"]  # weights, biases and statistics of a linear layer and its batch norm
    assert all(equal) if frozen else not any(equal)
    others = [key for key in state if key not in copied and "num_batches" not in key]
    assert not any(torch.equal(state[key], there["state_dict"][key]) for key in others)


@pytest.mark.slow
def test_one_process_gives_what_two_give(finished: pd.DataFrame, folder: Path) -> None:
    """And a smaller grid is a part of the larger."""
    alone = main(words(folder, "alone", "--jobs", "1", "--depths", "2", "--treatments", "AnB", "BnB+"))
    both = finished.merge(alone, on=["labels", "treatment", "n", "seed"], suffixes=("", "_alone"))
    assert len(both) == len(alone) == 4
    assert (both["accuracy"] == both["accuracy_alone"]).all()


def test_a_finished_grid_is_read_and_can_grow(finished: pd.DataFrame, folder: Path, capsys: Any) -> None:
    before = {name: run.info.end_time for name, run in children("grid").items()}
    again = main(words(folder, "grid", "--labels", "all", "40", "--depths", "1", "2"))
    pd.testing.assert_frame_equal(again, finished)
    assert "23 of 23 trainings are already finished" in capsys.readouterr().out
    assert before == {name: run.info.end_time for name, run in children("grid").items()}


def curve(parent: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(parent, key)]


@pytest.mark.slow
def test_a_grid_that_grows_keeps_its_trainings_and_has_one_curve(folder: Path) -> None:
    """Each set of seeds has a parent with one value a step; what is gone or unfinished is trained again."""
    args = words(folder, "grows", "--depths", "1", "--treatments", "AnB", "--jobs", "1")
    main(args)
    first = children("grows")
    (small,) = {run.data.tags["mlflow.parentRunId"] for run in first.values()}
    Path(find_fit(first["baseA-s0"].info.run_id).checkpoint).unlink()
    client().delete_tag(first["baseB-s0"].info.run_id, "whole")  # as if it had been killed before its test
    rows = main([*args, "--seeds", "0", "1", "--depths", "1", "2"])
    assert len(rows) == 8
    now = children("grows")
    (large,) = {run.data.tags["mlflow.parentRunId"] for run in now.values()}
    assert large != small
    assert now["A1B-s0"].info.end_time == first["A1B-s0"].info.end_time
    assert client().get_run(first["baseB-s0"].info.run_id).info.status == "KILLED"
    before = dict(curve(small, "layer_transfer/AnB"))
    again = rows[rows["seed"] == 0].set_index(["treatment", "n"])["accuracy"]
    assert before == {0: again["B", 0], 1: again["AnB", 1]}
    means = means_table(rows)
    assert sorted(curve(large, "layer_transfer/AnB")) == list(zip(means["n"], means["mean"], strict=True))
    pd.testing.assert_frame_equal(main(args), rows)  # a part of the grid reports it all, and adds no point
    assert [step for step, _ in curve(large, "layer_transfer/AnB")] == [0, 1, 2]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.slow
def test_a_killed_worker_and_an_interruption_are_said(folder: Path) -> None:
    def kill_a_worker() -> None:
        multiprocessing.active_children()[0].kill()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def later(act: Callable[[], None]) -> None:
        until = time.monotonic() + 120
        while not multiprocessing.active_children() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        act()

    args = words(folder, "lost", "--depths", "1", "--treatments", "AnB", "--jobs", "1", steps=100_000)
    stopped = "interrupted; run the same command again"
    for act, said in ((kill_a_worker, "its process was killed"), (interrupt, stopped), (terminate, stopped)):
        threading.Thread(target=later, args=(act,), daemon=True).start()
        with pytest.raises(SystemExit, match=said):
            main(args)
        assert not multiprocessing.active_children()
    found = client().get_experiment_by_name("lost")
    assert found is not None
    assert not client().search_runs([found.experiment_id], "attributes.status = 'RUNNING'")


@pytest.mark.slow
def test_across_domains(folder: Path) -> None:
    rows = main(words(folder, "across", "--across_domains", "--depths", "2", "--treatments", "AnB"))
    assert sorted(rows["treatment"]) == ["A", "AnB", "B"]
    names = {run.data.params["domain"] for run in children("across").values()}
    assert names == {"source", "target"}


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have started."""
    ps = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    children = [int(child) for child in ps.stdout.split()]
    return [*children, *(further for child in children for further in descendants(child))]


@pytest.mark.slow
def test_after_kill_9_nothing_finished_is_run_again(folder: Path) -> None:
    args = words(folder, "killed", "--jobs", "2", "--depths", "1", "2", steps=300)
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_da", *args],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120

    def whole() -> dict[str, Run]:
        if client().get_experiment_by_name("killed") is None:
            return {}
        return {name: run for name, run in children("killed").items() if "whole" in run.data.tags}

    while not whole():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    started = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in started):  # a worker does not outlive its parent
        assert time.monotonic() < until
        time.sleep(0.2)
    before = {name: (run.info.run_id, run.info.end_time) for name, run in whole().items()}
    assert 0 < len(before) < 12
    rows = main(args)
    assert len(rows) == 12
    after = {name: (run.info.run_id, run.info.end_time) for name, run in whole().items()}
    assert {name: after[name] for name in before} == before
    left = client().search_runs([client().get_experiment_by_name("killed").experiment_id])  # type: ignore[union-attr]
    statuses = [run.info.status for run in left]
    assert "RUNNING" not in statuses
    assert statuses.count("FINISHED") == 13


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task_a", "9", "1"], "task_a: no class '9'"),
        (["--task_a", "1"], "at least two of the 8 classes"),
        (["--depths", "3"], "depths: 3 of 2 layers"),
        (["--labels", "few"], "'few' is neither a number nor `all`"),
        (["--jobs", "0"], "jobs: 0"),
        (["--labels", "7000"], "labels: there are"),
        (["--seeds", "-1"], "seeds: -1"),
        (["--seed_everything", "3"], "seed_everything: this command sets it"),
        (["--model.init_args.freeze", "1"], "model.freeze: this command sets it"),
        (["--trainer.logger", "false"], "trainer.logger: the grid is recorded in MLflow"),
        (["--trainer.devices", "2"], "trainer.devices: each training runs on one, not 2"),
        (["--model.class_path", "lightning_da.methods.DANN"], "leave out the method"),
    ],
)
def test_a_mistake_is_named(folder: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(words(folder, "mistakes", *more))


def test_a_cell_that_fails_is_named_and_the_others_run(folder: Path) -> None:
    args = words(folder, "failing", "--labels", "all", "40", "--depths", "1", "--treatments", "AnB", "BnB")
    with pytest.raises(SystemExit, match=r"3 of 7 trainings are missing; the first: .*-40-s0: "):
        main([*args, "--trainer.limit_train_batches", "0.3"])  # of one batch, which are none
    runs = children("failing")
    assert runs["A1B-s0"].data.tags["whole"] == "true"
