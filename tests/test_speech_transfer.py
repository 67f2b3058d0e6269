"""The experiment of the paper: what is trained, what starts from what, the tables, and going on where it stopped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from lightning_da.cli import TransferCLI
from lightning_da.commands.speech_transfer import fingerprint
from lightning_da.grids.engine import Cell, Result, digest
from lightning_da.grids.speech import cells_table, picture, plan
from lightning_da.grids.tables import summary
from lightning_da.main import main
from lightning_da.paths import PROJECT
from lightning_da.store import client
from lightning_da.tracking import find_fit
from tests import voices

SIZES = ["8:6", "12:6"]
WANTED = ["--seeds", "0", "--source_tasks", "none", "speaker"]


def options(pair: Path) -> list[str]:
    return [
        *("--config", str(PROJECT / "conf" / "data" / "speech.yaml")),
        f"--data.init_args.root={pair}",
        "--data.init_args.source=source.csv",
        "--data.init_args.target=target.csv",
        "--data.init_args.batch_size=4",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=10",
    ]


def words(pair: Path, *more: str) -> list[str]:
    return ["speech-transfer", *options(pair), "--sizes", *SIZES, "--jobs", "2", *more]


def children() -> dict[str, Run]:
    experiment = client().get_experiment_by_name("speech_transfer")
    assert experiment is not None
    runs = client().search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    return {run.info.run_name: run for run in runs if "cell" in run.data.tags}


# ---------------------------------------------------------------- the plan


NETWORK: dict[str, Any] = {"backbone": {"init_args": {"hidden": [1024, 1024]}}, "freeze": 1, "unfreeze_by": 0.5}
CONFIG: dict[str, Any] = {"model": {"init_args": NETWORK}, "data": {"init_args": {"root": "."}}, "trainer": {}}


def names(cells: Sequence[Cell]) -> list[str]:
    return [cell.name for cell in cells]


def test_what_is_started_from_comes_first_and_every_cell_has_a_name_and_a_seed_of_its_own() -> None:
    cells = plan(CONFIG, [0, 1], ["none", "gender", "speaker"], SIZES)
    for place, cell in enumerate(cells):
        assert set(names(cell.bases)) <= set(names(cells[:place]))
    assert len(cells) == len({cell.key for cell in cells}) == 2 * (2 * (2 + 3) + 3)
    assert len(set(names(cells))) == len({cell.config["seed_everything"] for cell in cells}) == len(cells)
    named = {cell.name: cell for cell in cells}
    assert names(named["speaker-emotion-8:6-s1"].bases) == ["speaker-8:6-s1"]
    assert names(named["emotion-8:6-s1"].bases) == []
    ensemble = named["gender-emotion-ensemble-s0"]
    assert names(ensemble.bases) == ["gender-emotion-8:6-s0", "gender-emotion-12:6-s0"]
    assert [cell.joins for cell in (ensemble, *ensemble.bases)] == [True, False, False]
    assert not any(cell.joins for cell in plan(CONFIG, [0], ["none"], ["8"]))
    assert names(plan(CONFIG, [0, 0], ["none"], ["8"])) == ["emotion-8-s0"]


def test_the_configuration_of_each_cell() -> None:
    cells = {cell.name: cell.config for cell in plan(CONFIG, [3], ["none", "gender"], SIZES)}
    made = [cells[name] for name in ("gender-8:6-s3", "gender-emotion-8:6-s3")]
    assert [config["data"]["init_args"] for config in made] == [
        {"root": ".", "task": "gender", "seed": 3},
        {"root": ".", "task": "emotion", "seed": 3},
    ]
    given = [config["model"]["init_args"] for config in made]
    assert [part["backbone"]["init_args"]["hidden"] for part in given] == [[8, 6], [8, 6]]
    assert [(part["train_on"], part["freeze"], part["unfreeze_by"]) for part in given] == [
        ("source", 0, None),  # random layers are not frozen
        ("target", 1, 0.5),
    ]
    assert [len(config["trainer"]["callbacks"]) for config in made] == [0, 1]
    assert NETWORK == {"backbone": {"init_args": {"hidden": [1024, 1024]}}, "freeze": 1, "unfreeze_by": 0.5}


# ---------------------------------------------------------------- the result


def results() -> list[Result]:
    done = {}
    for seed in (0, 1):
        done["target", "speaker", "ensemble", seed] = 0.9
        done["source", "speaker", "12:6", seed] = 0.7 + seed / 10
        done["target", "speaker", "12:6", seed] = 0.6
        done["target", "speaker", "8:6", seed] = 0.5 + seed / 10
        done["target", "none", "8:6", seed] = 0.4
    metrics = ("test/target/acc", "test/target/class_precision", "test/target/class_acc", "test/source/acc")
    return [
        Result(
            dict(zip(("learns", "source task", "network", "seed"), factors, strict=True)),
            {name: value - place / 100 for place, name in enumerate(metrics)},
            1.0,
            str(factors),
        )
        for factors, value in done.items()
    ]


def test_the_tables_hold_means_and_deviations_in_the_order_of_the_paper() -> None:
    rows = cells_table(results())
    by = ["source task", "network"]
    means = summary(rows[rows["learns"] == "target"], by, ["accuracy", "MAP", "UAR"])
    assert list(means.index) == [("none", "8:6"), ("speaker", "8:6"), ("speaker", "12:6"), ("speaker", "ensemble")]
    assert means.loc[("speaker", "8:6"), ("accuracy", "mean")] == pytest.approx(55)
    assert means.loc[("speaker", "8:6"), ("MAP", "std")] == pytest.approx(np.std([50, 60], ddof=1))
    errors = summary(rows[rows["learns"] == "source"], by, ["error"])
    assert errors.loc[("speaker", "12:6"), ("error", "mean")] == pytest.approx(100 - 75 + 3)
    (axes,) = picture(rows, "title").axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["baseline", "after speaker"]
    tops = [bar.get_window_extent().y1 for bar in axes.patches]
    assert tops[0] < tops[1]


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("pair")
    voices.pair(folder)
    return folder, main(words(folder, *WANTED))


@pytest.mark.slow
def test_every_cell_is_a_run_below_one(finished: tuple[Path, pd.DataFrame]) -> None:
    _, rows = finished
    assert len(rows) == 8
    found = children()
    parents = {run.data.tags["mlflow.parentRunId"] for run in found.values()}
    parent = client().get_run(parents.pop())
    assert not parents
    assert parent.info.run_name == "speech-transfer-source-target"
    assert {"source_error/speaker_8-6", "accuracy/none_8-6", "MAP/speaker_ensemble", "UAR/speaker_12-6"} <= set(
        parent.data.metrics
    )
    files = {file.path for file in client().list_artifacts(parent.info.run_id)}
    assert {"cells.csv", "config.yaml", "speech_transfer.png"} <= files
    second = found["speaker-emotion-8:6-s0"]
    assert second.data.tags["started_from"] == found["speaker-8:6-s0"].info.run_id
    assert second.data.params["backbone.hidden"] == "[8, 6]"
    assert (second.data.params["train_on"], second.data.params["task"]) == ("target", "emotion")
    first = found["speaker-8:6-s0"].data.params
    assert (first["train_on"], first["task"]) == ("source", "speaker")
    assert "started_from" not in found["emotion-8:6-s0"].data.tags
    members = found["speaker-emotion-ensemble-s0"].data.tags["started_from"].split(", ")
    assert members == [found[f"speaker-emotion-{size}-s0"].info.run_id for size in SIZES]


@pytest.mark.slow
@pytest.mark.slow
def test_what_is_there_is_not_run_again_and_what_is_missing_is(
    finished: tuple[Path, pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = finished
    before = children()
    assert main(words(folder, *WANTED)).equals(rows)
    assert "8 of 8 trainings are already finished" in capsys.readouterr().out
    # as an interruption leaves it: a first stage whose checkpoint is gone, and a second stage that did not end
    gone = before["speaker-12:6-s0"].info.run_id
    Path(find_fit(gone).checkpoint).unlink()
    client().delete_tag(before["speaker-emotion-12:6-s0"].info.run_id, "whole")
    again = main(words(folder, *WANTED))
    figures: Any = again.drop(columns=["run", "seconds"])
    pd.testing.assert_frame_equal(figures, rows.drop(columns=["run", "seconds"]))
    changed = {name for name, run in children().items() if run.info.run_id != before[name].info.run_id}
    assert changed == {"speaker-12:6-s0", "speaker-emotion-12:6-s0"}
    factors = json.loads(children()["speaker-12:6-s0"].data.tags["cell"])
    assert factors == {"learns": "source", "source task": "speaker", "network": "12:6", "seed": 0}


def test_other_labels_or_sizes_are_another_experiment(pair: Path) -> None:
    def name(*sizes: str) -> str:
        cli = TransferCLI("fit", ["--config", "method/speech_ffn.yaml", "--after", "null", *options(pair)]).build()
        return digest(cli.plain(), sizes, fingerprint(cli.datamodule))

    first = name("8", "12")
    assert name("8", "12") == first
    assert name("8", "16") != first
    rows = voices.rows(pair / "source.csv")
    rows[1]["speaker"], rows[9]["speaker"] = rows[9]["speaker"], rows[1]["speaker"]
    voices.manifest(pair / "source.csv", rows)
    assert name("8", "12") != first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.init_args.init_from", "x"], "init_from"),
        (["--data.init_args.task", "gender"], "data.task: speech-transfer sets it"),
        (["--data.init_args.seed", "1"], "data.seed: speech-transfer sets it"),
        (["--sizes", "8x8"], "sizes: '8x8' is no list of widths"),
        (["--sizes", "8:6", "8:6"], "sizes: 8:6 8:6 has a duplicate"),
        (["--after=speech_gender"], "--after: speech-transfer sets it for each training; give --source_tasks"),
        (
            ["--model.init_args.backbone.init_args.hidden", "[8]"],
            "speech-transfer sets it for each training; give --sizes",
        ),
        (["--model.backbone.init_args.hidden", "[8]"], "speech-transfer sets it for each training; give --sizes"),
        (["--model.backbone.hidden=[8]"], "speech-transfer sets it for each training; give --sizes"),
        (["--seeds", "-1"], "seeds: -1 is less than 0"),
        (["--jobs", "0"], "jobs: 0 is less than 1"),
        (["--trainer.logger", "false"], "the grid is recorded in MLflow"),
        (["--data.init_args.features", "IS21"], "no feature set 'IS21'"),
        (["--data.init_args.batch_size", "64"], "fewer than a batch of 64"),
    ],
)
def test_what_is_refused(pair: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words(pair, *more))
    assert message in str(stop.value)
    assert stop.value.code == 2
