"""Scores without target labels: against naive references, at their limits, and in the course of training."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from lightning_da.callbacks import LabelFreeScores
from lightning_da.data.base import DOMAINS, TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.transferability import scores
from lightning_da.transferability.scores import SCORES, Outputs
from tests import toy

Array = NDArray[np.float64]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_entropy(p: Array) -> float:
    return -sum(float(value) * math.log(float(value)) for value in p if value > 0)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_predictions_equal_naive_references(seed: int) -> None:
    logits = 3 * random(40, 5, seed=seed)
    p = softmax(logits.double().numpy(), axis=1)
    entropy = -np.mean([naive_entropy(row) for row in p])
    diversity = naive_entropy(p.mean(axis=0))
    assert scores.entropy(logits) == pytest.approx(entropy)
    assert scores.diversity(logits) == pytest.approx(diversity)
    assert scores.infomax(logits) == pytest.approx(entropy + diversity)
    assert scores.bnm(logits) == pytest.approx(np.linalg.svd(p, compute_uv=False).sum() / 40)
    density = 0.0
    for i in range(40):
        cosines = [p[i] @ p[j] / np.linalg.norm(p[i]) / np.linalg.norm(p[j]) / 0.05 for j in range(40) if j != i]
        density += naive_entropy(softmax(cosines)) / 40
    assert scores.snd(logits) == pytest.approx(density)


def test_a_collapsed_network_does_not_win_by_infomax_bnm_or_clusters() -> None:
    features = torch.cat([random(30, 4, seed=i) * 0.1 + 5 * torch.eye(4)[i] for i in range(3)])
    right = 9 * torch.eye(3).repeat_interleave(30, dim=0)
    collapsed = 90 * torch.eye(3)[0].repeat(90, 1)
    assert scores.entropy(collapsed) > scores.entropy(right)
    for score in (scores.infomax, scores.bnm):
        assert score(right) > score(collapsed)
    assert scores.class_ami(features, right) == pytest.approx(1)
    assert scores.class_ami(features, collapsed) == 0
    assert scores.class_ami(torch.zeros(90, 4), collapsed) == 0
    assert scores.class_ami(torch.zeros(90, 4), right) == 0
    assert abs(scores.class_ami(features, random(90, 3))) < 0.1


def test_snd_has_its_largest_value_on_equal_samples() -> None:
    assert scores.snd(random(1, 4).repeat(20, 1)) == pytest.approx(math.log(19))
    assert scores.snd(100 * torch.eye(4)[torch.arange(20) % 4]) == pytest.approx(math.log(4), abs=1e-3)


# ---------------------------------------------------------------- importance weights


def test_weights_are_near_the_ratio_of_known_densities() -> None:
    source, target = random(4000, 1, seed=0), 0.5 + random(4000, 1, seed=1)
    found = scores.importance_weights(source, target)
    expected = (0.5 * source[:, 0] - 0.125).exp().double()  # N(.5, 1) / N(0, 1)
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.98
    assert found.mean() == pytest.approx(1, abs=0.1)


def test_weights_of_equal_distributions_are_about_one_even_with_other_sizes() -> None:
    found = scores.importance_weights(random(900, 3, seed=0), random(300, 3, seed=1))
    assert found.median() == pytest.approx(1, abs=0.15)


def test_weights_do_not_depend_on_the_scale_of_the_features() -> None:
    source, target = random(60, 3, seed=0), random(50, 3, seed=1) + 0.3
    scale = torch.tensor([1.0, 1e3, 1e-3])
    found = [scores.importance_weights(source * by, target * by) for by in (torch.ones(3), scale)]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_weighted_risks_equal_naive_references() -> None:
    losses, weights = random(50, seed=0).exp(), random(50, seed=1).exp()
    loss, w = losses.double().numpy(), weights.double().numpy()
    assert scores.iwv(losses, weights) == pytest.approx(-np.mean(loss * w))
    eta = -np.cov(loss * w, w)[0, 1] / np.var(w, ddof=1)
    assert scores.dev(losses, weights) == pytest.approx(-(np.mean(loss * w) + eta * np.mean(w) - eta))
    constant = torch.ones(50)
    assert scores.dev(losses, constant) == pytest.approx(scores.iwv(losses, constant))


def test_dev_varies_less_than_iwv_where_weights_and_losses_are_related() -> None:
    weights = [random(40, seed=i).mul(0.7).exp() for i in range(200)]
    weights = [w / math.exp(0.245) for w in weights]  # of mean 1
    iwv, dev = (np.array([score(1 + 0.1 * w, w) for w in weights]) for score in (scores.iwv, scores.dev))
    assert dev.std() < 0.5 * iwv.std()
    assert dev.mean() == pytest.approx(iwv.mean(), abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_equal_a_naive_vote(seed: int) -> None:
    source, target, logits = random(50, 4, seed=seed), random(30, 4, seed=seed + 9), random(30, 3, seed=seed + 19)
    labels = torch.arange(50) % 3
    hits = 0
    for x, row in zip(target, logits, strict=True):
        cosines = [float(x @ s / x.norm() / s.norm()) for s in source]
        votes = [int(labels[i]) for i in np.argsort(cosines)[-5:]]
        hits += max(range(3), key=votes.count) == int(row.argmax())
    assert scores.neighbours(logits, scores.vote(source, labels, target, logits.shape[1])) == pytest.approx(hits / 30)


def test_neighbours_see_that_classes_were_mixed_up() -> None:
    """The features of the domains are the same, but the classifier says other classes than the neighbours."""
    x, y = torch.cat([random(30, 4, seed=i) * 0.1 + 5 * torch.eye(4)[i] for i in range(3)]), torch.arange(90) // 30
    right = torch.eye(3)[y]
    votes = scores.vote(x, y, x, 3)
    assert scores.neighbours(right, votes) == 1
    assert scores.neighbours(right.roll(1, dims=1), votes) == 0
    assert scores.neighbours(right, scores.vote(x[:2], y[:2], x, 3)) == pytest.approx(1 / 3)  # fewer samples than five


# ---------------------------------------------------------------- in the course of training


def outputs(unknown: int = 0) -> Outputs:
    labels = torch.arange(40) % 3
    labels[:unknown] = -1
    logits = torch.eye(3)[torch.arange(40) % 3] + random(40, 3)
    return Outputs(random(40, 6), logits, labels, random(30, 6, seed=1), random(30, 3, seed=2))


def test_every_score_is_a_finite_number_and_ignores_unknown_labels() -> None:
    for name, score in SCORES.items():
        assert math.isfinite(score(outputs())), name
        assert math.isfinite(score(outputs(unknown=10))), name
    for name in ("dev", "iwv", "neighbours"):
        assert math.isnan(SCORES[name](outputs(unknown=40)))


def fit(data: Any = None) -> Any:
    model = toy.build("dann", optimizer=toy.ADAM)
    toy.trainer(-1, max_epochs=2, callbacks=[LabelFreeScores(every_n_steps=1)]).fit(model, data or toy.Toy())
    return model


def test_they_are_logged_and_are_those_of_the_validation_split() -> None:
    model = fit()
    logged = {k.removeprefix("score/"): v for k, v in model.trainer.callback_metrics.items() if k.startswith("score/")}
    assert logged.keys() == SCORES.keys()
    data = toy.Toy()
    (source, labels), (target, _) = (
        (torch.cat(part) for part in zip(*data.sample_dataloader(role, "val", 1000), strict=True)) for role in DOMAINS
    )
    with torch.no_grad():
        (fs, ls), (ft, lt) = (model.eval().classify(x) for x in (source, target))
    expected = Outputs(fs, ls, labels, ft, lt)
    for name, value in logged.items():
        assert float(value) == pytest.approx(SCORES[name](expected), rel=1e-3, abs=1e-4), name
    assert logged["source_acc"] == pytest.approx(float(model.trainer.callback_metrics["val/source/acc"]))


def test_target_labels_are_out_of_reach() -> None:
    class Shuffled(toy.Toy):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            if domain == self.target:
                data.y = data.y.roll(1)
            return data

    found = []
    for data in (toy.Toy(), Shuffled()):
        metrics = fit(data=data).trainer.callback_metrics
        found.append({key: float(value) for key, value in metrics.items() if key.startswith("score/")})
        assert found[0] == found[-1]
    assert len(found[0]) == len(SCORES)


def test_scores_do_not_change_training() -> None:
    plain = toy.build("dann", optimizer=toy.ADAM)
    toy.trainer(-1, max_epochs=2).fit(plain, toy.Toy())
    assert toy.equal(toy.state(plain), toy.state(fit()))


def test_a_checkpoint_is_chosen_by_a_score(tmp_path: Path) -> None:
    chosen = ModelCheckpoint(tmp_path, monitor="score/infomax", mode="max")
    seen: list[float] = []

    class Note(LabelFreeScores):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
            seen.append(float(trainer.callback_metrics["score/infomax"]))

    toy.trainer(-1, max_epochs=4, enable_checkpointing=True, callbacks=[Note(every_n_steps=1), chosen]).fit(
        toy.build("dann", optimizer=toy.ADAM), toy.Toy()
    )
    assert len(set(seen)) == 4
    assert chosen.best_model_score == pytest.approx(max(seen))


class Logged(Logger):
    """Keeps what is logged."""

    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update(metrics)


def test_on_small_data_not_every_epoch_is_scored_but_the_end_is() -> None:
    logger = Logged()
    scorer = LabelFreeScores(every_n_steps=5)
    toy.trainer(14, logger=logger, log_every_n_steps=1, callbacks=[scorer]).fit(toy.build("dann"), toy.Toy(number=96))
    steps = [step for step, row in sorted(logger.rows.items()) if "score/snd" in row]
    assert steps[-1] == 14
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(steps[:-1]))
    assert 2 <= len(steps) <= 4


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"scores": ("infomx",)}, "no score 'infomx'; did you mean 'infomax'"),
        ({"scores": ()}, "name at least one score"),
        ({"scores": ("snd", "snd")}, "each once"),
        ({"samples": 2}, "at least 8"),
        ({"every_n_steps": 0}, "at least 1"),
    ],
)
def test_a_mistake_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LabelFreeScores(**given)
