"""The prepared page of an experiment: it is made once, and what a person changes stays."""

import base64
import json
import os
import socket
import zlib
from pathlib import Path
from typing import Any

import pytest

from lightning_da.commands import compare
from lightning_da.commands.sweep import _record_comparison
from lightning_da.main import main
from lightning_da.mlflow_view import CHARTS, COLUMNS, DESCRIPTION, VIEW_TAG, view_url
from lightning_da.store import client, tracking_uri
from lightning_da.tracking import Tracker, find_experiment
from tests import recorded

NOTE = "mlflow.note.content"


def test_a_new_experiment_has_kind_metric_description_and_view(tmp_path: Path) -> None:
    Tracker(tmp_path.name)
    tags = find_experiment(tmp_path.name).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.experiment.primaryMetric.name"] == "test/target/acc"
    assert tags[NOTE] == DESCRIPTION
    view = json.loads(tags[VIEW_TAG])
    assert view["name"] == "Results"
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert state["orderByKey"] == "metrics.`test/target/acc`"
    assert state["orderByAsc"] is False
    names = [column.partition("`")[2].rstrip("`") for column in state["selectedColumns"]]
    assert names[:-4] == ["method", "seed", "pair", "test/target/acc", "test/target/class_acc", "gap_closed", "verdict"]
    of_kinds = ["h_score", "dice", "rmse", "r2"]  # of open sets, masks and regressions
    assert names[-4:] == [f"test/target/{name}" for name in of_kinds]
    assert set(state["columnOrder"]) == set(COLUMNS)
    sections = [section["uuid"] for section in state["compareRunSections"]]
    assert sections == list(CHARTS)
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == set(sections)
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])


def test_what_a_person_changed_stays_and_what_is_missing_is_added(tmp_path: Path) -> None:
    own = client().create_experiment(tmp_path.name)
    client().set_experiment_tag(own, NOTE, "mine")
    Tracker(tmp_path.name)
    assert find_experiment(tmp_path.name).tags[NOTE] == "mine"
    assert VIEW_TAG in find_experiment(tmp_path.name).tags
    client().set_experiment_tag(own, VIEW_TAG, "mine too")
    Tracker(tmp_path.name)
    assert find_experiment(tmp_path.name).tags[VIEW_TAG] == "mine too"


def test_the_address_names_the_view_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = client().get_experiment(client().create_experiment(f"bare-{tmp_path.name}"))
    Tracker(tmp_path.name)
    experiment = find_experiment(tmp_path.name)
    runs = (
        f"/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=lightning_da&workflowType=machine_learning"
    )
    assert view_url(experiment) == f"http://127.0.0.1:5000{runs}"
    assert view_url(experiment, 5001) == f"http://127.0.0.1:5001{runs}"
    assert view_url(bare) == f"http://127.0.0.1:5000/#/experiments/{bare.experiment_id}/runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:8000/")
    assert view_url(experiment) == f"http://team:8000{runs}"


def test_the_ui_names_the_experiments_and_serves_the_store(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tracker(tmp_path.name)
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.append(given))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=f"port: {port} is not free"):
            main(["ui", "--port", port])
    main(["ui", "--port", port])
    assert f"  {tmp_path.name}: {view_url(find_experiment(tmp_path.name), int(port))}\n" in capsys.readouterr().out
    ((_, command, environment),) = became
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[-2:] == ["--port", port]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == tracking_uri()
    with pytest.raises(SystemExit, match="port: 70000 is not free"):
        main(["ui", "--port", "70000"])


def test_gap_closed_and_verdict_are_put_on_the_runs_of_a_sweep(tmp_path: Path) -> None:
    Tracker(tmp_path.name)
    ids = {}
    for seed in (0, 1):
        ids["source_only", seed] = recorded.run(tmp_path.name, "source_only", seed, acc=0.4, wrong=range(100))
        ids["dann", seed] = recorded.run(tmp_path.name, "dann", seed, acc=0.7 + 0.1 * seed, wrong=range(10))
        ids["target_only", seed] = recorded.run(
            tmp_path.name, "target_only", seed, acc=0.9, params={"train_on": "target"}
        )
    experiment = find_experiment(tmp_path.name).experiment_id
    parent = client().create_run(experiment).info.run_id
    rows = compare.rows_of(compare.tested_runs(experiment))
    _record_comparison(rows, compare.comparison(rows), parent)
    found = {key: client().get_run(run_id).data for key, run_id in ids.items()}
    gaps = {key: data.metrics["gap_closed"] for key, data in found.items()}
    assert gaps["source_only", 0] == 0
    assert gaps["dann", 0] == pytest.approx(0.6)
    assert gaps["dann", 1] == pytest.approx(0.8)
    assert gaps["target_only", 1] == 1
    verdicts = {key: data.tags.get("verdict") for key, data in found.items()}
    assert [verdicts[name, 0] for name in ("source_only", "dann", "target_only")] == ["not chosen", "chosen", None]
    assert client().get_run(parent).data.tags["verdict"].startswith("chosen without target labels: dann")
    assert not client().get_run(parent).data.metrics
