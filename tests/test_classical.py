"""The classical methods by their properties and beside naive computations of their papers' formulas."""

import importlib.util
import inspect
import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import check_estimator

from lightning_da.classical import classifiers, manifolds, open_sets, projections, selection, subspaces, tensors
from lightning_da.classical.algebra import (
    a_distance,
    conditional,
    gaussian,
    leading,
    marginal,
    scatter_factor,
    unit_rows,
)
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.classical.classifiers import ARTL, DTMKL, MEDA
from lightning_da.classical.manifolds import CTC, DIP, DME, StatisticalManifold, hellinger_gradient, mmd_gradient
from lightning_da.classical.open_sets import ATI, assigned, transform
from lightning_da.classical.projections import ACA, BDA, DJPMMD, JDA, JGSA, TCA, TJM, VDA, estimated_mu
from lightning_da.classical.selection import FSSL, FSSP, SCL
from lightning_da.classical.source_only import SourceOnly
from lightning_da.classical.subspaces import CORAL, GFK, SA, SDA, SGF, Geodesic, principal
from lightning_da.classical.tensors import TAISL, multiply, unfold
from lightning_da.classical.tradaboost import TrAdaBoost, TrAdaBoostR2
from lightning_da.classical.transport import JDOT, OptimalTransport
from lightning_da.classical.weights import KLIEP, KMM, InstanceWeighting
from lightning_da.errors import ConfigError

MODULES: tuple[ModuleType, ...] = (classifiers, manifolds, open_sets, projections, selection, subspaces, tensors)
METHODS = [ACA, ARTL, BDA, CORAL, CTC, DIP, DJPMMD, DME, DTMKL, FSSL, FSSP, GFK, JDA, JGSA, MEDA, SA, SCL, SDA, SGF]
METHODS += [ATI, StatisticalManifold, TAISL, TCA, TJM, VDA]
SMALL = {"dim": 3, "neighbors": 4, "rank": 20, "steps": 3, "iterations": 2}
Pair = tuple[Array, Labels, NDArray[np.int_]]
each = pytest.mark.parametrize("method", METHODS)


def make(method: type[Adapter], **options: Any) -> Adapter:
    known = method().get_params()
    return method(**({key: value for key, value in SMALL.items() if key in known} | options))


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Three classes in 6 dimensions; the target is turned, scaled and moved. The domains' rows are mixed."""
    generator = np.random.default_rng(0)
    y = np.r_[:6, generator.integers(0, 3, size=36)] % 3
    x = 4 * generator.normal(size=(3, 6))[y] + generator.normal(size=(42, 6))
    domain = np.where(generator.permutation(42) < 24, 1, -2)
    skew = np.triu(generator.normal(size=(6, 6)), 1)
    turn = scipy.linalg.expm(0.1 * (skew - skew.T))
    x[domain < 0] = x[domain < 0] @ turn * 1.3 + 0.7
    return x, y, domain


def apart(pair: Pair) -> tuple[Array, Labels, Array]:
    x, y, domain = pair
    return x[domain > 0], y[domain > 0], x[domain < 0]


def test_every_method_is_tested() -> None:
    found = {
        cls
        for module in MODULES
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, Adapter) and "__dataclass_params__" in vars(cls)
    }
    assert found - {projections.Projection} == set(METHODS)


@each
def test_features_belong_to_rows(method: type[Adapter], pair: Pair) -> None:
    """Not to their order or to target labels, and rows that come later get the features of equal ones."""
    x, y, domain = pair
    fitted = make(method).fit(x, y, domain)
    z = fitted.transform(x, domain)
    for rows in (domain > 0, domain < 0, slice(3, 9)):
        np.testing.assert_allclose(fitted.transform(x[rows], domain[rows]), z[rows], atol=1e-9)
    np.testing.assert_allclose(fitted.transform(x[domain < 0]), z[domain < 0], atol=1e-9)
    np.testing.assert_allclose(fitted.features_, z[domain > 0], atol=1e-9)
    order = np.random.default_rng(1).permutation(len(x))
    unlabelled = np.where(domain > 0, y, -1)
    again = make(method).fit_transform(x[order], unlabelled[order], domain[order])
    # by their inner products, since the signs of eigenvectors are free
    np.testing.assert_allclose((z @ z.T)[np.ix_(order, order)], again @ again.T, rtol=1e-6, atol=1e-6)


@each
def test_a_rotation_of_all_rows_changes_nothing(method: type[Adapter], pair: Pair) -> None:
    x, y, domain = pair
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    z, turned = (make(method).fit_transform(rows, y, domain) for rows in (x, x @ turn))
    same = np.allclose(z @ z.T, turned @ turned.T, rtol=1e-5, atol=1e-5)
    assert same == (method not in (FSSL, FSSP, SCL))  # these select single inputs


@each
def test_the_fitted_state_is_arrays_and_numbers(method: type[Adapter], pair: Pair) -> None:
    """So it is saved without pickle; the final classifier is made from it again."""
    x, y, domain = pair
    fitted = make(method, **({"kernel": "rbf"} if "kernel" in method().get_params() else {})).fit(x, y, domain)
    state = {key: value for key, value in vars(fitted).items() if key.endswith("_") and key != "estimator_"}
    assert not {key for key, value in state.items() if not isinstance(value, np.ndarray | float | int | str)}
    restored = method(**fitted.get_params())
    for key, value in state.items():
        setattr(restored, key, value)
    restored.fit_estimator()
    np.testing.assert_array_equal(restored.predict_proba(x, domain), fitted.predict_proba(x, domain))
    np.testing.assert_array_equal(restored.predict(x), restored.classes_[restored.predict_proba(x).argmax(1)])


class Alternate:
    """For scikit-learn's checks, which give no domains: about every third row is of the target."""

    def fit(self, X: Any, y: Any, sample_domain: Any = None) -> Any:
        """Fits."""
        alternate = np.where(np.arange(1 if y is None else len(np.asarray(y))) % 7 % 3 == 2, -1, 1)
        return super().fit(X, y, alternate if sample_domain is None else sample_domain)  # type: ignore[misc]


class AlternateTransformer(Alternate):
    """The same for estimators that give features."""

    def fit_transform(self, X: Any, y: Any, sample_domain: Any = None) -> Any:
        """Fits, and transforms all rows as rows of the target."""
        return self.fit(X, y, sample_domain).transform(X)


def alternate(method: type[Adapter]) -> Any:
    """An estimator of the method with such a `fit`, of a class of this module, since one check pickles it."""
    name = f"Alternate{method.__name__}"
    kind = AlternateTransformer if hasattr(method, "transform") else Alternate
    globals()[name] = type(name, (kind, method), {"__module__": __name__})
    known = method().get_params()
    small = {"dim": 2, "neighbors": 2, "iterations": 2, "steps": 5}
    small |= {"dim": 1, "support": 1} if "support" in known else {}
    return globals()[name](**{key: value for key, value in small.items() if key in known})


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, KMM, KLIEP, InstanceWeighting, SourceOnly, TrAdaBoost, TrAdaBoostR2])
def test_scikit_learns_checks(method: type[Adapter]) -> None:
    check_scikit_learns(alternate(method))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ot") is None, reason="needs the extra classical")
@pytest.mark.parametrize("method", [OptimalTransport, JDOT])
def test_scikit_learns_checks_of_transport(method: type[Adapter]) -> None:
    check_scikit_learns(alternate(method))


def check_scikit_learns(estimator: Any) -> None:
    narrow = {
        "dim": {"check_fit2d_1feature": "two dimensions of one"},
        "dims": {"check_classifiers_train": "a core of one value, half of two"},
        "share": {"check_classifiers_classes": "-1 is no class"},
    }
    expected = {check: why for key in estimator.get_params() for check, why in narrow.get(key, {}).items()}
    results = check_estimator(estimator, on_fail=None, expected_failed_checks=expected)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert len(results) > 40
    assert failed == {}


# --- projections ---


def naive(pair: Pair, mu: float, lam: float, dim: int, rounds: int, kernel: bool = False) -> Array:
    """BDA as the paper writes it: n x n matrices, and a general solver for `B a = phi X H X^T a`, smallest phi."""
    source, labels, target = apart(pair)
    x = np.vstack([source, target])
    n_s, n = len(source), len(x)
    if kernel:
        distances = euclidean_distances(x, squared=True)
        x = np.exp(-distances / np.median(distances[np.triu_indices(n, 1)]))
    H = np.eye(n) - np.ones((n, n)) / n
    pseudo = None
    for _ in range(rounds):
        M = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                sign = 1 if (i < n_s) == (j < n_s) else -1
                size = (n_s if i < n_s else n - n_s) * (n_s if j < n_s else n - n_s)
                M[i, j] += (1 if pseudo is None else 1 - mu) * sign / size
                if pseudo is not None:
                    every = np.r_[labels, pseudo]
                    for c in set(labels) & set(pseudo):
                        if every[i] == every[j] == c:
                            counts = np.sum(labels == c), np.sum(pseudo == c)
                            M[i, j] += mu * sign / (counts[i >= n_s] * counts[j >= n_s])
        M /= np.linalg.norm(M)
        values, vectors = scipy.linalg.eig(x.T @ H @ x, x.T @ M @ x + lam * np.eye(x.shape[1]))
        A = vectors[:, np.argsort(-values.real)[:dim]].real
        z = unit_rows(x @ (A / np.linalg.norm(A, axis=0)))
        pseudo = KNeighborsClassifier(1).fit(z[:n_s], labels).predict(z[n_s:])
    return z


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_bda_is_the_papers_on_full_matrices(kernel: Any, pair: Pair) -> None:
    x, y, domain = pair
    order = np.argsort(-domain, kind="stable")
    z = BDA(mu=0.3, dim=3, lam=0.5, iterations=2, kernel=kernel).fit_transform(x, y, domain)[order]
    expected = naive(pair, 0.3, 0.5, 3, 2, kernel == "rbf")
    np.testing.assert_allclose(np.abs(z.T @ z), np.abs(expected.T @ expected), atol=1e-6)
    np.testing.assert_allclose(z @ z.T, expected @ expected.T, atol=1e-6)


def test_bda_is_tca_and_jda_at_two_weights(pair: Pair) -> None:
    tca, jda = TCA(dim=3).fit(*pair), JDA(dim=3).fit(*pair)
    np.testing.assert_allclose(BDA(mu=0.0, dim=3).fit(*pair).components_, tca.components_, atol=1e-9)
    np.testing.assert_allclose(BDA(mu=0.5, dim=3).fit(*pair).components_, jda.components_, atol=1e-12)
    assert np.abs(tca.components_ - jda.components_).max() > 1e-3


def test_the_constraint_holds_in_each_scaling(pair: Pair) -> None:
    source, _, target = apart(pair)
    x = np.vstack([source, target])
    centred = x - x.mean(0)
    A = TCA(dim=4, scaling="constraint").fit(*pair).components_
    np.testing.assert_allclose(A.T @ centred.T @ centred @ A, np.eye(4), atol=1e-8)
    U = TCA(dim=4).fit(*pair).components_
    np.testing.assert_allclose(np.linalg.norm(U, axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(A / np.linalg.norm(A, axis=0), U, atol=1e-10)


def test_mmd_matrices_are_distances_of_means(pair: Pair) -> None:
    source, labels, target = apart(pair)
    pseudo = np.arange(len(target)) % 2  # no target row of class 2
    x = np.vstack([source, target])
    difference = source.mean(0) - target.mean(0)
    matrix = marginal(len(source), len(target))
    np.testing.assert_allclose(matrix.between(x), np.outer(difference, difference), atol=1e-12)
    classes = [source[labels == c].mean(0) - target[pseudo == c].mean(0) for c in (0, 1)]
    np.testing.assert_allclose(
        np.trace(conditional(labels, pseudo).between(x)), sum(np.sum(d**2) for d in classes), atol=1e-12
    )
    full = matrix.vectors.T * matrix.weights @ matrix.vectors
    np.testing.assert_allclose(np.sum(matrix.normalized().weights), 1 / np.linalg.norm(full), rtol=1e-12)


def test_djp_mmd_is_the_papers_on_full_matrices(pair: Pair) -> None:
    source, labels, target = apart(pair)
    x, n_s = np.vstack([source, target]), len(source)
    method = DJPMMD(dim=2, mu=0.2)
    method.classes_ = np.unique(labels)
    pseudo = np.arange(len(target)) % 3
    means_s = [source[labels == c].sum(0) / n_s for c in range(3)]
    means_t = [target[pseudo == c].sum(0) / len(target) for c in range(3)]
    cost, n = np.zeros((6, 6)), len(x)
    M = np.zeros((n, n))
    for c in range(3):
        for k in range(3):
            factor = 1 if c == k else -0.2
            cost += factor * np.outer(means_s[c] - means_t[k], means_s[c] - means_t[k])
            v = np.r_[(labels == c) / n_s, -1.0 * (pseudo == k) / len(target)]
            M += factor * np.outer(v, v)
    np.testing.assert_allclose(method._cost(x, labels, pseudo), cost / np.linalg.norm(M), atol=1e-10)


def test_tjm_is_the_papers_on_full_matrices(pair: Pair) -> None:
    source, _, target = apart(pair)
    x, n_s = np.vstack([source, target]), len(source)
    n = len(x)
    K, H = x @ x.T, np.eye(n) - np.ones((n, n)) / n
    M = marginal(n_s, n - n_s).normalized()
    M_full = M.vectors.T * M.weights @ M.vectors
    G = np.eye(n)
    for _ in range(3):
        _, vectors = scipy.linalg.eigh(K @ H @ K, K @ M_full @ K + 0.7 * G)
        A = vectors[:, ::-1][:, :2]
        A = A / np.linalg.norm(A, axis=0)
        G[range(n_s), range(n_s)] = 1 / (2 * np.linalg.norm(A[:n_s], axis=1) + 1e-12)
    z = TJM(dim=2, lam=0.7, iterations=3, unit=False).fit(*pair)
    expected = K @ A
    np.testing.assert_allclose(
        np.abs(z.transform(x, np.ones(n, int))), np.abs(expected), rtol=1e-6, atol=1e-6 * np.abs(expected).max()
    )


def test_jgsa_minimizes_its_quotient(pair: Pair) -> None:
    """Its pair of projections is stationary: the cost times each column is phi times the factor's scatter."""
    source, labels, target = apart(pair)
    fitted = JGSA(dim=2, iterations=1, beta=0.3, mu=0.8, lam=0.6).fit(*pair)
    pseudo = KNeighborsClassifier(1).fit(source, labels).predict(target)
    n_s, n_t = len(source), len(target)
    overall = source.mean(0)
    S_b, S_w, M = np.zeros((6, 6)), np.zeros((6, 6)), np.zeros((n_s + n_t, n_s + n_t))
    v = np.r_[np.full(n_s, 1 / n_s), np.full(n_t, -1 / n_t)]
    M += 3 * np.outer(v, v)
    norm = np.linalg.norm(M)
    for c in range(3):
        rows = source[labels == c]
        S_b += len(rows) * np.outer(rows.mean(0) - overall, rows.mean(0) - overall)
        S_w += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        v = np.r_[(labels == c) / np.sum(labels == c), -1.0 * (pseudo == c) / max(np.sum(pseudo == c), 1)]
        M += np.outer(v, v)
    X = scipy.linalg.block_diag(source, target)
    eye, zero = np.eye(6), np.zeros((6, 6))
    S_t = (target - target.mean(0)).T @ (target - target.mean(0))
    high = np.block([[0.3 * S_b, zero], [zero, 0.8 * S_t]])
    low = np.block([[0.6 * eye + 0.3 * S_w, -0.6 * eye], [-0.6 * eye, 1.4 * eye]]) + X.T @ (M / norm) @ X
    values = scipy.linalg.eigh(high, low, eigvals_only=True)[::-1]
    both = np.vstack([fitted.source_components_, fitted.target_components_])
    for i in range(2):
        np.testing.assert_allclose(high @ both[:, i], values[i] * (low @ both[:, i]), rtol=1e-5, atol=1e-6)


def test_vda_and_aca_differ_from_their_bases_as_they_say(pair: Pair) -> None:
    source, labels, target = apart(pair)
    x = np.vstack([source, target])
    within = sum(np.sum((source[labels == c] - source[labels == c].mean(0)) ** 2) for c in range(3)) / len(source)
    pseudo = np.arange(len(target)) % 3
    more = VDA(within=0.5)._cost(x, labels, pseudo) - JDA()._cost(x, labels, pseudo)
    np.testing.assert_allclose(np.trace(more), 0.5 * within, rtol=1e-9)
    factor = ACA()._factor(x, len(source))
    centred = target - target.mean(0)
    np.testing.assert_allclose(factor @ factor.T, (centred.T @ centred) @ (centred.T @ centred), rtol=1e-9)


def test_mu_is_the_classes_share_of_the_distances() -> None:
    generator = np.random.default_rng(4)
    a, b = generator.normal(size=(200, 3)), generator.normal(size=(200, 3))
    assert a_distance(a, b) < 0.4
    assert a_distance(a, b + 10) == 2
    assert a_distance(a, b[:20] + 10) == 2
    labels = np.arange(200) % 2
    apart_classes = b + 6 * np.where(labels == 0, 1, -1)[:, None]  # the classes move, the domains' means do not
    assert estimated_mu(a, labels, apart_classes, labels) > 0.7
    assert 0.4 < estimated_mu(a, labels, b + 10, labels) < 0.6


def test_left_out_rows_are_not_learnt_from() -> None:
    """The closed form of `a_distance` beside a fit for each row."""
    generator = np.random.default_rng(5)
    source, target = generator.normal(size=(12, 2)), generator.normal(size=(8, 2)) + 0.8
    x = np.vstack([source, target])
    x = np.column_stack([x / np.sqrt(np.mean((x - x.mean(0)) ** 2)), np.ones(20)])
    y, weight = np.r_[np.ones(12), -np.ones(8)], np.r_[np.full(12, 1 / 12), np.full(8, 1 / 8)]
    wrong = np.zeros(20)
    for i in range(20):
        kept = np.arange(20) != i
        weighted = x[kept].T * weight[kept]
        w = np.linalg.solve(weighted @ x[kept] + 1e-3 * np.eye(3), weighted @ y[kept])
        wrong[i] = (x[i] @ w) * y[i] <= 0
    expected = np.clip(2 * (1 - 2 * np.average(wrong, weights=weight)), 0, 2)
    assert a_distance(source, target) == pytest.approx(expected)


# --- subspaces and covariances ---


def test_gfk_is_the_integral_along_the_geodesic(pair: Pair) -> None:
    source, _, target = apart(pair)
    p_s, p_t = principal(source, 2)[0], principal(target, 2)[0]
    path = Geodesic(p_s, p_t)
    for t, p in ((0.0, p_s), (1.0, p_t)):
        np.testing.assert_allclose(path.basis(t) @ path.basis(t).T, p @ p.T, atol=1e-12)
    # the path by the exponential of the skew matrix that turns one subspace into the other
    speed = path.across * path.angles @ path.start.T
    nodes, weights = np.polynomial.legendre.leggauss(20)
    G = np.zeros((6, 6))
    for node, weight in zip(nodes, weights, strict=True):
        basis = scipy.linalg.expm((node + 1) / 2 * (speed - speed.T)) @ p_s
        G += weight / 2 * basis @ basis.T
    components = GFK(dim=2).fit(*pair).source_components_
    np.testing.assert_allclose(components @ components.T, G, atol=1e-10)


def test_sgf_tends_to_gfk(pair: Pair) -> None:
    components = GFK(dim=2).fit(*pair).source_components_
    errors = []
    for samples in (2, 8, 32):
        sampled = SGF(dim=2, samples=samples).fit(*pair).source_components_
        errors.append(np.abs(sampled @ sampled.T - components @ components.T).max())
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


def test_gfk_of_one_subspace_is_the_projection() -> None:
    x = np.random.default_rng(6).normal(size=(30, 5)) * [5, 4, 1, 1, 1]
    path = GFK(dim=2)._matrices(x, x)[0]
    p = principal(x, 2)[0]
    np.testing.assert_allclose(path @ path.T, p @ p.T, atol=1e-12)


def test_coral_makes_covariances_equal(pair: Pair) -> None:
    x, y, domain = pair
    for reg in (1.0, 1e-9):
        z = CORAL(reg=reg).fit_transform(x, y, domain)
        np.testing.assert_allclose(z[domain < 0], x[domain < 0] - x[domain < 0].mean(0), atol=1e-12)
        A = CORAL(reg=reg).fit(x, y, domain).source_components_
        C_s, C_t = (np.cov(rows, rowvar=False) + reg * np.eye(6) for rows in (x[domain > 0], x[domain < 0]))
        np.testing.assert_allclose(A.T @ C_s @ A, C_t, atol=1e-9)
    np.testing.assert_allclose(np.cov(z[domain > 0], rowvar=False), np.cov(z[domain < 0], rowvar=False), atol=1e-6)


def test_sa_compares_rows_by_both_projections(pair: Pair) -> None:
    source, _, target = apart(pair)
    directions = [np.linalg.eigh(np.cov(x, rowvar=False))[1][:, -2:] for x in (source, target)]
    both = [(x - x.mean(0)) @ v @ v.T for x, v in zip((source, target), directions, strict=True)]
    z = SA(dim=2).fit_transform(*pair)
    np.testing.assert_allclose(z[pair[2] > 0] @ z[pair[2] < 0].T, both[0] @ both[1].T, atol=1e-9)


def test_sda_gives_the_source_the_targets_variances() -> None:
    """All dimensions are kept, and the principal directions are the same: then the covariances become equal."""
    generator = np.random.default_rng(7)
    source = generator.normal(size=(40, 3)) @ np.diag([3, 2, 1])
    target = (source - source.mean(0)) * [1.5, 1.2, 0.4] + 5
    # the axes of `source` itself are turned onto its principal directions, so that the scales act along them
    directions = principal(source, 3)[0]
    target = (source @ directions * [1.5, 1.2, 0.4]) @ directions.T + 5
    domain = np.r_[np.ones(40, int), -np.ones(40, int)]
    rows, labels = np.vstack([source, target]), np.arange(80) % 2
    z = SDA(dim=3).fit_transform(rows, labels, domain)
    np.testing.assert_allclose(np.cov(z[:40], rowvar=False), np.cov(z[40:], rowvar=False), atol=1e-9)
    z = SA(dim=3).fit_transform(rows, labels, domain)
    np.testing.assert_allclose(np.cov(z[:40], rowvar=False), np.diag(principal(source, 3)[1]), atol=1e-9)


# --- classifiers ---


def test_artl_is_the_papers_on_full_matrices(pair: Pair) -> None:
    source, labels, target = apart(pair)
    fitted = ARTL(neighbors=4, iterations=1).fit(*pair)
    x, n_s = unit_rows(np.vstack([source, target])), len(source)
    n = len(x)
    K = np.exp(-0.5 * euclidean_distances(x, squared=True))
    cosines = x @ x.T
    W = np.zeros((n, n))
    for i in range(n):
        near = [j for j in np.argsort(-cosines[i]) if j != i][:4]
        W[i, near] = np.maximum(cosines[i, near], 0)
    W = np.maximum(W, W.T) + np.eye(n)
    D = np.diag(1 / np.sqrt(W.sum(1)))
    pseudo = KNeighborsClassifier(1).fit(x[:n_s], labels).predict(x[n_s:])
    M = np.zeros((n, n))
    for c in (None, 0, 1, 2):
        s, t = (labels == c, pseudo == c) if c is not None else (np.ones(n_s), np.ones(n - n_s))
        v = np.r_[s / np.sum(s), -1.0 * t / np.sum(t)]
        M += np.outer(v, v)
    M /= np.linalg.norm(M)
    E = np.diag(np.r_[np.ones(n_s), np.zeros(n - n_s)])
    Y = np.r_[np.eye(3)[labels], np.zeros((n - n_s, 3))]
    alpha = np.linalg.solve((E + 10 * M + np.eye(n) - D @ W @ D) @ K + 0.1 * np.eye(n), E @ Y)
    np.testing.assert_allclose(fitted.coefficients_, alpha, atol=1e-8)


def test_dtmkl_prefers_kernels_under_which_the_domains_agree(pair: Pair) -> None:
    fitted = DTMKL(theta=1e-9, C=1.0).fit(*pair)
    assert fitted.weights_.sum() == pytest.approx(1)
    assert fitted.weights_.min() >= 0
    source, labels, target = apart(pair)
    weights = np.r_[np.full(len(source), 1 / len(source)), np.full(len(target), -1 / len(target))]
    mmd = [mmd_gradient(np.vstack([source, target]), weights, gamma)[0] for gamma in fitted.gammas_]
    assert fitted.weights_.argmax() == np.argmin(mmd)
    machine = SVC(kernel="precomputed", tol=1e-8)
    kernels = [gaussian(source, source, gamma) for gamma in fitted.gammas_]
    machine.fit(np.tensordot(np.round(fitted.weights_), kernels, 1), labels == 1)
    scores = fitted.transform(source, np.ones(len(source), int))[:, 1]
    np.testing.assert_allclose(scores, machine.decision_function(kernels[int(np.argmin(mmd))]), atol=1e-3)


def test_dtmkl_reaches_a_minimum_of_its_objective_and_answers_with_its_svms(pair: Pair) -> None:
    x, y, domain = pair
    y = np.where(
        np.random.default_rng(9).random(len(y)) < 0.2, (y + 1) % 3, y
    )  # noise, so that no kernel is best alone
    source, labels, target = apart((x, y, domain))
    fitted = DTMKL(theta=1e-3, C=1.0, widths=(0.1, 1.0, 10.0)).fit(x, y, domain)
    signed = np.r_[np.full(len(source), 1 / len(source)), np.full(len(target), -1 / len(target))]
    rows = np.vstack([source, target])
    p = np.array([signed @ gaussian(rows, rows, gamma) @ signed for gamma in fitted.gammas_])
    kernels = np.stack([gaussian(source, source, gamma) for gamma in fitted.gammas_])

    def machines(d: Array) -> list[SVC]:
        kernel = np.tensordot(d, kernels, 1)
        return [SVC(kernel="precomputed", tol=1e-10).fit(kernel, np.where(labels == c, 1, -1)) for c in range(3)]

    def objective(d: Array) -> float:
        kernel = np.tensordot(d, kernels, 1)
        total = (p @ d) ** 2 / 2
        for machine in machines(d):
            alpha, support = machine.dual_coef_[0], machine.support_
            total += 1e-3 * (np.abs(alpha).sum() - alpha @ kernel[np.ix_(support, support)] @ alpha / 2)
        return float(total)

    lowest = objective(fitted.weights_)
    grid = [np.array([a, b, 20 - a - b]) / 20 for a in range(21) for b in range(21 - a)]
    assert lowest <= min(map(objective, grid)) * (1 + 1e-4)
    final = np.tensordot(fitted.weights_, kernels, 1)
    scores = np.column_stack([machine.decision_function(final) for machine in machines(fitted.weights_)])
    np.testing.assert_allclose(fitted.transform(source, np.ones(len(source), int)), scores, atol=1e-5)


# --- distances of projected distributions ---


@pytest.mark.parametrize("distance", [mmd_gradient, hellinger_gradient])
def test_gradients_are_those_of_the_values(distance: Any) -> None:
    generator = np.random.default_rng(8)
    z, step = generator.normal(size=(9, 2)), generator.normal(size=(9, 2))
    weights = np.r_[np.full(4, 1 / 4), np.full(5, -1 / 5)]
    gradient = distance(z, weights, 0.4)[1]
    difference = distance(z + 1e-6 * step, weights, 0.4)[0] - distance(z - 1e-6 * step, weights, 0.4)[0]
    assert np.sum(gradient * step) == pytest.approx(difference / 2e-6, rel=1e-6)
    same = np.vstack([z[:4], z[:4]])
    assert distance(same, np.r_[np.full(4, 1 / 4), np.full(4, -1 / 4)], 0.4)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", [DIP, StatisticalManifold])
def test_the_distance_falls_along_orthonormal_columns(method: Any) -> None:
    """The domains differ along two of six directions, those of the largest variance."""
    generator = np.random.default_rng(9)
    x = generator.normal(size=(80, 6)) * [2, 2, 1, 1, 1, 1]
    domain = np.where(np.arange(80) % 2, 1, -1)
    x[domain < 0, :2] += 4
    W = method(dim=3, steps=30).fit(x, np.arange(80) // 40, domain).components_
    np.testing.assert_allclose(W.T @ W, np.eye(3), atol=1e-12)
    shift = np.array([4, 4, 0, 0, 0, 0])
    assert np.linalg.norm(shift @ principal(x, 3)[0]) > 5
    assert np.linalg.norm(shift @ W) < 1


@pytest.mark.parametrize("moves", [np.zeros((3, 3)), np.array([[0, 2, 0], [1, 1, 0], [-1, 0, 0]])])
def test_ctc_finds_the_shares_or_the_moves_of_the_classes(moves: Array) -> None:
    """In the target each class has moved on its own, or the classes have other shares."""
    generator = np.random.default_rng(15)
    centres, counts = np.array([[0, 0, 0], [6, 0, 0], [0, 6, 0]]), [10, 10, 10] if moves.any() else [20, 7, 3]
    y, wanted = np.repeat([0, 1, 2], 10), np.repeat([0, 1, 2], counts)
    source = centres[y] + 0.5 * generator.normal(size=(30, 3))
    target = (centres + moves)[wanted] + 0.5 * generator.normal(size=(30, 3))
    given = np.vstack([source, target]), np.r_[y, wanted], np.r_[np.ones(30, int), -np.ones(30, int)]
    fitted = CTC(dim=2, location=1e-3 if moves.any() else 0.1).fit(*given)
    W = fitted.components_
    np.testing.assert_allclose(W.T @ W, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(fitted.shares_, np.array(counts) / 30, atol=0.04)
    np.testing.assert_allclose(fitted.weights_, np.repeat(fitted.shares_ * 3, 10))
    moved = fitted.scales_[y] * (source @ W) + fitted.locations_[y]
    np.testing.assert_allclose(fitted.moved_, moved)
    for c in range(3):
        np.testing.assert_allclose(moved[y == c].mean(0), target[wanted == c].mean(0) @ W, atol=0.4)
    learnt = LogisticRegression(max_iter=1000).fit(moved, y, sample_weight=fitted.weights_)
    np.testing.assert_allclose(fitted.predict_proba(target), learnt.predict_proba(target @ W))


# --- selection ---


def test_few_inputs_are_selected() -> None:
    generator = np.random.default_rng(10)
    x = generator.normal(size=(80, 8)) * 0.5
    y, domain = np.arange(80) % 4, np.where(np.arange(80) < 40, 1, -1)
    x[:, :2] += 6 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[y]
    for method in (FSSL, FSSP):
        norms = np.linalg.norm(method(dim=2, lam=5.0, iterations=30).fit(x, y, domain).components_, axis=1)
        assert norms[2:].max() < 1e-2 * norms[:2].min()
    x[domain < 0, 0] += 6  # FSSP sees that the domains differ there
    shares = []
    for method in (FSSL, FSSP):
        norms = np.linalg.norm(method(dim=2, lam=0.1).fit(x, y, domain).components_, axis=1)
        shares.append(norms[0] / norms[1])
    assert shares[1] < shares[0]


def test_scl_puts_inputs_together_that_predict_the_same_pivots() -> None:
    """A source word and a target word never meet, and both come with the same pivot."""
    generator = np.random.default_rng(11)
    y, domain = np.arange(200) % 2, np.where(np.arange(200) < 100, 1, -1)
    x = np.zeros((200, 6))
    x[:, 0] = y * (generator.random(200) < 0.9)  # the pivot, in both domains
    x[:, 1] = (1 - y) * (generator.random(200) < 0.9)
    x[:, 2], x[:, 3] = y * (domain > 0), y * (domain < 0)  # words of one domain
    x[:, 4], x[:, 5] = (1 - y) * (domain > 0), (1 - y) * (domain < 0)
    fitted = SCL(dim=1, pivots=2, support=10).fit(x, y, domain)
    theta = fitted.components_[:, 0]
    np.testing.assert_allclose(theta[:2], 0, atol=1e-12)
    assert theta[2] * theta[3] > 0
    assert theta[2] * theta[4] < 0
    assert np.mean(fitted.predict(x[domain < 0]) == y[domain < 0]) > 0.95


# --- errors ---


def failing(**changes: Any) -> tuple[Any, Any, Any]:
    x = np.random.default_rng(12).normal(size=(12, 3))
    given = {"x": x, "y": np.arange(12) % 2, "domain": np.r_[np.ones(6, int), -np.ones(6, int)]} | changes
    return given["x"], given["y"], given["domain"]


def test_what_stands_at_rows_of_the_target_is_not_read(pair: Pair) -> None:
    x, y, domain = pair
    names = np.array([None if d < 0 else f"class {label}" for d, label in zip(domain, y, strict=True)], dtype=object)
    plain = TCA(dim=2).fit(x, y, domain)
    named = TCA(dim=2).fit(x, names, domain)
    assert named.predict(x).tolist() == [f"class {label}" for label in plain.predict(x)]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (TCA(dim=1), failing(domain=np.ones(12, int)), "sample_domain: the target has 0 samples"),
        (TCA(dim=1), failing(domain=-np.ones(12, int)), "sample_domain: the source has 0 samples"),
        (TCA(dim=1), failing(domain=np.zeros(12, int)), "sample_domain: give 12 integers"),
        (TCA(dim=1), failing(x=np.full((12, 3), np.nan)), "X: 36 values are NaN or inf, the first in row 0, column 0"),
        (TCA(dim=1), failing(y=np.zeros(12)), "y: the source has one class only, 0.0"),
        (TCA(dim=1), failing(y=np.zeros(5)), "y: its shape is"),
        (TCA(dim=4), failing(), "dim: 4 dimensions are wanted, and the rows have 3"),
        (TCA(dim=0), failing(), "dim: 0 dimensions are wanted"),
        (SA(dim=4), failing(), "dim: 4 dimensions are wanted, and the source's rows have 3"),
        (DIP(dim=4), failing(), "dim: 4 dimensions are wanted, and the rows have 3"),
        (TCA(dim=1, lam=0.0), failing(), "lam: 0.0 is not more than 0"),
        *(
            (method(iterations=0), failing(), "iterations: 0 is less than 1")
            for method in (TCA, TJM, JGSA, ARTL, DTMKL)
        ),
        (BDA(dim=1), failing(y=np.array([0, 1, 1, 1, 1, 1] * 2)), "y: class number 0 of the source has one row"),
        (ARTL(neighbors=12), failing(), "neighbors: 12 are wanted, and there are 12 rows; give 1 to 11"),
        (SCL(dim=3, pivots=2), failing(x=-np.ones((12, 3))), "dim: 3 is more than the number of possible pivots, 0"),
        (TCA(dim=1, kernel="rbf"), failing(x=np.ones((12, 3))), "X: more than half of the distances"),
        (TCA(dim=1).set_params(kernel="RBF"), failing(), "kernel: 'RBF' is not a valid choice"),
        (DME(dim=1).set_params(measure="foo"), failing(), "measure: 'foo' is not a valid choice"),
        (DME(dim=1, rank=0), failing(), "rank: 0 is less than 1"),
        (BDA(dim=1, mu=5, iterations=1), failing(), "mu: 5 is more than 1"),
        (BDA(dim=1).set_params(mu="guess"), failing(), "mu: 'guess' is not a valid choice"),
        (VDA(dim=1, within=-5.0), failing(), "within: -5.0 is less than 0"),
        (DIP(dim=1, gamma=-1.0), failing(), "gamma: -1.0 is less than 0"),
        (KMM(slack=-1.0), failing(), "slack: -1.0 is less than 0"),
        (KMM(slack=float("nan")), failing(), "slack: nan is not a finite number"),
        (SA().set_params(dim=2.5), failing(), "dim: 2.5 is not a whole number"),
        (DTMKL(widths=()), failing(), "widths: there is none"),
        (SCL(dim=0), failing(), "dim: 0 is less than 1"),
        (StatisticalManifold(dim=1), failing(x=np.r_[np.eye(6, 3), 40 + np.eye(6, 3)]), "gamma: under"),
        (TrAdaBoost(), failing(y=np.r_[-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1]), "y: the source has a class -1"),
        (TrAdaBoostR2(), failing(y=np.r_[np.nan, np.ones(11)]), "y: 1 source rows have no value"),
        (TrAdaBoostR2(), failing(y=np.array(["a"] * 12)), "y: could not convert string to float"),
    ],
)
def test_errors_are_one_line_and_name_the_cause(method: Adapter, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        method.fit(*given)
    assert str(error.value).startswith(message), error.value
    assert "\n" not in str(error.value)


def test_another_final_classifier_is_taken(pair: Pair) -> None:
    x, y, domain = pair
    fitted = TCA(dim=3, estimator=LogisticRegression()).fit(x, y, domain)
    np.testing.assert_array_equal(
        fitted.predict(x[domain < 0]),
        LogisticRegression().fit(fitted.features_, y[domain > 0]).predict(fitted.transform(x[domain < 0])),
    )
    assert not hasattr(TCA(estimator=LinearSVC()), "predict_proba")


def test_columns_of_leading_are_in_order() -> None:
    x = np.random.default_rng(13).normal(size=(30, 4)) * [1, 2, 3, 4]
    found = leading(scatter_factor(x), np.eye(4), 4)
    variances = np.var(x @ found, axis=0)
    assert np.all(np.diff(variances) < 0)


def test_an_indefinite_cost_is_solved() -> None:
    """The smallest phi may be negative."""
    generator = np.random.default_rng(14)
    factor, cost = generator.normal(size=(4, 4)), np.diag([-30.0, 1, 2, -1])
    found = leading(factor, cost, 4, "constraint")
    np.testing.assert_allclose(found.T @ factor @ factor.T @ found, np.eye(4), atol=1e-8)
    phi = scipy.linalg.eigh(cost, factor @ factor.T, eigvals_only=True)
    np.testing.assert_allclose(found.T @ cost @ found, np.diag(phi), atol=1e-6 * np.abs(phi).max())
    with pytest.raises(ConfigError, match="lam: the cost is not positive definite"):
        leading(factor[:, :2], cost, 2)


# ---------------------------------------------------------------- tensors


def test_products_and_unfoldings_of_tensors_are_sums_over_indices() -> None:
    generator = np.random.default_rng(0)
    x, a, b = generator.normal(size=(5, 3, 4)), generator.normal(size=(2, 3)), generator.normal(size=(6, 4))
    np.testing.assert_allclose(multiply(x, [a, b]), np.einsum("pi,qj,nij->npq", a, b, x))
    np.testing.assert_allclose(multiply(x, [a, b], without=0), np.einsum("qj,nij->niq", b, x))
    np.testing.assert_allclose(unfold(x, 1), np.stack([x[:, :, j].ravel() for j in range(4)]))


def low_rank(turned: bool) -> tuple[Array, Labels, NDArray[np.int_]]:
    """Tensors (4, 6) with cores (2, 3), in four classes; the modes of the source are turned away from the target's."""
    generator = np.random.default_rng(0)
    cores = 3 * generator.normal(size=(4, 2, 3)).repeat(20, axis=0) + generator.normal(size=(80, 2, 3))
    x = multiply(cores, [np.linalg.qr(generator.normal(size=sides))[0] for sides in ((4, 2), (6, 3))])
    y, domain = np.arange(4).repeat(20), np.where(np.arange(80) % 2, 1, -1)
    skews = [np.triu(generator.normal(size=(side, side)), 1) for side in (4, 6)]
    if turned:
        turns = [scipy.linalg.expm(0.25 * (skew - skew.T)) for skew in skews]
        x[domain > 0] = multiply(x[domain > 0], turns)
    return x.reshape(80, -1), y, domain


def test_tensor_alignment_finds_the_turns_of_the_modes_and_its_objective_never_rises() -> None:
    x, y, domain = low_rank(turned=True)
    fitted = TAISL(shape=(4, 6), dims=(2, 3), iterations=100, unit=False).fit(x, y, domain)
    losses = fitted.losses_
    assert (np.diff(losses) <= 1e-9 * losses[0]).all()
    assert losses[-1] < 0.05 * losses[0]
    # the objective by its formula, with matrices that are found again
    parts = [np.split(each, [8]) for each in (fitted.source_, fitted.target_)]
    (s0, s1), (t0, t1) = ((one.reshape(4, 2), other.reshape(6, 3)) for one, other in parts)
    for matrix in (s0, s1, t0, t1):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-10)
    source, target = (x[domain == d].reshape(-1, 4, 6) for d in (1, -1))
    left = sum(
        ((z - np.einsum("ip,jq,npq->nij", a, b, np.einsum("ip,jq,nij->npq", a, b, z))) ** 2).sum()
        for z, a, b in ((source, s0, s1), (target, t0, t1))
    )
    assert left == pytest.approx(losses[-1], rel=1e-8)
    before = TAISL(shape=(4, 6), dims=(2, 3), iterations=0).fit(x, y, domain)
    assert fitted.score(x[domain < 0], y[domain < 0]) >= before.score(x[domain < 0], y[domain < 0])


def test_without_turns_both_domains_have_one_map() -> None:
    """And where they are in one subspace there is nothing to turn."""
    x, y, domain = low_rank(turned=False)
    naive = TAISL(shape=(4, 6), dims=(2, 3), iterations=0).fit(x, y, domain)
    np.testing.assert_array_equal(naive.source_, naive.target_)
    fitted = TAISL(shape=(4, 6), dims=(2, 3), iterations=3).fit(x, y, domain)
    assert fitted.losses_.max() < 1e-9 * (x**2).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (5, 2)}, r"shape: a row has 6 values, and a tensor \[5, 2\] has 10"),
        ({"shape": (2, 3), "dims": (2,)}, r"dims: give one for each side of \[2, 3\], 1 to that side, not \[2\]"),
        ({"shape": (2, 3), "dims": (2, 4)}, "dims: give one"),
        ({"iterations": -1}, "iterations: -1"),
    ],
)
def test_tensor_alignment_refuses(options: dict[str, Any], message: str, pair: Pair) -> None:
    with pytest.raises(ConfigError, match=message):
        TAISL(**options).fit(*pair)


# ---------------------------------------------------------------- open sets


def test_the_assignment_is_the_cheapest_of_all() -> None:
    """Also where a class would stay empty, and where one sample is cheapest for two classes."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        distances = generator.uniform(0, 4, size=(3, 5))
        distances[1] += generator.choice([0, 3])
        limit = generator.uniform(0, 4)
        costs = np.vstack([distances, np.full(5, limit)])
        total = {
            places: costs[list(places), range(5)].sum()
            for places in itertools.product(range(4), repeat=5)
            if {0, 1, 2} <= set(places)
        }
        found = assigned(distances, limit)
        assert total[tuple(found.tolist())] == pytest.approx(min(total.values()))


def test_the_map_is_the_minimum_of_its_objective() -> None:
    generator = np.random.default_rng(0)
    means, target, places = generator.normal(size=(3, 4)), generator.normal(size=(9, 4)), np.arange(9) % 4

    def objective(flat: Array) -> float:
        W = flat.reshape(4, 4)
        known = [(W @ means[c] - t) @ (W @ means[c] - t) for c, t in zip(places, target, strict=True) if c < 3]
        return float(sum(known) + 0.7 * ((W - np.eye(4)) ** 2).sum())

    found = scipy.optimize.minimize(objective, np.eye(4).ravel(), tol=1e-12).x.reshape(4, 4)
    np.testing.assert_allclose(transform(means, target, places, 0.7), found, atol=1e-4)
    np.testing.assert_allclose(transform(means, target, np.full(9, 3), 0.7), np.eye(4))


def open_pair() -> tuple[Array, Any, NDArray[np.int_]]:
    """Three classes in 5 dimensions, of which the target is turned, and 30 samples of a fourth class there."""
    generator = np.random.default_rng(0)
    y = np.r_[np.arange(90) % 3, np.arange(90) % 3, np.full(30, 3)]
    x = np.eye(5)[y] + 0.08 * generator.normal(size=(210, 5))
    domain = np.where(np.arange(210) < 90, 1, -1)
    skew = np.triu(np.ones((5, 5)), 1)
    x[domain < 0] = x[domain < 0] @ scipy.linalg.expm(0.22 * (skew - skew.T))
    return x, np.array(["a", "b", "c", "d"])[y], domain


@pytest.mark.parametrize("words", [True, False])
def test_samples_of_another_class_are_unknown_and_the_source_is_mapped(words: bool) -> None:
    x, names, domain = open_pair()
    y = names if words else np.unique(names, return_inverse=True)[1]
    unlabelled = np.where(domain > 0, y, y[0])
    fitted = ATI().fit(x, unlabelled, domain)
    expected = np.where(y == "d", "unknown", y) if words else y
    assert fitted.classes_.tolist() == (["a", "b", "c", "unknown"] if words else [0, 1, 2, 3])
    assert (fitted.predict(x[domain < 0]) == expected[domain < 0]).mean() > 0.95
    assert (fitted.assigned_ == 3).sum() == pytest.approx(30, abs=4)
    gaps = [
        [
            np.linalg.norm(z[domain > 0][y[domain > 0] == c].mean(0) - z[domain < 0][y[domain < 0] == c].mean(0))
            for c in y[:3]
        ]
        for z in (unit_rows(x), fitted.transform(x, domain))
    ]
    assert max(gaps[1]) < 0.3 * min(gaps[0])


def test_without_an_outlier_there_is_no_further_class(pair: Pair) -> None:
    fitted = ATI(cost=1.0).fit(*pair)
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert set(fitted.predict(pair[0])) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cost": 2.0}, "cost: 2.0"), ({"ridge": 0.0}, "ridge: 0.0"), ({"iterations": 0}, "iterations: 0")],
)
def test_assignment_refuses(options: dict[str, Any], message: str, pair: Pair) -> None:
    with pytest.raises(ConfigError, match=message):
        ATI(**options).fit(*pair)


def test_assignment_needs_a_target_sample_for_each_class(pair: Pair) -> None:
    x, y, domain = pair
    kept = (domain > 0) | (np.cumsum(domain < 0) <= 2)
    with pytest.raises(ConfigError, match="the target has 2 samples, fewer than 3 classes"):
        ATI().fit(x[kept], y[kept], domain[kept])
