"""Measures of transferability against independent references, and their known limits."""

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lightning_da.data.base import UNKNOWN
from lightning_da.transferability.measures import (
    Probe,
    a_distance,
    a_distance_test,
    cka,
    coral_distance,
    h_score,
    leep,
    logme,
    mmd_test,
    nce,
    probe_between_test,
    probe_within_test,
)
from tests import references


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def task(noise: float, seed: int = 0, n: int = 200, d: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Features whose class means lie on the axes, with noise around them."""
    y = torch.arange(n) % classes
    return 3 * torch.eye(d, dtype=torch.float64)[y] + noise * normal(n, d, seed), y


# ---------------------------------------------------------------- A-distance


def test_a_distance_of_equal_distributions_is_chance() -> None:
    found = [a_distance(normal(200, 5, 2 * i), normal(300, 5, 2 * i + 1)) for i in range(30)]
    assert all(0 <= value <= 2 for value in found)
    assert np.mean(found) < 0.1


def test_a_distance_of_domains_that_can_be_told_apart_is_two() -> None:
    assert a_distance(normal(50, 5, 0), normal(70, 5, 1, shift=10)) == 2


def test_a_distance_is_that_of_the_error_that_the_distributions_have() -> None:
    # For two normals at a distance of 2 s the error of the best classifier is phi(-s).
    found = np.mean([a_distance(normal(400, 1, 2 * i), normal(400, 1, 2 * i + 1, shift=2)) for i in range(10)])
    assert found == pytest.approx(2 * (1 - 2 * scipy.stats.norm.cdf(-1)), abs=0.05)


def test_a_distance_counts_both_domains_alike_and_repeats_itself() -> None:
    few, many = normal(20, 4, 0), normal(2000, 4, 1)
    # A classifier that always answers with the larger domain would have an unweighted distance of 1.96.
    assert a_distance(few, many) < 1
    assert a_distance(few, many, seed=3) == a_distance(few, many, seed=3)


def test_a_distance_does_not_change_with_the_scale_or_with_constant_features() -> None:
    source, target = normal(60, 4, 0), normal(60, 4, 1, shift=0.7)
    wide_source, wide_target = (torch.cat([1e3 * x, torch.ones(60, 2)], dim=1) for x in (source, target))
    assert a_distance(wide_source, wide_target) == a_distance(source, target)


# ---------------------------------------------------------------- discrepancy, covariances


def test_p_values_of_equal_distributions_are_uniform() -> None:
    found = [mmd_test(normal(30, 3, 2 * i), normal(40, 3, 2 * i + 1), 99).p for i in range(150)]
    assert min(found) >= 0.01
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


def test_a_shift_has_a_small_p_value() -> None:
    found = mmd_test(normal(60, 3, 0), normal(60, 3, 1, shift=1), 199)
    assert found.p == pytest.approx(1 / 200)
    assert found.value > 10 * found.null.std()
    assert abs(found.null.mean()) < found.null.std()


def test_shuffles_that_tie_count() -> None:
    """Three and three samples far apart: 2 of 20 assignments have the largest value, equal up to rounding."""
    for seed in range(50):
        found = mmd_test(normal(3, 3, 2 * seed), normal(3, 3, 2 * seed + 1, shift=5), 1000, seed)
        assert found.p == pytest.approx(0.1, abs=0.03)
    assert mmd_test(torch.ones(8, 2), torch.ones(9, 2), 20).p == 1


@pytest.mark.parametrize(("n_s", "n_t", "d"), [(8, 7, 3), (4, 9, 2), (6, 4, 10)])
def test_coral_distance_is_made_of_unbiased_estimates(n_s: int, n_t: int, d: int) -> None:
    """The references average over all choices of four, or of two and two, different samples."""
    for seed in range(5):
        source, target = normal(n_s, d, 2 * seed), normal(n_t, d, 2 * seed + 1, scale=3) + 10
        s, t = source.numpy(), target.numpy()
        inner = references.covariance_product(s, t)
        norms = max(references.covariance_square(s) + references.covariance_square(t), inner)
        assert coral_distance(source, target) == pytest.approx(1 - 2 * inner / norms, rel=1e-10)


def test_coral_distance_of_equal_distributions_averages_zero() -> None:
    """Without the correction it would average .2."""
    found = [coral_distance(normal(400, 100, 2 * i), normal(300, 100, 2 * i + 1)) for i in range(100)]
    error = np.std(found, ddof=1) / 10
    assert abs(np.mean(found)) < 3 * error
    assert error < 2e-3
    assert min(found) < 0


def test_coral_distance_of_different_covariances_is_that_of_the_distributions() -> None:
    """Covariances I and diag(4, ..., 4, 1, ..., 1), 30 features each."""
    scale = torch.tensor([2.0, 1.0]).repeat_interleave(30)
    found = [coral_distance(normal(200, 60, 2 * i), scale * normal(300, 60, 2 * i + 1)) for i in range(20)]
    expected = 1 - 2 * (30 * 4 + 30) / (60 + 30 * 16 + 30)
    assert np.mean(found) == pytest.approx(expected, abs=0.01)


def test_coral_distance_does_not_change_with_scale_and_origin() -> None:
    source, target = normal(80, 4, 0), normal(50, 4, 1, 2)
    found = coral_distance(source, target)
    assert coral_distance(100 * source + 7, 100 * target - 7) == pytest.approx(found, rel=1e-8)
    assert coral_distance(source, 0 * target) == 1
    assert coral_distance(0.1 * torch.ones(5, 2), 0.3 * torch.ones(7, 2)) == 0
    outlier = torch.eye(8)[:, :1]
    assert coral_distance(outlier, outlier) == -1  # the estimated norms are negative


# ---------------------------------------------------------------- probe


def test_probe_is_ridge_regression_of_the_labels() -> None:
    x, y = task(2.0)
    test_x, test_y = task(2.0, seed=1)
    scaler = StandardScaler().fit(x)
    model = Ridge(alpha=0.01 * len(x)).fit(scaler.transform(x), np.eye(3)[y])
    expected = (model.predict(scaler.transform(test_x)).argmax(1) == test_y.numpy()).mean()
    assert 0.5 < expected < 1
    assert Probe(x, y).accuracy(test_x, test_y) == pytest.approx(expected)


def test_probe_leaves_out_unknown_labels_and_keeps_the_numbers_of_classes() -> None:
    x, y = task(0.1)
    y = torch.where(y == 0, 7, y)
    unknown = torch.where(torch.arange(200) < 50, UNKNOWN, y)
    assert Probe(x, unknown).accuracy(x, y) == 1
    assert Probe(x, y).accuracy(x, unknown) == 1
    assert np.isnan(Probe(x, y).accuracy(x, torch.full((200,), UNKNOWN)))


# ---------------------------------------------------------------- LogME, H-score


def evidence(x: Any, t: Any) -> float:
    """Highest log density per sample of t ~ N(0, I / beta + x x^T / alpha), by a general optimizer."""

    def minus(logs: Any) -> float:
        alpha, beta = np.exp(logs)
        cov = np.eye(len(x)) / beta + x @ x.T / alpha
        return -float(scipy.stats.multivariate_normal.logpdf(t, np.zeros(len(x)), cov)) / len(x)

    minimize: Any = scipy.optimize.minimize
    best: float = min(
        minimize(minus, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).fun
        for start in ([0.0, 0.0], [2.0, 2.0])
    )
    return -best


@pytest.mark.parametrize(("n", "d"), [(40, 5), (60, 20)])
def test_logme_is_the_maximal_evidence(n: int, d: int) -> None:
    x, y = task(1.5, n=n, d=d)
    expected = np.mean([evidence(x.numpy(), (y == c).double().numpy()) for c in range(3)])
    assert logme(x, y) == pytest.approx(expected, abs=1e-4)


def test_h_score_is_the_formula() -> None:
    x, y = task(1.5)
    shrunk, amount = ledoit_wolf(x.numpy())
    means = np.stack([x[y == c].mean(0).numpy() for c in y.tolist()])
    expected = (1 - amount) * np.trace(np.linalg.inv(shrunk) @ np.cov(means.T, bias=True))
    assert h_score(x, y) == pytest.approx(expected, rel=1e-8)


def test_h_score_of_separated_classes_is_their_number_less_one() -> None:
    x, y = task(1e-6, d=3, classes=3)
    assert h_score(x, y) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("measure", [logme, h_score])
def test_scores_rank_a_known_order(measure: Any) -> None:
    scores = [measure(*task(noise)) for noise in (0.2, 0.5, 1.0, 2.0, 4.0)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("measure", [logme, h_score])
def test_scores_leave_out_unknown_labels(measure: Any) -> None:
    x, y = task(1.0)
    known = torch.arange(200) >= 50
    assert measure(x, torch.where(known, y, UNKNOWN)) == measure(x[known], y[known])


def test_features_that_are_all_zero_have_scores() -> None:
    x, y = torch.zeros(30, 4), torch.arange(30) % 3
    assert np.isfinite(logme(x, y))
    assert logme(x, y) < logme(*task(1.0))
    assert h_score(x, y) == 0


# ---------------------------------------------------------------- LEEP, NCE


def test_leep_is_the_formula() -> None:
    theta, y = normal(30, 4, 0).softmax(1), torch.arange(30) % 3
    joint = np.zeros((3, 4))
    for row, label in zip(theta.numpy(), y.tolist(), strict=True):
        joint[label] += row / 30
    total = 0.0
    for row, label in zip(theta.numpy(), y.tolist(), strict=True):
        total += np.log(sum(joint[label, z] / joint[:, z].sum() * row[z] for z in range(4)))
    assert leep(theta, y) == pytest.approx(total / 30)


def test_leep_of_a_head_that_knows_the_labels_is_zero() -> None:
    y = torch.arange(12) % 3
    assert leep(torch.eye(5)[y + 1], y) == pytest.approx(0, abs=1e-12)
    assert leep(torch.full((12, 5), 0.2), y) == pytest.approx(-np.log(3))


def test_nce_is_the_conditional_entropy() -> None:
    z, y = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2]), torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    assert nce(z, y) == pytest.approx(-0.5 * np.log(2))
    assert nce(torch.tensor([3, 3, 1, 1]), torch.tensor([0, 0, 1, 1])) == pytest.approx(0, abs=1e-12)


def test_leep_exceeds_nce_by_no_less_than_its_bound() -> None:
    # LEEP >= NCE + mean log theta_z (Nguyen et al. 2020, property 2)
    for seed in range(10):
        theta, y = (2 * normal(60, 4, seed)).softmax(1), torch.arange(60) % 3
        z = theta.argmax(1)
        assert leep(theta, y) >= nce(z, y) + theta.max(1).values.log().mean().item() - 1e-12


# ---------------------------------------------------------------- CKA


def test_cka_is_the_formula() -> None:
    x, y = normal(40, 5, 0).numpy(), normal(40, 3, 1).numpy() + normal(40, 5, 0).numpy()[:, :3]
    x0, y0 = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(y0.T @ x0) ** 2 / (np.linalg.norm(x0.T @ x0) * np.linalg.norm(y0.T @ y0))
    assert cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-10)


def test_cka_does_not_change_with_rotation_scale_and_origin() -> None:
    x, other = normal(50, 6, 0), normal(50, 4, 1)
    rotation, _ = torch.linalg.qr(normal(6, 6, 2))
    assert cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert cka(x @ rotation, other) == pytest.approx(cka(x, other))
    assert cka(normal(2000, 6, 3), normal(2000, 6, 4)) < 0.05
    assert cka(torch.ones(5, 2), normal(5, 2, 0)) == 0
    with pytest.raises(ValueError, match="not of 5 and 6"):
        cka(torch.ones(5, 2), torch.ones(6, 2))


@pytest.mark.parametrize(("row", "offset"), [(1e12, 0.0), (0.0, 1e9), (1e10, 1e10)])
def test_probes_bear_an_outlier_and_a_far_domain(row: float, offset: float) -> None:
    source, target = normal(40, 4, 0), normal(40, 4, 1) + offset
    source[3, 1] += row
    labels = torch.arange(40) % 2
    assert 0 <= a_distance(source, target) <= 2
    for found in (
        a_distance_test(source, target),
        probe_within_test(source, labels),
        probe_between_test(source, labels, target, labels),
    ):
        assert np.isfinite(found.value)
        assert found.halves.isfinite().all()
        assert found.null.isfinite().all()
