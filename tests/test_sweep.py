"""Sweeps: what is run, what is not run again, and code and files of one's own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run

from lightning_da.main import main
from lightning_da.store import client

METHOD = '''
from torch import Tensor

from lightning_da.methods import AdaptationModule, DomainBatch
from my_helper import FACTOR


class Mine(AdaptationModule):
    """The distance of the means."""

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        return FACTOR * (source.layers[0].mean(0) - target.layers[0].mean(0)).square().sum()
'''


@pytest.fixture
def words(tmp_path: Path) -> Iterator[list[str]]:
    """A sweep of two methods, one of them of the working folder, on two tables."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(120, 5)), y=np.arange(120) % 3)
    (tmp_path / "my_method.py").write_text(METHOD)
    (tmp_path / "my_helper.py").write_text("FACTOR = 1.0\n")
    (tmp_path / "mine.yaml").write_text("name: mine\nmodel:\n  class_path: my_method.Mine\n")
    yield [
        *("sweep", "--methods", "source_only", "mine.yaml", "--config", "data/features.yaml", "--jobs", "1"),
        *(
            "--data.source",
            "one.npz",
            "--data.target",
            "two.npz",
            "--data.batch_size",
            "16",
            "--trainer.max_steps",
            "2",
        ),
        *("--trainer.accelerator", "cpu", f"--trainer.logger.experiment_name={tmp_path.name}"),
        f"--config={Path(__file__).parent / 'short.yaml'}",
    ]
    for name in ("my_method", "my_helper"):  # those of the next test are in another folder
        sys.modules.pop(name, None)


def runs(tmp_path: Path) -> tuple[list[Run], list[Run]]:
    """The runs of sweeps, and those of single trainings, in the order of their start."""
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    found = client().search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    return [r for r in found if "grid" in r.data.tags], [r for r in found if "cell" in r.data.tags]


def test_a_sweep_goes_on_where_it_was(words: list[str], tmp_path: Path, capsys: Any) -> None:
    table = main(words)
    assert table["method"].tolist() == ["source_only", "mine"]
    ((parent,), children) = runs(tmp_path)
    chart = f"#/experiments/{parent.info.experiment_id}/runs?viewStateShareKey=lightning_da"
    assert chart in capsys.readouterr().out
    assert [run.info.run_name for run in children] == ["source_only-one-two-s0", "mine-one-two-s0"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.tags["pair"] for run in (parent, *children)} == {"one.npz -> two.npz"}
    assert {file.path for file in client().list_artifacts(parent.info.run_id)} == {
        "config.yaml",
        "sweep.csv",
        "sweep.png",
    }

    capsys.readouterr()
    again = main([*words, "--seeds", "0", "1"])
    assert again["seeds"].tolist() == [2, 2]
    assert "2 of 4 trainings are already finished" in capsys.readouterr().out
    assert [run.info.run_name for run in runs(tmp_path)[1]][2:] == ["source_only-one-two-s1", "mine-one-two-s1"]


@pytest.mark.slow
def test_a_method_with_other_settings_or_other_code_is_trained_again_alone(
    words: list[str], tmp_path: Path, capsys: Any
) -> None:
    main(words)
    capsys.readouterr()
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text() + "  init_args:\n    domain_weight: 2.0\n")
    main(words)
    assert "1 of 2 trainings are already finished" in capsys.readouterr().out

    (tmp_path / "my_method.py").write_text(METHOD.replace(".square()", ".abs()"))
    main(words)
    assert "1 of 2 trainings are already finished" in capsys.readouterr().out
    (tmp_path / "my_helper.py").write_text("FACTOR = 2.0\n")
    main(words)
    assert "1 of 2 trainings are already finished" in capsys.readouterr().out
    assert len(runs(tmp_path)[0]) == 1


def test_a_sweep_of_which_nothing_can_run_is_an_error_also_where_other_trainings_are_there(
    words: list[str], tmp_path: Path
) -> None:
    with np.load(tmp_path / "two.npz") as labelled:
        np.savez(tmp_path / "two.npz", x=labelled["x"])
    main([*words, "--methods", "source_only"])
    with pytest.raises(SystemExit, match=r"2 of 2 trainings are missing; the first: target_only-one-two-s0: domain"):
        main([*words, "--methods", "target_only", "linear_probe"])
    ((parent,), children) = runs(tmp_path)
    assert parent.info.status == "FAILED"
    assert [run.info.status for run in children] == ["FINISHED"]  # a fit that is refused leaves no run


def test_a_named_method_that_cannot_be_trained_is_an_error_after_the_others(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(tmp_path / "two.npz") as labelled:
        np.savez(tmp_path / "two.npz", x=labelled["x"])
    with pytest.raises(SystemExit, match=r"1 of 2 cannot run; the first: target_only-one-two-s0: domain"):
        main([*words, "--methods", "source_only", "target_only"])
    assert "\nsource_only " in capsys.readouterr().out  # the table
    _, children = runs(tmp_path)
    assert [run.info.status for run in children] == ["FINISHED"]
    place = words.index("--methods")
    table = main([word for at, word in enumerate(words) if not place <= at <= place + 2])  # the methods of a sweep
    assert "target_only" not in set(table["method"])


def test_options_that_one_method_does_not_take_leave_out_that_method(words: list[str], capsys: Any) -> None:
    table = main([*words, "--model.domain_weight", "0.5"])
    assert table["method"].tolist() == ["mine"]
    assert "source_only: unknown key 'domain_weight'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "dnan"], "no method 'dnan'; did you mean 'dan'"),
        (["--methods", "nowhere/mine.yaml"], "no file 'nowhere/mine.yaml'"),
        (["--seed_everything", "3"], "seed_everything: this command sets it"),
        (["--seeds", "-1"], "seeds: -1 is less than 0"),
        (["--jobs", "0"], "jobs: 0 is less than 1"),
        (["--trainer.logger", "false"], "the grid is recorded in MLflow"),
        (["--data.target", "one.npz"], "source 'one.npz' and target 'one.npz' are the same data"),
        (["--data.target", "./one.npz"], "source 'one.npz' and target './one.npz' are the same data"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(words: list[str], more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, *more])
    assert message in str(stop.value)
    assert stop.value.code == 2


def test_a_sweep_of_one_domain_compares_the_methods_that_read_one(words: list[str], capsys: Any) -> None:
    given = [
        word for word in words if word not in ("--methods", "source_only", "mine.yaml", "--data.source", "one.npz")
    ]
    table = main(given)
    assert table["method"].tolist() == ["linear_probe", "fine_tune"]
    printed = capsys.readouterr().out
    assert "\ntwo.npz, test split" in printed
    assert "chosen without target labels" not in printed
    with pytest.raises(SystemExit, match="the method reads a source and a target, but there is one domain"):
        main([*given, "--methods", "dann"])
