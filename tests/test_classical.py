"""The classical methods by their properties and beside naive computations of their papers' formulas."""

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from sklearn.linear_model import LogisticRegression

from lightning_da.classical import classifiers, projections, subspaces
from lightning_da.classical.base import Adapter, Array
from lightning_da.classical.subspaces import CORAL

MODULES: tuple[ModuleType, ...] = (classifiers, projections, subspaces)
METHODS = sorted(
    {
        cls
        for module in MODULES
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, Adapter) and "__dataclass_fields__" in vars(cls)
    }
    - {projections.Projection},
    key=lambda cls: cls.__name__,
)
SMALL = {"dim": 3, "neighbors": 4}
each = pytest.mark.parametrize("method", METHODS)


def make(method: Any, **options: Any) -> Any:
    known = method().get_params()
    return method(**({key: value for key, value in SMALL.items() if key in known} | options))


@pytest.fixture(scope="module")
def pair() -> tuple[Array, Array, Array]:
    """Three classes in 6 dimensions; the target is turned, scaled and moved."""
    generator = np.random.default_rng(0)
    centres = 4 * generator.normal(size=(3, 6))
    y = generator.integers(0, 3, size=70)
    y[:6] = [0, 1, 2, 0, 1, 2]
    x = centres[y] + generator.normal(size=(70, 6))
    domain = np.where(generator.permutation(70) < 40, 1, -2)
    turn = scipy.linalg.expm(0.3 * np.triu(generator.normal(size=(6, 6)), 1) * 1.0)
    turn = np.linalg.qr(turn)[0]
    x[domain < 0] = x[domain < 0] @ turn * 1.3 + 0.7
    return x, y, domain


def apart(pair: tuple[Array, Array, Array]) -> tuple[Array, Any, Array]:
    x, y, domain = pair
    return x[domain > 0], y[domain > 0], x[domain < 0]


@each
def test_target_labels_do_not_matter(method: Any, pair: tuple[Array, Array, Array]) -> None:
    x, y, domain = pair
    one = make(method).fit(x, y, domain)
    other = make(method).fit(x, np.where(domain > 0, y, -1), domain)
    np.testing.assert_array_equal(one.transform(x, domain), other.transform(x, domain))
    np.testing.assert_array_equal(one.predict(x), other.predict(x))


@each
def test_the_order_of_rows_does_not_matter(method: Any, pair: tuple[Array, Array, Array]) -> None:
    """Features are compared by their inner products, since the signs of eigenvectors are free."""
    x, y, domain = pair
    order = np.random.default_rng(1).permutation(len(x))
    z = make(method).fit_transform(x, y, domain)
    again = make(method).fit_transform(x[order], y[order], domain[order])
    np.testing.assert_allclose((z @ z.T)[np.ix_(order, order)], again @ again.T, rtol=1e-6, atol=1e-6)


@each
def test_rows_that_were_not_seen_get_what_they_got_in_fit(method: Any, pair: tuple[Array, Array, Array]) -> None:
    x, y, domain = pair
    fitted = make(method).fit(x, y, domain)
    z = fitted.transform(x, domain)
    for rows in (domain > 0, domain < 0, slice(3, 9)):
        np.testing.assert_allclose(fitted.transform(x[rows], domain[rows]), z[rows], atol=1e-9)
    np.testing.assert_array_equal(fitted.transform(x[domain < 0]), fitted.transform(x[domain < 0], domain[domain < 0]))
    np.testing.assert_allclose(z[domain > 0], fitted.features_, atol=1e-9)


@each
def test_the_fitted_state_is_arrays_numbers_and_strings(method: Any, pair: tuple[Array, Array, Array]) -> None:
    """So it can be saved without pickle; the final classifier is made from it again."""
    x, y, domain = pair
    fitted = make(method, **({"kernel": "rbf"} if "kernel" in method().get_params() else {})).fit(x, y, domain)
    state = {key: value for key, value in vars(fitted).items() if key.endswith("_") and key != "estimator_"}
    assert all(isinstance(value, np.ndarray | float | int | str) for value in state.values()), state.keys()
    restored = make(method, **fitted.get_params())
    vars(restored).update(state)
    restored.fit_estimator()
    np.testing.assert_array_equal(restored.predict_proba(x, domain), fitted.predict_proba(x, domain))


ROTATION_FREE = [method for method in METHODS if method is not CORAL]


@each
def test_a_rotation_of_all_rows_changes_nothing(method: Any, pair: tuple[Array, Array, Array]) -> None:
    if method in NOT_ROTATION_FREE:
        pytest.skip("it selects single inputs")
    x, y, domain = pair
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    z, turned = (make(method).fit_transform(rows, y, domain) for rows in (x, x @ turn))
    np.testing.assert_allclose(z @ z.T, turned @ turned.T, rtol=1e-6, atol=1e-6)


NOT_ROTATION_FREE: list[Any] = []


@each
def test_it_transfers_where_the_inputs_do_not(method: Any) -> None:
    """The classes lie apart along one direction, and the domains along another that is as wide."""
    generator = np.random.default_rng(3)
    y = np.arange(80) % 2
    domain = np.where(np.arange(80) < 40, 1, -1)
    x = generator.normal(size=(80, 8)) * 0.5
    x[:, 0] += 4 * y
    x[:, 1] += 3 * (domain < 0)
    x[:, 0] += 3 * (domain < 0)
    source_only = LogisticRegression().fit(x[domain > 0], y[domain > 0]).score(x[domain < 0], y[domain < 0])
    accuracy = np.mean(make(method).fit(x, y, domain).predict(x[domain < 0]) == y[domain < 0])
    assert source_only < 0.7
    assert accuracy > 0.9


class TwoDomains:
    """Scikit-learn's checks give no domains: every second row is of the target."""

    def fit(self, X: Any, y: Any, sample_domain: Any = None) -> Any:
        """Fits."""
        if sample_domain is None:
            sample_domain = np.where(np.arange(len(np.asarray(y, dtype=object))) % 2, -1, 1)
        return super().fit(X, y, sample_domain)  # type: ignore[misc]
