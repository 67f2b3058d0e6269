"""Weights of samples, boosting and transport by their constraints, by hand and beside general solvers."""

import importlib.util
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor

from lightning_da.classical import (
    JDOT,
    KLIEP,
    KMM,
    InstanceWeighting,
    OptimalTransport,
    SourceOnly,
    TrAdaBoost,
    TrAdaBoostR2,
)
from lightning_da.classical import tradaboost as boosting
from lightning_da.classical.base import Array
from lightning_da.errors import ConfigError

Pair = tuple[Array, Any, Array]
WEIGHTED = [KMM(gamma=0.1, steps=300), KLIEP(gamma=0.5), InstanceWeighting()]
minimize: Any = optimize.minimize  # its overloads know no function of one array
each = pytest.mark.parametrize("method", WEIGHTED, ids=lambda method: type(method).__name__)


def joined(source: Array, y: Any, target: Array, known: Any = -1) -> Pair:
    return (
        np.concatenate([source, target]),
        np.concatenate([y, np.broadcast_to(known, len(target))]),
        np.repeat([1, -1], [len(source), len(target)]),
    )


@pytest.fixture(scope="module")
def shifted() -> Pair:
    """Normal samples: the target is the source moved by 1 along the first axis, so that log w(x) = x_1 - 1/2."""
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(100, 2)), rng.normal(size=(90, 2)) + np.array([1, 0])
    return joined(source, (source[:, 0] > 0).astype(int), target)


def test_kmm_keeps_its_constraints_and_is_the_optimum_of_a_general_solver() -> None:
    rng = np.random.default_rng(1)
    x, y, domain = joined(rng.normal(size=(10, 2)), np.arange(10) % 2, rng.normal(size=(6, 2)) + 0.7)
    source, target = x[:10], x[10:]
    K, k = rbf_kernel(source, gamma=0.7), 10 * rbf_kernel(source, target, gamma=0.7).mean(1)

    def objective(b: Array) -> float:
        return float(b @ K @ b / 2 - k @ b)

    for bound, slack in ((1000.0, 0.3), (1.5, 0.05), (1.2, 0.0)):  # the second and third reach the bounds
        b = KMM(gamma=0.7, bound=bound, slack=slack).fit(x, y, domain).weights_
        assert b.min() >= 0
        assert b.max() <= bound
        assert abs(b.sum() - 10) <= 10 * slack + 1e-9
        sums: Any = [
            {"type": "ineq", "fun": lambda b, slack=slack: 10 * (1 + slack) - b.sum()},
            {"type": "ineq", "fun": lambda b, slack=slack: b.sum() - 10 * (1 - slack)},
        ]
        bounds: Any = [(0, bound)] * 10
        options: Any = {"maxiter": 500, "ftol": 1e-12}
        found = minimize(
            objective, np.ones(10), (), "SLSQP", lambda b: K @ b - k, bounds=bounds, constraints=sums, options=options
        )
        assert objective(b) == pytest.approx(found.fun, abs=1e-5)


def test_kmm_has_the_slack_of_the_paper_by_default(shifted: Pair) -> None:
    """From a target that is far away, all weights would be 0: their mean is 1 less the slack."""
    x, y, domain = shifted
    weights = KMM(gamma=1.0, steps=50).fit(x + 100 * (domain < 0)[:, None], y, domain).weights_
    assert weights.mean() == pytest.approx(100**-0.5)


def test_kliep_keeps_its_constraints_and_no_other_mixture_is_likelier() -> None:
    rng = np.random.default_rng(2)
    x, y, domain = joined(rng.normal(size=(30, 1)), np.arange(30) % 2, rng.normal(size=(8, 1)) + 1)
    source, target = x[:30], x[30:]
    weights = KLIEP(gamma=0.5, steps=3000).fit(x, y, domain).weights_
    assert weights.min() >= 0
    assert weights.mean() == pytest.approx(1)
    K, norm = rbf_kernel(target, gamma=0.5), rbf_kernel(source, target, gamma=0.5).mean(0)

    def loss(a: Array) -> float:
        return -float(np.log(K @ a).mean())

    one: Any = {"type": "eq", "fun": lambda a: norm @ a - 1}
    found = minimize(loss, np.full(8, 1 / norm.sum()), bounds=[(0, None)] * 8, constraints=one, method="SLSQP")
    shares = np.linalg.lstsq(rbf_kernel(source, target, gamma=0.5), weights, rcond=None)[0]
    assert loss(shares) == pytest.approx(found.fun, abs=1e-4)


def test_kliep_chooses_a_width_by_held_out_samples(shifted: Pair) -> None:
    x, y, domain = shifted
    chosen, narrow = (KLIEP(gamma=gamma, steps=40).fit(x, y, domain).weights_ for gamma in (None, 1000.0))
    true = np.exp(x[domain > 0, 0] - 0.5)
    assert np.corrcoef(chosen, true)[0, 1] > np.corrcoef(narrow, true)[0, 1] + 0.2


@each
def test_weights_are_those_of_the_densities(method: Any, shifted: Pair) -> None:
    x, y, domain = shifted
    weights = method.fit(x, y, domain).weights_
    if not isinstance(method, KMM):  # which matches means of the kernel, with few large weights
        assert np.corrcoef(weights, np.exp(x[domain > 0, 0] - 0.5))[0, 1] > 0.8
    assert np.average(x[domain > 0, 0], weights=weights) == pytest.approx(1, abs=0.35)


@each
def test_weights_follow_their_rows(method: Any, shifted: Pair) -> None:
    x, y, domain = shifted
    order = np.random.default_rng(3).permutation(len(x))
    before, after = method.fit(x, y, domain).weights_, method.fit(x[order], y[order], domain[order]).weights_
    places = order[domain[order] > 0]
    np.testing.assert_allclose(after, before[places], rtol=1e-3, atol=1e-3)


def test_the_order_of_rows_has_no_say_in_what_kliep_draws(shifted: Pair) -> None:
    """Neither in its centres nor in the folds that choose the width."""
    x, y, domain = shifted
    order = np.random.default_rng(3).permutation(len(x))
    method = KLIEP(centres=20, steps=40)
    before, after = method.fit(x, y, domain).weights_, method.fit(x[order], y[order], domain[order]).weights_
    np.testing.assert_allclose(after, before[order[domain[order] > 0]], rtol=1e-6)


@each
def test_a_classifier_that_is_too_simple_learns_where_the_target_is(method: Any) -> None:
    """The classes are parted by a parabola; each domain is on one of its arms."""
    rng = np.random.default_rng(4)

    def drawn(mean: float) -> tuple[Array, Any]:
        x = rng.normal(size=(300, 2)) * [0.7, 1] + [mean, 1]
        return x, (x[:, 1] > x[:, 0] ** 2).astype(int)

    (source, y), (target, wanted) = drawn(-0.5), drawn(0.9)
    pair = joined(source, y, target)
    plain = SourceOnly(estimator=LogisticRegression()).fit(*pair)
    assert method.fit(*pair).score(target, wanted) > plain.score(target, wanted) + 0.03


@each
def test_labelled_samples_of_the_target_have_the_share_that_is_asked_for(method: Any, shifted: Pair) -> None:
    x, y, domain = shifted
    few, labelled = y.copy(), [105, 120, 150]
    few[labelled] = [1, 0, 0]
    alone = clone(method).fit(x, y, domain)
    unread = clone(method).fit(x, np.where(domain > 0, y, 1), domain)
    assert np.array_equal(unread.weights_, alone.weights_)
    assert np.array_equal(unread.predict_proba(x), alone.predict_proba(x))

    both = clone(method).set_params(target_share=0.4).fit(x, few, domain)
    assert np.allclose(both.weights_[100:] / both.weights_.sum(), 0.4 / 3, atol=1e-12)
    assert both.weights_.mean() == pytest.approx(alone.weights_.mean())  # so that a penalty weighs as much
    rows = [*range(100), *labelled]
    assert np.array_equal(both.features_, x[rows])
    weights = np.append(0.6 * alone.weights_ / alone.weights_.sum(), np.full(3, 0.4 / 3)) * both.weights_.sum()
    direct = LogisticRegression(max_iter=1000).fit(x[rows], few[rows], sample_weight=weights)
    assert np.allclose(direct.predict_proba(x), both.predict_proba(x), atol=1e-4)
    assert np.abs(alone.predict_proba(x) - both.predict_proba(x)).max() > 0.01

    order = np.random.default_rng(3).permutation(len(y))
    turned = clone(method).set_params(target_share=0.4).fit(x[order], few[order], domain[order])
    assert np.allclose(turned.predict_proba(x), both.predict_proba(x), atol=1e-4)


@each
def test_a_share_without_labelled_samples_is_refused(method: Any, shifted: Pair) -> None:
    with pytest.raises(ConfigError, match=r"^y: no target row has a label; .* needs some \(data.target_labels"):
        clone(method).set_params(target_share=0.5).fit(*shifted)
    with pytest.raises(ConfigError, match=r"^target_share: 1.0 is more than 0.99"):
        clone(method).set_params(target_share=1.0).fit(*shifted)


@pytest.mark.parametrize("method", [InstanceWeighting, KMM, TrAdaBoost, JDOT])
def test_an_estimator_without_weights_is_refused(method: Any, shifted: Pair) -> None:
    if method is JDOT:
        pytest.importorskip("ot")
    x, y, domain = shifted
    with pytest.raises(ConfigError, match=r"^estimator: KNeighborsClassifier takes no weights of samples; use another"):
        method(estimator=KNeighborsClassifier()).fit(x, np.where(np.arange(len(y)) % 9, y, abs(y)), domain)


def test_a_regressor_without_weights_is_refused() -> None:
    x, domain = np.arange(40.0)[:, None], np.where(np.arange(40) < 20, 1, -1)
    with pytest.raises(
        ConfigError, match=r"^estimator: KNeighborsRegressor .*; use another, sklearn.tree.DecisionTree"
    ):
        TrAdaBoostR2(estimator=KNeighborsRegressor()).fit(x, x[:, 0], domain)


def test_a_classifier_without_probabilities_is_refused(shifted: Pair) -> None:
    with pytest.raises(ConfigError, match=r"^discriminator: LinearSVC gives no probabilities; use another"):
        InstanceWeighting(discriminator=LinearSVC()).fit(*shifted)
    pytest.importorskip("ot")
    with pytest.raises(ConfigError, match=r"^estimator: LinearSVC gives no probabilities; use another"):
        JDOT(estimator=LinearSVC()).fit(*shifted)


def beside_skada(code: str) -> list[float]:
    """The numbers that code prints, in a process of its own: skada switches on metadata routing in all of scikit-learn.

    It finds `source`, `target`, `x`, `y` and `domain` of a pair.
    """
    pair = """
import numpy as np
from sklearn.metrics.pairwise import rbf_kernel
rng = np.random.default_rng(0)
source, target = rng.normal(size=(60, 2)), rng.normal(size=(50, 2)) + 1
x, y, domain = np.concatenate([source, target]), np.arange(110) % 2, np.repeat([1, -1], [60, 50])
order = rng.permutation(110)
x, y, domain = x[order], y[order], domain[order]
source, target = x[domain > 0], x[domain < 0]
"""
    found = subprocess.run([sys.executable, "-c", pair + code], capture_output=True, text=True, check=True)
    return [float(number) for number in found.stdout.split()]


needs_skada = pytest.mark.skipif(importlib.util.find_spec("skada") is None, reason="needs the extra benchmarks")


@pytest.mark.slow
@needs_skada
def test_kmm_is_at_or_below_the_objective_of_skada() -> None:
    difference, size = beside_skada("""
from skada._reweight import KMMReweightAdapter
from lightning_da.classical import KMM
theirs = KMMReweightAdapter(gamma=1.0, B=1000.0, tol=1e-9, max_iter=5000, eps=0.5).fit(x, sample_domain=domain)
ours = KMM(gamma=1.0, slack=0.5).fit(x, y, domain).weights_
K, k = rbf_kernel(source, gamma=1.0), 60 * rbf_kernel(source, target, gamma=1.0).mean(1)
a, b = (w @ K @ w / 2 - k @ w for w in (ours, theirs.source_weights_))
print(a - b, abs(b))
""")
    assert -1e-2 * size < difference < 1e-6 * size


@pytest.mark.slow
@needs_skada
def test_kliep_is_above_the_likelihood_of_skada() -> None:
    """Its kernels are those of the target samples that skada drew, and the mean weight of the source is 1 in both.

    skada 0.6.0 moves by steps of 2e-16, and so stays near its start, a mixture of equal kernels.
    """
    ours, theirs, equal, *means = beside_skada("""
from skada._reweight import KLIEPReweightAdapter
from lightning_da.classical import KLIEP
adapter = KLIEPReweightAdapter(gamma=1.0, random_state=0).fit(x, sample_domain=domain)
centres = np.unique(adapter.centers_, axis=0)
a = KLIEP(steps=5000)._mixture(source, target, centres, 1.0)
kernels = [rbf_kernel(rows, adapter.centers_, gamma=1.0) for rows in (source, target)]
even = np.full(kernels[0].shape[1], 1 / kernels[0].mean(0).sum())
print(np.log(rbf_kernel(target, centres, gamma=1.0) @ a).mean())
print(np.log(kernels[1] @ adapter.alpha_).mean(), np.log(kernels[1] @ even).mean())
print((rbf_kernel(source, centres, gamma=1.0) @ a).mean(), (kernels[0] @ adapter.alpha_).mean())
""")
    assert ours > theirs + 0.01
    assert theirs > equal - 0.2
    assert means == pytest.approx([1, 1])


@pytest.mark.slow
@needs_skada
def test_subspace_alignment_equals_that_of_skada() -> None:
    """Up to the signs of the target's directions."""
    differences = beside_skada("""
from skada._subspace import SubspaceAlignmentAdapter
from lightning_da.classical import SA
rng = np.random.default_rng(1)
x = rng.normal(size=(110, 5)) @ rng.normal(size=(5, 5)) + (domain < 0)[:, None]
theirs = SubspaceAlignmentAdapter(n_components=3).fit_transform(x, sample_domain=domain)
ours = SA(dim=3).fit_transform(x, y, domain)
signs = np.sign((ours * theirs)[domain < 0].sum(0))
print(*np.abs(ours - theirs * signs).max(0))
""")
    assert len(differences) == 3
    assert max(differences) < 1e-9


# ---------------------------------------------------------------- boosting


class Above(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Class 1 above a half or above 2.5, whichever has less weight of errors."""

    def fit(self, X: Array, y: Any, sample_weight: Array) -> "Above":
        self.cut_ = min((0.5, 2.5), key=lambda cut: np.round(sample_weight @ ((X[:, 0] > cut) != y), 9))
        return self

    def predict(self, X: Array) -> Any:
        return (X[:, 0] > self.cut_).astype(int)


def test_tradaboost_on_five_points_by_hand() -> None:
    """Source: an error and a right one. Target: one for each cut, a right one, and one that is not read. N = 3."""
    x = np.array([[0.0], [0.0], [1.0], [2.0], [3.0], [9.0]])
    y, domain = np.array([1, 0, 0, 1, 1, -1]), np.array([1, 1, -1, -1, -1, -1])
    fitted = TrAdaBoost(iterations=3, estimator=Above()).fit(x, y, domain)
    beta = 1 / (1 + np.sqrt(2 * np.log(2) / 3))
    # Cut 0.5 errs on a third of the target: 1 / beta_1 = 2. Cut 2.5 then errs on 1 of 4: 1 / beta_2 = 3.
    second = np.array([beta, 1, 2, 1, 1])
    third = second * [beta, 1, 1, 3, 1]
    for found, expected in zip(fitted.weights_, (second, third), strict=True):  # rounds 2 and 3 vote
        np.testing.assert_allclose(found, expected / expected.mean())
    # Cut 0.5 errs on 2 of 6: 1 / beta_3 = 2.
    np.testing.assert_allclose(fitted.votes_, np.log([3, 2]))
    np.testing.assert_array_equal(fitted.predict(np.array([[0.0], [2.0], [3.0]])), [0, 0, 1])
    np.testing.assert_allclose(fitted.predict_proba([[2.0]])[0, 1], np.log(2) / np.log(6))


@pytest.mark.parametrize(("known", "least", "expected"), [(2, 0.25, 0.25), (2, 0, 2 / 11), (6, 0.25, 6 / 15)])
def test_the_first_round_of_tradaboost_gives_the_target_a_share(known: int, least: float, expected: float) -> None:
    source, target = np.linspace(0, 3, 9)[:, None], np.linspace(0, 3, known)[:, None]
    pair = joined(source, (source[:, 0] > 0.5).astype(int), target, (target[:, 0] > 0.5).astype(int))
    (weights,) = TrAdaBoost(iterations=1, share=least, estimator=Above()).fit(*pair).weights_
    assert weights[9:].sum() / weights.sum() == pytest.approx(expected)
    assert len(np.unique(weights[:9])) == len(np.unique(weights[9:])) == 1


def test_tradaboost_votes_with_the_second_half_of_its_rounds() -> None:
    x, y, domain = joined(np.array([[0.0], [2.0]]), np.array([0, 1]), np.array([[0.0], [9.0]]), np.array([0, 1]))
    for iterations, rounds in ((1, 1), (2, 2), (3, 2), (10, 6)):  # from ceil(N / 2) to N
        assert len(TrAdaBoost(iterations=iterations, estimator=Above()).fit(x, y, domain).votes_) == rounds


def test_tradaboost_ends_at_an_error_of_a_half() -> None:
    """Both cuts err on one of three rows of the target; then its weight is that of the others together."""
    target, known = np.array([[0.0], [9.0], [9.0]]), np.array([1, 1, 1])
    x, y, domain = joined(np.array([[0.0], [9.0]]), np.array([0, 1]), target, known)
    fitted = TrAdaBoost(iterations=9, estimator=Above()).fit(x, y, domain)
    np.testing.assert_allclose(fitted.votes_, [np.log(2)])
    y[domain < 0] = 1 - known  # a first error of 2/3
    np.testing.assert_allclose(TrAdaBoost(estimator=Above()).fit(x, y, domain).votes_, [0])


def test_tradaboost_counts_weighted_votes() -> None:
    class Always(Above):
        def __init__(self, label: int) -> None:
            self.label = label

        def predict(self, X: Array) -> Any:
            return np.full(len(X), self.label)

    vote = boosting.Vote([Always(0), Always(1), Always(1)], np.array([1.0, 0.3, 0.3]), 3)
    np.testing.assert_allclose(vote.predict_proba(np.zeros((2, 1))), [[1 / 1.6, 0.6 / 1.6, 0]] * 2)
    assert vote.predict(np.zeros((1, 1))) == [0]
    even = boosting.Vote([Always(0), Always(1), Always(1)], np.zeros(3), 2)
    assert even.predict(np.zeros((1, 1))) == [1]


def test_tradaboost_learns_what_source_and_few_labels_alone_do_not() -> None:
    rng = np.random.default_rng(5)
    source, target = rng.normal(size=(300, 6)), rng.normal(size=(300, 6))
    slopes, moved = np.ones(6), np.array([-2, -2, 1, 1, 1, 1])
    y, wanted = (source @ slopes > 0).astype(int), (target @ moved > 0).astype(int)
    known, rest = np.where(np.arange(300) < 40, wanted, -1), slice(40, 300)
    method = TrAdaBoost(iterations=10).fit(*joined(source, y, target, known))
    assert method.share_ == 0.5
    for rows, labels in ((source, y), (target[:40], wanted[:40])):
        alone = LogisticRegression().fit(rows, labels).score(target[rest], wanted[rest])
        assert method.score(target[rest], wanted[rest]) > alone + 0.05
    same = np.where(known < 0, -1, target @ slopes > 0)  # nothing moved: the smaller share errs as little
    assert method.fit(*joined(source, y, target, same)).share_ == 0.05


def test_a_mean_is_better_by_more_than_its_standard_error() -> None:
    """Gains of 2, 0 and 1 have the mean 1 and the standard error .58, those of 3, -1 and 1 have 1 and 1.15."""
    others = np.array([3.0, 1.0, 4.0])
    assert boosting.is_better(others - [2, 0, 1], others)
    assert not boosting.is_better(others - [3, -1, 1], others)
    assert not boosting.is_better(others, others)


def test_tradaboost_needs_labels_of_known_classes() -> None:
    x, y, domain = joined(np.array([[0.0], [2.0]]), np.array([0, 1]), np.array([[0.0], [2.0]]))
    with pytest.raises(ConfigError, match=r"^y: no target row has a label"):
        TrAdaBoost().fit(x, y, domain)
    with pytest.raises(ConfigError, match=r"^folds: 1 is less than 2"):
        TrAdaBoost(folds=1).fit(x, y, domain)
    with pytest.raises(ConfigError, match=r"^share: 1 is more than 0.99"):
        TrAdaBoost(share=1).fit(x, y, domain)
    with pytest.raises(ConfigError, match=r"^y: the source has one class only, 0"):
        TrAdaBoost().fit(x, np.array([0, 0, 0, 1]), domain)
    y[-1] = 7
    with pytest.raises(ConfigError, match=r"^y: the source has no class 7 of the target"):
        TrAdaBoost().fit(x, y, domain)


def test_a_step_of_the_regression_gives_the_target_its_share() -> None:
    weights, errors = np.full(6, 1 / 6), np.array([0, 0.2, 0.5, 1, 0.3, 0.3])
    lowered = boosting._lowered(weights, errors, 4, 0.6)
    assert lowered.sum() == pytest.approx(1)
    assert lowered[4:].sum() == pytest.approx(0.6)
    # b^e: the logarithms of the factors are a line through 0 over the errors
    factors = np.log(lowered[:4] / lowered[0])
    np.testing.assert_allclose(factors, errors[:4] / errors[3] * factors[3])
    assert factors[3] < 0


def test_the_median_is_weighted() -> None:
    members = [DecisionTreeRegressor().fit([[0]], [value]) for value in (5.0, 1.0, 3.0)]
    for votes, expected in (([1, 1, 1], 3), ([5, 1, 1], 5), ([1, 3, 1], 1)):
        assert boosting._median(members, np.array(votes, dtype=float), np.zeros((1, 1))) == [expected]


def test_the_regression_is_better_than_source_or_few_values_alone() -> None:
    rng = np.random.default_rng(6)
    source, target = rng.normal(size=(100, 8)), rng.normal(size=(200, 8))
    slopes = rng.normal(size=8)
    moved = slopes + np.where(np.arange(8) < 2, 1.0, 0)
    y, wanted = source @ slopes, target @ moved + 0.5 * rng.normal(size=200)
    x, values, domain = joined(source, y, target, np.where(np.arange(200) < 12, wanted, np.nan))

    def error(found: Array) -> float:
        return float(np.sqrt(np.mean((found - wanted[12:]) ** 2)))

    fitted = TrAdaBoostR2(steps=5, iterations=4, folds=3, estimator=Ridge(1e-3)).fit(x, values, domain)
    for rows in (slice(100), slice(100, 112)):
        assert error(fitted.predict(target[12:])) < error(Ridge(1e-3).fit(x[rows], values[rows]).predict(target[12:]))
    assert 12 / 112 < fitted.share_ < 1
    with pytest.raises(ConfigError, match="0 target rows have a value"):
        TrAdaBoostR2().fit(x, np.where(domain > 0, values, np.nan), domain)


# ---------------------------------------------------------------- transport


@pytest.fixture(scope="module")
def turned() -> tuple[Pair, Any]:
    """Three classes; the target is turned by 0.4 radians and moved."""
    rng = np.random.default_rng(7)
    y, wanted = np.arange(60) % 3, np.arange(45) % 3
    centres = 4 * np.array([[1, 0], [-0.5, 0.9], [-0.5, -0.9]])
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    source = centres[y] + rng.normal(size=(60, 2))
    target = (centres[wanted] + rng.normal(size=(45, 2))) @ turn + [3, -2]
    return joined(source, y, target), wanted


def test_an_empty_plan_is_refused(turned: tuple[Pair, Any]) -> None:
    pytest.importorskip("ot")
    with pytest.raises(ConfigError, match=r"^entropy: 1e-05 is too small for these costs, the plan is empty; raise it"):
        OptimalTransport(entropy=1e-5).fit(*turned[0])


def test_transport_is_that_of_pot(turned: tuple[Pair, Any]) -> None:
    ot = pytest.importorskip("ot")
    (x, y, domain), _ = turned
    source, target = x[domain > 0], x[domain < 0]
    fitted = OptimalTransport(entropy=0.2, classes=0.05).fit(x, y, domain)
    largest = euclidean_distances(source, target, squared=True).max()
    reference = ot.da.SinkhornLpl1Transport(reg_e=0.2, reg_cl=0.05, norm="max")
    reference.fit(Xs=source, ys=y[domain > 0], Xt=target)
    np.testing.assert_allclose(fitted.moved_, reference.transform(Xs=source), atol=1e-5)
    assert largest > 1
    new = source[:5] + 1e-3
    np.testing.assert_allclose(fitted.transform(new, np.ones(5, int)), fitted.moved_[:5] + 1e-3, atol=1e-9)
    np.testing.assert_array_equal(fitted.transform(target), target)


@pytest.mark.parametrize("method", [OptimalTransport(), JDOT()], ids=["optimal_transport", "jdot"])
def test_transport_turns_the_classes_back(method: Any, turned: tuple[Pair, Any]) -> None:
    pytest.importorskip("ot")
    pair, wanted = turned
    target = pair[0][pair[2] < 0]
    plain = SourceOnly(estimator=method.final_estimator()).fit(*pair).score(target, wanted)
    assert method.fit(*pair).score(target, wanted) > plain + 0.1


def test_jdot_gives_the_target_all_labels_of_the_source(turned: tuple[Pair, Any]) -> None:
    pytest.importorskip("ot")
    shares = JDOT().fit(*turned[0]).shares_
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 3)


def test_without_pot_the_extra_is_named(turned: tuple[Pair, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ConfigError, match=r"the package POT is missing; install the extra classical: .*\[classical\]"):
        JDOT().fit(*turned[0])
