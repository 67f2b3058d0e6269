"""Chains of domains: which ones there are, their cells, their table, and that they go on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_da.grids.chains import cells_table, chains_of, plan, text_of
from lightning_da.grids.engine import Result
from lightning_da.main import main
from lightning_da.store import client
from tests import toy

PAIR = ("--data.source", "one.npz", "--data.target", "two.npz")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    toy.write_tables(tmp_path)
    rng = np.random.default_rng(1)
    y = np.arange(160) % 2
    np.savez(tmp_path / "three.npz", x=rng.normal(size=(160, 5)) + 3 * y[:, None], y=y)
    np.savez(tmp_path / "wide.npz", x=rng.normal(size=(160, 6)), y=y)
    return [
        *("chains", "--config", "data/features.yaml", *PAIR, "--jobs", "1", "--seeds", "0"),
        *("--config", str(Path(__file__).parent / "short.yaml"), "--data.batch_size", "16"),
        *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu"),
        f"--trainer.logger.experiment_name={tmp_path.name}",
    ]


def test_chains_are_all_orders_of_all_selections() -> None:
    assert chains_of("a", ["b", "c"], "z", 0) == [("z",), ("a", "z")]
    assert chains_of("a", ["b", "c"], "z", 1) == [
        *(("z",), ("a", "z"), ("b", "z"), ("a", "b", "z"), ("c", "z"), ("a", "c", "z"))
    ]
    longest = chains_of("a", ["b", "c", "d"], "z", 3)
    assert len(longest) == len(set(longest)) == 2 * (1 + 3 + 6 + 6)
    assert longest[-1] == ("a", "d", "c", "b", "z")
    assert text_of(("data/a.npz", "file.mat:b")) == "a > b"


def config(source: str) -> dict[str, Any]:
    data = {"init_args": {"source": source, "target": "z", "target_labels": 4}}
    return {"data": data, "model": {"init_args": {"train_on": "source"}}, "trainer": {"callbacks": ["curve"]}}


def test_each_stop_learns_its_labels_from_the_stop_before() -> None:
    cells = plan({"a": config("a"), "b": config("b")}, chains_of("a", ["b"], "z", 1), [3])
    found = {
        tuple(cell.factors["chain"]): (
            cell.config["model"]["init_args"]["train_on"],
            cell.config["data"]["init_args"]["source"],
            cell.config["data"]["init_args"]["target_labels"],
            [tuple(base.factors["chain"]) for base in cell.bases],
            cell.config["model"]["init_args"]["keep_head"],
        )
        for cell in cells
    }
    assert found == {
        ("z",): ("target", "a", 4, [], False),
        ("a",): ("source", "a", None, [], False),
        ("a", "z"): ("target", "a", 4, [("a",)], True),
        ("b",): ("source", "b", None, [], False),
        ("b", "z"): ("target", "a", 4, [("b",)], True),
        ("a", "b"): ("source", "b", None, [("a",)], True),
        ("a", "b", "z"): ("target", "a", 4, [("a", "b")], True),
    }
    assert [tuple(cell.factors["chain"]) for cell in cells].index(("a",)) < 2
    assert {cell.config["seed_everything"] for cell in cells} == {3}


def test_the_table_has_the_accuracy_before_and_after_the_labels_of_the_target() -> None:
    accuracies = {("z",): 0.5, ("a",): 0.25, ("a", "z"): 0.75, ("a", "b"): 0.375, ("a", "b", "z"): 0.875}
    results = [
        Result({"chain": list(chain), "seed": seed}, {"test/target/acc": value + seed / 10}, 1.0, "run")
        for chain, value in accuracies.items()
        for seed in (1, 0)
    ]
    rows = cells_table(results, [("z",), ("a", "z"), ("a", "b", "z")])
    assert rows["chain"].tolist() == ["z", "z", "a > z", "a > z", "a > b > z", "a > b > z"]
    assert rows["seed"].tolist() == [0, 1] * 3
    np.testing.assert_allclose(rows["accuracy"], [0.5, 0.6, 0.75, 0.85, 0.875, 0.975])
    np.testing.assert_allclose(rows["before"], [np.nan, np.nan, 0.25, 0.35, 0.375, 0.475])


@pytest.mark.slow
def test_chains_are_fitted_once_and_start_from_one_another(words: list[str], tmp_path: Path, capsys: Any) -> None:
    more = ["--through", "three.npz", "--data.target_labels", "4"]
    table = main([*words, *more])
    assert table["chain"].tolist() == ["two", "one > two", "three > two", "one > three > two"]
    assert "without target labels" in capsys.readouterr().out
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    runs = {r.info.run_name: r for r in client().search_runs([experiment.experiment_id]) if "cell" in r.data.tags}
    started = {name: run.data.tags.get("started_from") for name, run in runs.items()}
    assert started == {
        "one-s0": None,
        "two-s0": None,
        "one-two-s0": runs["one-s0"].info.run_id,
        "three-s0": None,
        "three-two-s0": runs["three-s0"].info.run_id,
        "one-three-s0": runs["one-s0"].info.run_id,
        "one-three-two-s0": runs["one-three-s0"].info.run_id,
    }
    assert {name: run.data.params["source"] for name, run in runs.items()} == {
        **dict.fromkeys(runs, "one.npz"),
        **dict.fromkeys(("three-s0", "one-three-s0"), "three.npz"),
    }
    assert {run.data.tags["trained_on"] for name, run in runs.items() if name.endswith("two-s0")} == {"target"}
    main([*words, *more, "--longest", "0"])
    assert "3 of 3 trainings are already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--through", "two.npz"], "through: two.npz names a domain twice, or the source or the target"),
        (["--through", "three.npz", "three.npz"], "names a domain twice"),
        (["--through", "three.npz", "--longest", "2"], "longest: 2 is more than 1"),
        (["--through", "wide.npz"], "wide.npz"),
        (["--through", "three.npz", "--data.source", "null"], "there is one domain"),
        (["--through", "three.npz", "--model.keep_head", "true"], "model.keep_head: this command sets it"),
        (["--through", "three.npz", "--config", "method/dann.yaml"], "with the method FineTune"),
    ],
)
def test_mistakes_are_named(words: list[str], more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, *more])
    assert message in str(stop.value)


def test_a_mistyped_stop_is_the_fault_of_through() -> None:
    words = ["chains", "--config", "data/digits.yaml", "--data.target", "photo", "--through", "handwriten"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert "through: 'handwriten'" in str(stop.value)
    assert "data.source" not in str(stop.value)
