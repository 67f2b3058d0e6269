"""The search for settings: its space, its trials, and that it goes on."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from lightning_da import methods, testing
from lightning_da.callbacks.prune_trial import PruneTrial
from lightning_da.commands.search import _space_file
from lightning_da.errors import ConfigError
from lightning_da.grids import search as grid
from lightning_da.grids.space import as_words, as_yaml, corners, read_space
from lightning_da.main import main
from lightning_da.methods import FineTune
from lightning_da.networks.backbones import FeedForward
from lightning_da.paths import CONF
from lightning_da.store import client
from tests import toy

LR = "model.init_args.optimizer.init_args.lr"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    toy.write_tables(tmp_path)
    (tmp_path / "space.yaml").write_text(
        "model.optimizer.init_args.lr: {low: 1e-4, high: 1e-1, log: true}\ndata.batch_size: {choices: [8, 16]}\n"
    )
    (tmp_path / "scores.yaml").write_text(
        "trainer:\n  callbacks:\n"  # one callback needs no list
        "    class_path: lightning_da.callbacks.LabelFreeScores\n    init_args: {scores: [neighbours]}\n"
    )
    return [
        *("search", "--config", "method/deep_coral.yaml", "--config", "data/features.yaml", "--jobs", "1"),
        *("--data.source", "one.npz", "--data.target", "two.npz", "--space", "space.yaml", "--config", "scores.yaml"),
        *("--trainer.max_steps", "8", "--trainer.accelerator", "cpu", "--model.backbone.hidden=[4]"),
        f"--trainer.logger.experiment_name={tmp_path.name}",
    ]


def runs(tmp_path: Path) -> dict[str, Any]:
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    return {str(run.info.run_name): run for run in client().search_runs([experiment.experiment_id])}


def settings(table: pd.DataFrame) -> list[tuple[int, float, int]]:
    ordered = table.sort_values("trial")
    return list(zip(ordered["trial"], ordered[LR], ordered["data.init_args.batch_size"], strict=True))


@pytest.mark.slow
def test_a_search_that_goes_on_is_the_unbroken_one(words: list[str], tmp_path: Path, capsys: Any) -> None:
    main([*words, "--trials", "2", "--journal", "broken.journal", "--name", "broken"])
    assert "best of 2 trials" in capsys.readouterr().out
    table = main([*words, "--trials", "3", "--journal", "broken.journal", "--name", "broken"])
    printed = capsys.readouterr().out
    assert "[3/3] score/neighbours" in printed
    assert "[2/3]" not in printed
    whole = main([*words, "--trials", "3", "--journal", "whole.journal"])
    assert settings(table) == settings(whole)
    assert table["score"].tolist() == whole["score"].tolist()

    found = runs(tmp_path)
    parent = found["broken"]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["selection"] == "score/neighbours"
    assert parent.data.metrics["best"] == table["score"].max()
    children = [run for run in found.values() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    for run in children:
        assert not [key for key in run.data.metrics if key.startswith("test/")]  # the target's test labels stay unread
        row = table[table["run"] == run.info.run_id].iloc[0]
        assert run.data.metrics["score/neighbours"] == row["score"]
        assert float(run.data.params["optimizer.lr"]) == row[LR]

    best = Path(parent.info.artifact_uri.removeprefix("file://")) / "best.yaml"
    shown = printed.split("--config ")[-1].strip()
    assert Path(shown).resolve() == best.resolve()
    cli = main(["fit", *words[1:5], *words[7:11], "--config", shown, *words[15:], "--trainer.logger", "false"])
    assert cli.config.model.init_args.optimizer.init_args.lr == table[LR][0]
    assert cli.config.data.init_args.batch_size == table["data.init_args.batch_size"][0]


def test_trials_share_their_first_stage_and_a_diverged_one_does_not_win(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("model.optimizer.init_args.lr: {choices: [0.001, 1e30]}")
    table = main([*words, "--trials", "3", "--after", "source_only", "--score", "neighbours"])
    assert sorted(name.split("-")[0] for name in runs(tmp_path)) == ["deep_coral"] * 3 + ["search", "source_only"]
    diverged = table[table[LR] == 1e30]
    assert 0 < len(diverged) < 3
    assert diverged["score"].isna().all()
    assert (diverged["state"] == "failed").all()


def test_the_oracle_is_asked_for_by_name_and_labelled(words: list[str], tmp_path: Path, capsys: Any) -> None:
    table = main([*words, "--trials", "1", "--oracle"])
    assert "oracle: it reads target labels" in capsys.readouterr().out
    parent = next(run for name, run in runs(tmp_path).items() if name.startswith("search"))
    assert "oracle" in parent.data.tags["selection"]
    assert client().get_run(table["run"][0]).data.metrics["val/target/acc"] == table["score"][0]


def test_trials_of_a_dead_process_run_again_and_those_of_a_living_one_do_not(tmp_path: Path) -> None:
    study = grid._open(tmp_path / "s.journal")
    study.set_user_attr(grid.RUN, "none")
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}
    dead, alive = study.ask(space), study.ask(space)
    dead.set_user_attr(grid.HELD_BY, "s.dead.held")
    experiment = client().create_experiment(tmp_path.name)
    with grid._holding(tmp_path / "s.journal") as held:
        alive.set_user_attr(grid.HELD_BY, held)
        grid._restart_interrupted(study, tmp_path / "s.journal", experiment)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    assert study.ask(space).params == dead.params
    assert not grid._ended(study)  # the interrupted trial does not count
    assert not list(tmp_path.glob("*.held"))


def test_a_restarted_trial_does_not_change_what_comes_after(tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}
    drawn = {}
    for name in ("whole", "killed"):
        journal = tmp_path / f"{name}.journal"
        search, study = grid.Search("s", {}, [], space, "score/snd", False, journal, trials=4), grid._open(journal)
        study.set_user_attr(grid.RUN, "none")
        found = []
        for number in range(4):
            trial = grid._ask(search, study, 0, "gone.held")
            if name == "killed" and number == 1:
                grid._restart_interrupted(study, journal, client().create_experiment(tmp_path.name))
                trial = grid._ask(search, study, 0, "gone.held")
            assert trial is not None
            found.append(trial.params["x"])
            study.tell(trial, number / 4)
        drawn[name] = found
    assert drawn["whole"] == drawn["killed"]


def test_a_command_that_ends_while_another_runs_reports_what_is_there(words: list[str], tmp_path: Path) -> None:
    journal = tmp_path / "s.journal"
    with grid._holding(journal) as held:
        trial = grid._open(journal).ask({})
        trial.set_user_attr(grid.HELD_BY, held)
        assert main([*words, "--trials", "1", "--journal", "s.journal"]).empty
    (parent,) = runs(tmp_path).values()
    assert parent.info.status == "RUNNING"


def test_two_commands_do_not_start_too_many_trials(tmp_path: Path) -> None:
    journal = tmp_path / "s.journal"
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}
    searches = [grid.Search("s", {}, [], space, "score/snd", False, journal, trials=3) for _ in range(2)]
    studies = [grid._open(journal) for _ in range(2)]
    asked = [grid._ask(searches[i % 2], studies[i % 2], 0, "held") for i in range(6)]
    assert [trial is None for trial in asked] == [False] * 3 + [True] * 3
    assert len({trial.params["x"] for trial in asked if trial is not None}) == 3


@pytest.mark.parametrize(("others", "ends"), [(2.0, True), (-1.0, False)])
def test_a_trial_worse_than_the_median_ends_early(others: float, ends: bool) -> None:
    study = optuna.create_study(direction="maximize")
    for _ in range(5):
        trial = study.ask()
        for step in range(30):
            trial.report(others, step)
        study.tell(trial, others)

    class Scored(FineTune):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.log("score/snd", torch.tensor(0.5))

    prune = PruneTrial(study.ask(), "score/snd")
    ended = testing.trainer(24, limit_val_batches=1, val_check_interval=1, callbacks=[prune])
    ended.fit(testing.build(Scored, 0), datamodule=testing.Toy())
    assert prune.pruned == ends
    assert (8 <= ended.global_step < 12) if ends else ended.global_step == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no options; for example"),
        ("[1, 2]", "has no options"),
        ("a: [", "is no YAML file"),
        ("a: 3", "a in .*: 3 is no range and no choices; for example"),
        ("a: {low: 1}", "a range has low and high"),
        ("a: {low: 1, high: 2, max: 3}", "no key 'max'"),
        ("a: {low: 2, high: 1}", "low 2 is not less than high 1"),
        ("a: {low: 0, high: 1, log: true}", "low of 0 or less"),
        ("a: {low: 0, high: .nan}", "nan is no finite number"),
        ("a: {low: zero, high: 1}", "could not convert string to float: 'zero'"),
        ("a: {low: 0, high: 1, step: 2}", "step 2 is not between 0 and high - low"),
        ("a: {low: 0, high: 1, log: 3}", "log is true or false"),
        ("a: {choices: [1]}", "a list of at least two values"),
        ("a: {choices: [1, 1]}", "a choice is there twice"),
        ("a: {choices: [1, 2]}\na.b: {choices: [1, 2]}", r"a\.b in .* is a part of a; .* give a\.class_path"),
        ("model.lr: {choices: [1, 2]}\nmodel.init_args.lr: {choices: [1, 2]}", "has model.init_args.lr twice"),
    ],
)
def test_a_space_that_cannot_be_meant(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_space(path)


@pytest.mark.parametrize("file", sorted((CONF / "method").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_method_has_its_own_space_or_the_common_one(file: Path) -> None:
    own = CONF / "space" / file.name
    found = _space_file(None, file.stem)
    assert found == (own if own.is_file() else CONF / "space" / "adaptation.yaml")
    if found == own:
        model = yaml.safe_load(file.read_text())["model"]
        kind = getattr(methods, model["class_path"].rpartition(".")[2])
        for corner in corners(read_space(own)):
            given = {key.removeprefix("model.init_args."): value for key, value in corner.items()}
            settings = model["init_args"] | {key: value for key, value in given.items() if "." not in key}
            plain = {key: value for key, value in settings.items() if not isinstance(value, dict | str)}
            assert given.keys() - plain.keys() <= {"optimizer.init_args.lr"}
            testing.build(kind, bottleneck=partial(FeedForward, hidden=[4], activation="tanh"), **plain)
    with pytest.raises(ConfigError, match=r"^space: no file 'none\.yaml'"):
        _space_file("none.yaml", file.stem)


def test_a_space_becomes_options_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "model.lr: {low: 1e-4, high: 1, log: true}\nmodel.n: {low: 1, high: 4}\nmodel.l: {choices: [[a], null, b]}"
    )
    space = read_space(path)
    first, second, third = corners(space)
    assert first == {"model.init_args.lr": 1e-4, "model.init_args.n": 1, "model.init_args.l": ["a"]}
    assert second == {"model.init_args.lr": 1.0, "model.init_args.n": 4, "model.init_args.l": None}
    assert as_words(third)[2] == "--model.init_args.l=b"
    assert as_words(first)[2] == '--model.init_args.l=["a"]'
    assert as_yaml({"a.b": [1], "a.c.d": None}) == "a:\n  b:\n  - 1\n  c:\n    d: null\n"
    (tmp_path / "more.yaml").write_text("a: {choices: [1e-3, '1e']}")
    assert corners(read_space(tmp_path / "more.yaml")) == [{"a": 0.001}, {"a": "1e"}]
    study = optuna.create_study()
    assert isinstance(study.ask(space).params["model.init_args.n"], int)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--score", "val/target/acc"], "score: val/target/acc reads target labels; .* give --oracle"),
        (["--score", "test/target/acc"], "reads target labels"),
        (["--score", "nei"], "score: no score 'nei'"),
        (["--score", "snd", "--oracle"], "give one of them"),
        (["--score", "snd"], "no lightning_da.callbacks.LabelFreeScores computes 'snd'"),
        (["--trials", "0"], "trials: 0 is less than 1"),
        (["--jobs", "0"], "jobs: 0 is less than 1"),
        (["--space", "no.yaml"], "space: no file 'no.yaml'"),
        (["--config", "method/fine_tune.yaml", "--space", "space/adaptation.yaml"], "unknown key 'domain_weight'"),
        (["--trainer.limit_val_batches", "0"], "limit_val_batches: without validation there is no score"),
        (["--journal", "."], "journal: . cannot be written: Is a directory"),
        (["--journal", "one.npz"], "journal: one.npz is no file of a search"),
        (["--data.source", "null"], "reads a source and a target|scores compare two domains"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(
    words: list[str], more: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        main([*words, "--trials", "1", *more])
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is None or not client().search_runs([experiment.experiment_id])


def test_the_picture_has_a_panel_for_each_option(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("a.lr: {low: 0.1, high: 10, log: true}\na.kind: {choices: [x, [1]]}")
    search = grid.Search("s", {}, [], read_space(tmp_path / "s.yaml"), "score/snd", False, tmp_path, 3)
    table = pd.DataFrame({"score": [0.9, 0.5, None], "a.lr": [1.0, 0.2, 5.0], "a.kind": ["x", [1], "x"]})
    drawn = grid.picture(search, table)
    assert [axes.get_xlabel() for axes in drawn.axes] == ["a.lr", "a.kind"]
    points, best = drawn.axes[1].lines
    assert np.asarray(points.get_xdata()).tolist() == [0, 1]
    assert np.asarray(best.get_ydata()).tolist() == [0.9]


def test_a_lock_of_a_living_process_is_held(tmp_path: Path) -> None:
    with grid._holding(tmp_path / "folder" / "s.journal") as held, pytest.raises(TimeoutError):
        FileLock(tmp_path / "folder" / held, timeout=0).acquire()
