"""Numbers as labels: data, loss, scores, methods and commands."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from lightning_da import methods
from lightning_da.data import DataError, FeatureTables
from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError
from lightning_da.main import main as lightning_da
from lightning_da.methods import (
    ADDA,
    CMD,
    DAN,
    DANN,
    DLID,
    DRCN,
    JAN,
    OSBP,
    Classifier,
    Conservative,
    DeepCORAL,
    FineTune,
    MarginEnsemble,
    MultiTask,
)
from lightning_da.methods.regression import LabelScale, RegressionScores
from lightning_da.store import client
from lightning_da.testing import ADAM, build, ready
from lightning_da.tracking import find_experiment
from tests.toy import DANN_OF_TABLES, accuracy, fit

REGRESSORS = (FineTune, DAN, DANN, DeepCORAL, CMD, DRCN, DLID)


def write(path: Path, shift: float = 0.0, number: int = 400, unit: float = 1.0) -> None:
    """A number that is a linear function of two of eight values; `shift` widens the other six."""
    rng = np.random.default_rng([int(shift), number])
    x = rng.normal(size=(number, 8))
    y = unit * (3 * x[:, 0] - 2 * x[:, 1] + 50 + rng.normal(0, 0.1, number))
    x[:, 2:] *= 1 + shift
    np.savez(path, x=x.astype(np.float32), y=y)


def pair(unit: float = 1.0, **kwargs: Any) -> FeatureTables:
    write(Path("here.npz"), unit=unit)
    write(Path("there.npz"), shift=10, unit=unit)
    return FeatureTables("here.npz", "there.npz", batch_size=32, **{"labels": "numbers"} | kwargs)


def test_batches_have_numbers_and_the_target_none() -> None:
    data = pair()
    data.check()
    assert (data.num_classes, data.classes) == (1, [])
    with np.load("here.npz") as file:
        expected = torch.from_numpy(file["y"]).float()
    found = [data.dataset("here.npz", split) for split in ("train", "val", "test")]
    rows = torch.cat([torch.tensor([int(name) for name in part.names]) for part in found])
    numbers = torch.cat([part[i][1][None] for part in found for i in range(len(part))])
    torch.testing.assert_close(numbers, expected[rows])
    batch = next(iter(data.train_dataloader()))[0]
    assert batch["source"][1].dtype == torch.float32
    assert isinstance(batch["target"], torch.Tensor)


def test_an_empty_label_is_unknown_and_a_word_is_refused() -> None:
    for name, labels in (
        ("a", ["1.5", "", "nan", "-2"]),
        ("b", ["1.5", "red", "2", "3"]),
        ("c", ["1", "2", "inf", "4"]),
    ):
        lines = [f"{i},{-i},{label}" for i, label in enumerate(labels * 10)]
        Path(f"{name}.csv").write_text("\n".join(["u,v,label", *lines]))
    data = FeatureTables("a.csv", "b.csv", labels="numbers")
    parts = [data.dataset("a.csv", split) for split in ("train", "val", "test")]
    found = torch.cat([part[i][1][None] for part in parts for i in range(len(part))])
    assert sorted(found[~found.isnan()].tolist()) == [-2.0] * 10 + [1.5] * 10
    assert found.isnan().sum() == 20
    with pytest.raises(DataError, match=r"b\.csv: label 'red' in 'label' is no finite 32-bit number"):
        data.dataset("b.csv", "train")
    with pytest.raises(DataError, match=r"c\.csv: label 'inf' in 'label' is no finite 32-bit number"):
        FeatureTables("a.csv", "c.csv", labels="numbers").dataset("c.csv", "train")


def test_fingerprints_tell_numbers_apart() -> None:
    assert pair().fingerprint() == pair().fingerprint() != pair(unit=2.0).fingerprint()


def test_the_loss_is_the_squared_error_of_known_labels_in_the_scale_of_the_source() -> None:
    model = ready(FineTune, num_classes=1)
    y = torch.tensor([1.0, 5.0, torch.nan, 9.0], dtype=torch.float64)
    model.label_scale.fit(y)
    known = y[[0, 1, 3]]
    scaled = (known - known.mean()) / known.std(correction=0)
    outputs = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    loss = model.task_loss(outputs, y)
    torch.testing.assert_close(loss, (outputs[[0, 1, 3], 0].float() - scaled).square().mean())
    torch.testing.assert_close(model.label_scale.inverse(scaled), known.float())
    assert torch.autograd.grad(loss, outputs)[0][2] == 0
    assert model.task_loss(outputs, torch.full((4,), torch.nan)).item() == 0


def test_a_constant_label_has_a_finite_scale() -> None:
    scale = LabelScale()
    scale.fit(torch.full((5,), 3.0))
    assert scale(torch.tensor([3.0, 4.0])).tolist() == [0, 1]


def test_scores_are_those_of_scikit_learn_in_the_unit_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    true, answered = 1e5 + 100 * rng.normal(size=(2, 90))
    true[7] = np.nan
    scale, scores = LabelScale(), RegressionScores()
    scale.fit(torch.from_numpy(true))
    for rows in (slice(0, 50), slice(50, 90)):
        scores.update(*(scale(torch.from_numpy(part[rows])) for part in (answered, true)))
    known = ~np.isnan(true)
    t, a = true[known], answered[known]
    expected = {"rmse": root_mean_squared_error(t, a), "mae": mean_absolute_error(t, a), "r2": r2_score(t, a)}
    found = {name: value.item() for name, value in scores.compute(scale.deviation).items()}
    assert found == pytest.approx(expected, rel=1e-3)
    scores.reset()
    scores.update(torch.zeros(3), torch.full((3,), torch.nan))
    assert scores.compute(scale.deviation) == {}


def test_a_few_values_of_the_target_are_counted_without_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_da.data.base.rank_zero_info", said.append)
    fit(build(FineTune, train_on="both", num_classes=1, optimizer=ADAM), 1, pair(target_labels=7))
    (line,) = [text for text in said if text.startswith("target_labels")]
    assert line.startswith("target_labels: 7 of the 280 training samples of 'there.npz' keep their value, drawn with")


@pytest.mark.parametrize("kind", REGRESSORS)
def test_a_regressor_learns(kind: Any) -> None:
    data = pair()
    steps = 120 if kind in (DRCN, DLID) else 40  # the autoencoders learn beside
    found = accuracy(fit(build(kind, num_classes=1, optimizer=ADAM), steps, data), data)
    assert found.keys() == {f"test/{domain}/{name}" for domain in DOMAINS for name in ("rmse", "mae", "r2")}
    assert found["test/source/r2"] > 0.7


def test_the_unit_of_the_labels_does_not_matter() -> None:
    plain, large = (
        accuracy(fit(build(FineTune, num_classes=1, optimizer=ADAM), 10, pair(unit)), pair(unit))
        for unit in (1.0, 1000.0)
    )
    assert large["test/source/rmse"] == pytest.approx(1000 * plain["test/source/rmse"], rel=1e-3)


def test_adaptation_lowers_the_error() -> None:
    data = pair()
    plain, adapted = (
        accuracy(fit(build(kind, num_classes=1, optimizer=ADAM), 80, data), data) for kind in (FineTune, DeepCORAL)
    )
    assert adapted["test/target/rmse"] < 0.8 * plain["test/target/rmse"]


def test_no_number_of_the_target_is_read() -> None:
    one = fit(build(DANN, num_classes=1), 4, pair()).state_dict()
    with np.load("there.npz") as file:
        np.savez("there.npz", x=file["x"], y=2 * file["y"] + 1)  # in the same order, so that the splits are the same
    data = FeatureTables("here.npz", "there.npz", batch_size=32, labels="numbers")
    other = fit(build(DANN, num_classes=1), 4, data).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_needs_classes_is_refused() -> None:
    for kind in (ADDA, JAN, OSBP, Conservative, MultiTask):
        with pytest.raises(
            ConfigError, match=f"the labels are numbers, and {kind.__name__} needs classes; take source"
        ):
            build(kind, num_classes=1)
    able = {kind for name in methods.__all__ if getattr(kind := getattr(methods, name), "can_regress", False)}
    assert able == {*REGRESSORS, MarginEnsemble}
    assert not Classifier.can_regress


def test_an_ensemble_answers_with_the_mean_of_its_members() -> None:
    members = [build(FineTune, num_classes=1).eval() for _ in range(2)]
    for member, numbers in zip(members, ([100.0, 102.0], [90.0, 130.0]), strict=True):
        member.label_scale.fit(torch.tensor(numbers))
    ensemble = MarginEnsemble(num_classes=1, input_shape=members[0].input_shape, members=members).eval()
    x = torch.randn(5, *members[0].input_shape)
    expected = sum(member.predict_step((x,), 0) for member in members) / 2
    torch.testing.assert_close(ensemble.predict_step((x,), 0), expected)
    ensemble.count("test", "target", ensemble(x), expected[:, 0] + 3)
    assert ensemble.scores_of("test", "target")["rmse"].item() == pytest.approx(3, rel=1e-4)


def test_the_commands_predict_values_and_compare_errors(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("one.npz"))
    write(Path("two.npz"), shift=5)
    experiment = ["--trainer.logger.experiment_name", "numbers"]
    words = [*DANN_OF_TABLES, "--data.labels", "numbers"]
    lightning_da(["fit", *words, *experiment])
    lightning_da(["test", *words, *experiment])
    lightning_da(["predict", *words, *experiment, "--predictions.path", "answers.csv"])
    with Path("answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {"sample", "split", "value"}
    with np.load("two.npz") as file:
        true = file["y"]
    error = [float(row["value"]) - true[int(row["sample"])] for row in rows if row["split"] == "test"]
    capsys.readouterr()
    table = lightning_da(["compare", "--experiment", "numbers"])
    printed = capsys.readouterr().out
    assert table["target rmse"].item() == pytest.approx(np.sqrt(np.mean(np.square(error))), rel=1e-4)
    assert "target r2" in printed
    assert "acc" not in printed.replace("no choice", "")
    assert "its score needs classes, and the labels are numbers" in printed
    lightning_da(["fit", *words, *experiment, "--seed_everything", "1"])
    runs = client().search_runs([find_experiment("numbers").experiment_id], order_by=["start_time"])
    lightning_da(["ensemble", *(run.info.run_id for run in runs), *experiment])
    assert "test/target/rmse" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        lightning_da(["label-curve", *words])
    assert "label-curve counts right classes, and the labels are numbers" in capsys.readouterr().err
