"""The curve over the number of labels: its cells, its table, and that it goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lightning_da.grids.labels import picture
from lightning_da.main import main
from lightning_da.store import client
from tests import toy

METHODS = ("source_only", "target_only", "fine_tune", "dann")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    toy.write_tables(tmp_path)
    return [
        *("label-curve", "--config", "data/features.yaml", "--jobs", "1", "--seeds", "0"),
        *("--config", str(Path(__file__).parent / "short.yaml"), "--data.batch_size", "16"),
        *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu"),
        f"--trainer.logger.experiment_name={tmp_path.name}",
    ]


PAIR = ("--data.source", "one.npz", "--data.target", "two.npz")


def cells(tmp_path: Path) -> dict[str, Any]:
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    found = client().search_runs([experiment.experiment_id])
    return {run.info.run_name: run for run in found if "cell" in run.data.tags}


@pytest.mark.slow
def test_each_method_learns_from_each_number_of_labels(words: list[str], tmp_path: Path, capsys: Any) -> None:
    table = main([*words, *PAIR, "--labels", "1/class", "10"])
    assert sorted(zip(table["labels"], table["method"], strict=True)) == sorted(
        [(0, "source_only"), *((number, method) for number in (2, 10) for method in METHODS[1:])]
    )
    printed = capsys.readouterr().out
    assert "labels  seeds  source_only  target_only  fine_tune" in printed
    found = cells(tmp_path)
    assert set(found) == {
        "source_only-one-two-s0",
        *(f"{method}-{number}-one-two-s0" for number in (2, 10) for method in METHODS[1:]),
    }
    assert {run.data.params["target_labels"] for run in found.values()} == {"None", "2", "10"}
    assert found["dann-2-one-two-s0"].data.params["train_on"] == "both"
    for number in (2, 10):  # it starts from the source, which is trained once
        first = found[f"fine_tune-{number}-one-two-s0"].data.tags["started_from"]
        assert first == found["source_only-one-two-s0"].info.run_id

    again = main([*words, *PAIR, "--labels", "2", "all", "--methods", "target_only"])
    assert again["labels"].tolist() == [2, 112]
    assert len(cells(tmp_path)) == len(found) + 1  # two labels are one a class

    other = main([*words, *PAIR, "--labels", "2", "--methods", "target_only", "--model.optimizer.init_args.lr=0.5"])
    assert len(other) == 1  # other settings are no other seeds


def test_one_domain(words: list[str], tmp_path: Path) -> None:
    table = main([*words, "--data.target", "two.npz", "--labels", "4"])
    assert table["method"].tolist() == ["linear_probe", "fine_tune"]
    assert set(cells(tmp_path)) == {"linear_probe-4-two-s0", "fine_tune-4-two-s0"}


@pytest.mark.parametrize("methods", [("conservative", "target_only"), ("target_only", "conservative")])
def test_a_method_that_starts_after_another_can_stand_at_any_place(
    words: list[str], tmp_path: Path, methods: tuple[str, str]
) -> None:
    main([*words, *PAIR, "--labels", "10", "--methods", *methods])
    found = cells(tmp_path)
    first = found["conservative-10-one-two-s0"].data.tags["started_from"]
    assert first == found["source_only-one-two-s0"].info.run_id
    assert "started_from" not in found["target_only-10-one-two-s0"].data.tags


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "1000"], "--labels: there are 112 training samples with a label, fewer than 1000"),
        (["--labels", "few"], "--labels: 'few' is no number of labels"),
        (["--data.target_labels", "10"], "data.target_labels: this command sets it for each training; give --labels"),
        (
            ["--methods", "dann", "--data.source", "null"],
            "the method reads a source and a target, but there is one domain",
        ),
        (["--model.domain_weight=1", "--methods", "target_only"], "unknown key 'domain_weight'"),
        (
            ["--methods", "dann", "--config", "experiment/mnist_m_dann.yaml"],
            "the options name the method lightning_da.methods.DANN; leave out --methods",
        ),
        (["--methods", "dan", "dnan"], "no method 'dnan'; did you mean 'dan'"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(words: list[str], more: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main([*words, *PAIR, *more])


def test_an_option_of_one_method_leaves_out_the_others(words: list[str], capsys: Any) -> None:
    table = main([*words, *PAIR, "--labels", "2", "--model.domain_weight=1"])
    assert table["method"].tolist() == ["dann"]
    assert "target_only: unknown key 'domain_weight'" in capsys.readouterr().err


def test_the_picture_shows_means_and_seeds() -> None:
    rows = pd.DataFrame(
        [(0, "source_only", 0, 0.3), (0, "source_only", 1, 0.5), *((n, "dann", s, 0.5 + n / 50 + s / 10)
         for n in (5, 20) for s in (0, 1))], columns=["labels", "method", "seed", "accuracy"]
    )  # fmt: skip
    (axes,) = picture(rows, "title").axes
    level, means, seeds = axes.lines
    assert level.get_ydata()[0] == pytest.approx(0.4)  # type: ignore[index]
    assert np.asarray(means.get_ydata()) == pytest.approx([0.65, 0.95])
    assert np.asarray(seeds.get_xdata()).tolist() == [5, 5, 20, 20]
