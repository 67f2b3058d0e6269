"""Closed, partial and open sets: what the data say and refuse, the scores of `unknown`, and the two methods."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import recall_score
from torch import Tensor

from lightning_da.callbacks import LabelFreeScores
from lightning_da.commands.compare import class_signs, verdict_of
from lightning_da.data import DataError, FeatureTables, Roles
from lightning_da.errors import ConfigError
from lightning_da.losses.adversarial import unknown_boundary
from lightning_da.main import main as lightning_da
from lightning_da.methods import OSBP, PADA, FineTune, MultiTask
from lightning_da.methods.classifier import open_set_scores
from lightning_da.networks import Raw
from lightning_da.store import client
from lightning_da.testing import ADAM, batch_of, build, gradients, ready, step
from lightning_da.tracking import find_experiment
from lightning_da.transferability.class_sets import foreign, missing
from lightning_da.transferability.verdict import Answers
from tests import toy
from tests.toy import DANN_OF_TABLES, accuracy, fit

ANIMALS = ["ant", "bee", "cat", "dog"]


def write(path: Path, names: list[str], shift: float = 0.0, number: int = 60) -> None:
    """Vectors of animals in two of eight dimensions; `shift` moves the other six."""
    y = np.repeat(names, number)
    angle = 2 * np.pi * np.array([ANIMALS.index(name) for name in y]) / len(ANIMALS)
    x = np.random.default_rng([len(names), int(shift)]).normal(0, 0.3, (len(y), 8))
    x[:, 0] += 2 * np.cos(angle)
    x[:, 1] += 2 * np.sin(angle)
    x[:, 2:] += shift
    np.savez(path, x=x.astype(np.float32), y=y)


def pair(source: list[str], target: list[str], **kwargs: Any) -> FeatureTables:
    write(Path("here.npz"), source)
    write(Path("there.npz"), target, shift=1)
    return FeatureTables("here.npz", "there.npz", batch_size=32, **kwargs)


@pytest.mark.parametrize(
    ("class_sets", "source", "target", "message"),
    [
        ("closed", ANIMALS, ANIMALS[:3], r"classes differ: .*'dog' alone.* partial classes for .*class_sets partial"),
        ("closed", ANIMALS[:3], ANIMALS, r"classes differ: .*one task on open-set classes for --data.class_sets open"),
        ("partial", ANIMALS[:3], ANIMALS, r"classes differ: .*one task on open-set classes for --data.class_sets open"),
        ("open", ANIMALS[:2], ANIMALS[2:], "no class of 'here.npz', 'ant', 'bee', is in 'there.npz'"),
    ],
)  # fmt: skip
def test_a_difference_is_refused_unless_it_is_asked_for(
    class_sets: Any, source: list[str], target: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pair(source, target, class_sets=class_sets).check()


@pytest.mark.parametrize(
    ("class_sets", "source", "target", "classes", "setting"),
    [
        ("closed", ANIMALS, ANIMALS, ANIMALS, ""),
        ("partial", ANIMALS, ANIMALS[1:3], ANIMALS, "partial: 'here.npz' alone has 'ant', 'dog'"),
        ("open", ANIMALS[:2], ANIMALS, ["ant", "bee", "unknown"], "open-set: 'there.npz' alone has 'cat', 'dog'"),
        (
            *("open", ANIMALS[:3], ANIMALS[2:], ["ant", "bee", "cat", "unknown"]),
            "open-set and partial: 'here.npz' alone has 'ant', 'bee'; 'there.npz' alone has 'dog'",
        ),
        ("open", ANIMALS, ANIMALS, [*ANIMALS, "unknown"], ""),
    ],
)
def test_classes_and_labels_of_a_pair(
    class_sets: Any, source: list[str], target: list[str], classes: list[str], setting: str
) -> None:
    data = pair(source, target, class_sets=class_sets)
    data.check()
    assert (data.classes, data.num_classes, data.setting) == (classes, len(classes), setting)
    for domain, own in (("here.npz", source), ("there.npz", target)):
        for split in ("train", "val", "test"):
            given = data.dataset(domain, split)
            expected = [name if name in classes else "unknown" for name in (own[i] for i in given.y)]
            assert [classes[label] for label in data._get(domain, split).y] == expected


def test_the_unknown_class_is_there_without_labels_of_the_target() -> None:
    write(Path("here.npz"), ANIMALS)
    np.savez("there.npz", x=np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32))
    data = FeatureTables("here.npz", "there.npz", batch_size=8, class_sets="open")
    data.check()
    assert data.classes == [*ANIMALS, "unknown"]


def test_a_target_without_labels_is_what_the_user_says() -> None:
    write(Path("here.npz"), ANIMALS)
    np.savez("there.npz", x=np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))
    for class_sets, setting in (
        ("closed", ""),
        ("partial", "partial: as data.class_sets says; 'there.npz' names no class"),
        ("open", "open: as data.class_sets says; 'there.npz' names no class"),
    ):
        data = FeatureTables("here.npz", "there.npz", batch_size=32, class_sets=class_sets)
        data.check(Roles(("source",), ("source", "target")))
        assert data.setting == setting


def test_no_accuracy_is_estimated_in_an_open_set() -> None:
    """No score sees the answer `unknown`."""
    rng = np.random.default_rng(0)
    answers = [[Answers(rng.integers(0, 3, 90), {"mmd": -0.1})] for _ in range(3)]
    for class_sets in ("closed", "open"):
        settings = [{"class_sets": "closed"}, {"class_sets": class_sets}, {}]
        group = pd.DataFrame(
            {"method": ["source_only", "osbp", "dann"], "data": "one", "answers": answers, "settings": settings}
        )
        said = verdict_of(group)
        assert said is not None
        assert (said.estimate is None) == (class_sets == "open")


def test_tasks_of_their_own_and_a_source_class_named_unknown_are_refused() -> None:
    with pytest.raises(DataError, match="class_sets: open is for one task; the method has a task for each domain"):
        pair(ANIMALS[:2], ANIMALS, class_sets="open").check(Roles.of(build(MultiTask), 1))
    ANIMALS.append("unknown")
    try:
        with pytest.raises(DataError, match=r"'here\.npz' has a class 'unknown'; give it another name"):
            pair(ANIMALS[3:], ANIMALS[:4], class_sets="open").check()
    finally:
        ANIMALS.remove("unknown")


# ---------------------------------------------------------------- scores


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(4, size=(2, 300))
    true[true == 1] = 0  # a known class without a sample
    counts = torch.zeros(4, 4)
    counts.index_put_((torch.from_numpy(true), torch.from_numpy(predicted)), torch.ones(300), accumulate=True)
    found = {name: value.item() for name, value in open_set_scores(counts).items()}
    recall = recall_score(true, predicted, labels=range(4), average=None, zero_division=0)
    known, unknown = recall[[0, 2]].mean(), recall[3]
    expected = {"os": recall[[0, 2, 3]].mean(), "os_star": known, "unk": unknown}
    assert found == pytest.approx(expected | {"h_score": 2 / (1 / known + 1 / unknown)})


def test_there_are_no_scores_without_an_unknown_or_a_known_sample() -> None:
    assert open_set_scores(torch.tensor([[3, 1], [0, 0]])) == {}
    assert open_set_scores(torch.tensor([[0, 0], [1, 4]])) == {}
    assert open_set_scores(torch.tensor([[4, 0], [4, 0]]))["h_score"] == 0


# ---------------------------------------------------------------- open sets


def test_the_boundary_is_binary_cross_entropy_and_its_gradient_is_zero_at_the_threshold() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(dim=1)[:, -1]
    expected = -(0.3 * p.log() + 0.7 * (1 - p).log()).mean()
    torch.testing.assert_close(unknown_boundary(logits, 0.3), expected)
    at = torch.tensor([[0.0, 0.0, np.log(2)]], dtype=torch.float64, requires_grad=True)
    assert gradients(unknown_boundary(at), [at])[0].abs().max() < 1e-12
    huge = torch.tensor([[0.0, 1e4]], requires_grad=True)
    assert gradients(unknown_boundary(huge), [huge])[0].isfinite().all()


def of_head_and_layers(weight: float) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of the domain loss and of the boundary for the head and for the layers below it, in that order."""
    model = ready(OSBP, domain_weight=weight, domain_schedule=lambda _: 1.0, num_classes=4)
    x = torch.randn(9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = step(model, batch_of(model, x, 2 * x + 1, torch.arange(9) % 3))
    boundary = unknown_boundary(model(2 * x + 1))
    head, layers = list(model.head.parameters()), list(model.backbone.parameters())
    return gradients(seen.domain_loss, [*head, *layers]), gradients(boundary, head), gradients(boundary, layers)


def test_the_head_goes_to_the_boundary_and_the_backbone_away_from_it() -> None:
    found, of_head, of_layers = of_head_and_layers(2.0)
    for got, wanted in zip(found, [*(2 * g for g in of_head), *(-2 * g for g in of_layers)], strict=True):
        torch.testing.assert_close(got, wanted)


def test_osbp_needs_an_output_for_unknown_and_the_input_of_the_head() -> None:
    with pytest.raises(ConfigError, match=r"set --data\.class_sets open"):
        fit(build(OSBP, num_classes=4), 1, pair(ANIMALS, ANIMALS))
    with pytest.raises(ConfigError, match=r"layers: the head reads the bottleneck; .* not \['fc1'\]"):
        build(OSBP, layers=("fc1",))
    with pytest.raises(ConfigError, match=r"threshold: 1.0 is not in \(0, 1\)"):
        build(OSBP, threshold=1.0)


def test_osbp_finds_unknown_samples_that_source_only_cannot_see() -> None:
    data, slow = pair(ANIMALS[:3], ANIMALS, class_sets="open"), partial(torch.optim.Adam, lr=2e-3)
    closed, found = (
        accuracy(fit(build(kind, num_classes=4, optimizer=slow), 150, data), data) for kind in (FineTune, OSBP)
    )
    assert closed["test/target/h_score"] < 0.2
    assert found["test/target/h_score"] > 0.7
    assert "test/source/h_score" not in found


# ---------------------------------------------------------------- partial sets


def test_the_domain_loss_is_the_mean_of_the_source_by_the_weights_of_its_classes() -> None:
    model = ready(PADA, domain_schedule=lambda _: 1.0, warm_up=0.0)
    model.target_shares.copy_(torch.tensor([0.1, 0.6, 0.3]))
    x, y = torch.randn(8, 8, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 2, 2, -1, 1])
    weights = torch.tensor([1 / 6, 1 / 6, 1, 0.5, 0.5, 0.5, 1, 1], dtype=torch.float64)  # without a label: 1
    probability = [model.discriminators[0](model.features(part)).sigmoid()[:, 0] for part in (x, x + 1)]
    expected = -(weights * probability[0].log()).sum() / weights.sum() - (1 - probability[1]).log().mean()
    torch.testing.assert_close(step(model, batch_of(model, x, x + 1, y)).domain_loss, expected)


def test_a_class_without_weight_teaches_nothing() -> None:
    """With the whole weight on one class, the step is that of the samples of this class, scaled by their share."""
    x = torch.randn(9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(9) % 3
    found = []
    for rows in (torch.arange(9), (y == 1).nonzero()[:, 0]):
        model = ready(PADA, domain_schedule=lambda _: 1.0, warm_up=0.0)
        model.target_shares.copy_(torch.tensor([0.0, 1.0, 0.0]))
        parts = step(model, batch_of(model, x[rows], x + 1, y[rows]))
        of_task = parts.loss - parts.domain_loss
        found.append(gradients(of_task, model.parameters()))
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(whole, part / 3, rtol=1e-8, atol=1e-12)


def test_the_shares_are_a_moving_mean_of_the_predictions() -> None:
    model = ready(PADA, memory=0.75, warm_up=0.0)
    x = torch.randn(9, 8, dtype=torch.float64)
    step(model, batch_of(model, x, x + 1))
    expected = 0.75 / 3 + 0.25 * model(x + 1).softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(model.target_shares, expected)
    torch.testing.assert_close(model.class_weights, expected / expected.max())
    model.warm_up = 0.1
    assert model.class_weights.tolist() == [1, 1, 1]


def test_pada_finds_the_classes_that_the_target_lacks() -> None:
    data = pair(ANIMALS, ANIMALS[:2], class_sets="partial")
    model = fit(build(PADA, num_classes=4, optimizer=ADAM, memory=0.9, domain_weight=0.0), 60, data)
    assert model.class_weights[:2].min() > 0.7
    assert model.class_weights[2:].max() < 0.2


# ---------------------------------------------------------------- without names


def test_missing_classes_are_counted_by_the_proportions_of_the_predictions() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, -1])
    predicted = torch.tensor([0] * 8 + [1] * 3 + [2] * 5 + [3] * 8)  # class 1 has half of its share, all but one sample
    logits = 9 * torch.nn.functional.one_hot(predicted, 5).float()  # no sample of the source is in class 4
    assert missing(labels, logits) == 0
    assert missing(labels, logits[1:]) == 0
    assert missing(labels, torch.cat([logits, logits[:1]])) == 0.25


def test_a_run_without_adaptation_says_that_classes_seem_to_be_missing() -> None:
    def run(method: str, share: float | None, tags: dict[str, str]) -> Any:
        params = {"method": method, "source": "a", "target": "b"}
        data = SimpleNamespace(params=params, tags=tags, metrics={} if share is None else {"sets/missing": share})
        return SimpleNamespace(data=data)

    runs = [
        run("source_only", 0.5, {}),
        run("source_only", 0.2, {}),
        run("source_only", None, {}),
        run("dann", 0.0, {}),
    ]
    sign = ("sets/missing", "source_only")
    assert class_signs(runs, *sign) == {"a -> b": pytest.approx(0.35)}
    assert class_signs(runs[1:], *sign) == {}
    assert class_signs([run("source_only", 0.5, {"class_sets": "partial: 'a' alone has 'x'"})], *sign) == {}


CENTRES = torch.randn(12, 200, generator=torch.Generator().manual_seed(7))
"""Of twelve classes, almost orthogonal to one another."""


def clouds(classes: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    """50 samples of each of the first classes of `CENTRES`."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat(50)
    return CENTRES[y] + torch.randn(len(y), 200, generator=generator) * 0.3 + shift, y


@pytest.mark.parametrize("shift", [0.0, 9.0])
def test_samples_of_other_classes_are_near_no_class(shift: float) -> None:
    x, y = clouds(6, 0, seed=0)
    for classes in (3, 5, 6):
        assert foreign(x, y, clouds(classes, shift, seed=1)[0]) == 0
    other, _ = clouds(9, shift, seed=1)
    unlabelled = torch.where(torch.arange(len(y)) % 2 == 0, y, -1)
    for scale, labels in ((1, y), (3, y), (1, unlabelled)):
        assert foreign(x, labels, scale * other) == pytest.approx(1 / 3)
    assert np.isnan(foreign(x, torch.full_like(y, -1), other))
    assert np.isnan(foreign(x, y, other[:11]))


class Pretrained(Raw):
    pretrained = True


@pytest.mark.parametrize(
    ("backbone", "classes", "labelled", "said"),
    [(Pretrained, 9, False, True), (Pretrained, 6, False, False), (Pretrained, 9, True, False), (Raw, 9, False, False)],
)
def test_a_fit_from_pretrained_features_says_that_the_target_has_other_classes(
    backbone: type[Raw], classes: int, labelled: bool, said: bool, recwarn: pytest.WarningsRecorder
) -> None:
    """Unless it has labels, whose names say it, or the weights are random."""
    x, y = clouds(6, 0, seed=0)
    np.savez("here.npz", x=x, y=y)
    x, y = clouds(classes, 1, seed=1)
    arrays: dict[str, Any] = {"x": x} | ({"y": y % 6} if labelled else {})
    np.savez("there.npz", **arrays)
    data = FeatureTables("here.npz", "there.npz", batch_size=32, val_share=0.4)
    model = build(FineTune, backbone=backbone, num_classes=6, input_shape=(200,), optimizer=ADAM)
    toy.trainer(2, callbacks=[LabelFreeScores()]).fit(model, datamodule=data)
    texts = [str(warning.message) for warning in recwarn if "near no class of the source" in str(warning.message)]
    assert len(texts) == said


# ---------------------------------------------------------------- the commands


def test_the_commands_answer_unknown_and_warn(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("one.npz"), ANIMALS[:3])
    write(Path("two.npz"), ANIMALS, shift=1)
    osbp = [word.replace("method/dann.yaml", "method/osbp.yaml") for word in DANN_OF_TABLES]
    words = [*osbp, "--data.class_sets", "open", "--trainer.max_steps", "30", "--model.optimizer.init_args.lr", "0.01"]
    words += ["--trainer.logger.experiment_name", "sets"]
    lightning_da(["fit", *words])
    lightning_da(["test", *words])
    lightning_da(["predict", *words, "--predictions.path", "answers.csv"])
    with Path("answers.csv").open() as file:
        answered = {row["class"] for row in csv.DictReader(file)}
    assert "unknown" in answered <= {*ANIMALS[:3], "unknown"}
    capsys.readouterr()
    table = lightning_da(["compare", "--experiment", "sets"])
    printed = capsys.readouterr().out
    assert "h-score" in printed
    assert "warning: one.npz -> two.npz: classes differ, open-set: 'two.npz' alone has 'dog'; " in printed
    run = client().search_runs([find_experiment("sets").experiment_id])[0]
    assert table["h-score"].item() == pytest.approx(run.data.metrics["test/target/h_score"])
