"""The base of the classical methods: checks of what they get, and the classifier on their features."""

from numbers import Integral
from types import NoneType
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone, is_regressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, has_fit_parameter, validate_data

from lightning_da.errors import ConfigError, check_range, list_choices, one_line

Array = NDArray[np.float64]
Labels = NDArray[np.intp]
T = TypeVar("T")
UNKNOWN = -1
"""Label of a target row whose class is not known."""


def fit_weighted(estimator: Any, x: Array, y: Labels | Array, weights: Array) -> Any:
    """Fits a classifier or regressor to samples (n, d) with labels or values and weights (n,), and returns it.

    Raises:
        ConfigError: If it takes no weights.
    """
    if not has_fit_parameter(estimator, "sample_weight"):
        raise _lacking("estimator", estimator, "takes no weights of samples")
    return estimator.fit(x, y, sample_weight=weights)


def check_probabilities(name: str, classifier: Any) -> None:
    """Refuses a classifier without `predict_proba`; `name` is the argument that holds it."""
    if not hasattr(classifier, "predict_proba"):
        raise _lacking(name, classifier, "gives no probabilities")


def _lacking(name: str, estimator: Any, what: str) -> ConfigError:
    example = "tree.DecisionTreeRegressor" if is_regressor(estimator) else "linear_model.LogisticRegression"
    return ConfigError(f"{name}: {type(estimator).__name__} {what}; use another, sklearn.{example} for example")


class Domains(NamedTuple):
    """The rows of both domains, apart; those of the target have no labels."""

    source: Array
    labels: NDArray[Any]
    target: Array


def _has_predict_proba(adapter: "Adapter") -> bool:
    return hasattr(adapter.final_estimator(), "predict_proba")


class Adapter(ClassifierMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """A method that finds features common to two domains, and a classifier that learns from those of the source.

    A subclass fills `_fit`, which sets the fitted state, and `_transform`, which reads nothing but that state. The
    state consists of attributes whose names end in `_`: arrays, numbers and strings. Only `estimator_` is another
    object, and `fit_estimator` makes it from `features_` and `labels_` at any time.

    The arguments of a subclass are the fields of a dataclass. It is one without `eq` and `repr`, since scikit-learn has
    its own.

    Args:
        estimator: The final classifier. `None` is the nearest neighbour.
    """

    classes_: NDArray[Any]
    """The classes of the source, sorted."""
    features_: Array
    """The features of the rows that the classifier learns from, (n, k): those of the source, in most methods."""
    labels_: Labels
    """Positions of their labels in `classes_`, (n,)."""

    def __init__(self, estimator: BaseEstimator | None = None) -> None:
        self.estimator = estimator

    def fit(self, X: ArrayLike, y: ArrayLike, sample_domain: ArrayLike) -> Self:
        """Learns from the rows of both domains, in any order.

        Args:
            X: (n, d), float64.
            y: (n,), labels; those of target rows are not read, unless the method says so (`reads_target_labels`).
            sample_domain: (n,), integers: positive for rows of the source, negative for those of the target.

        Raises:
            ConfigError: If a domain is missing, if a value is NaN or infinite, if the source has one class, or if
                the method cannot work on these rows.
        """
        source, given, target = self.split(X, y, sample_domain)
        self.labels_ = self.name_classes(given)
        few = self.labelled_target(X, y, sample_domain) if self.reads_target_labels else None
        self._fit(source, self.labels_, target)
        self.features_ = self._transform(source, True)
        if few is not None:
            self._add(*few)
        self.fit_estimator()
        return self

    def name_classes(self, given: NDArray[Any]) -> Labels:
        """Sets `classes_`, and returns the positions in them of the source's labels, (n_s,).

        Raises:
            ConfigError: If the source has one class.
        """
        try:
            check_classification_targets(given)
        except ValueError as error:
            raise ConfigError(f"y: {one_line(error)}") from error
        self.classes_, labels = np.unique(given, return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(f"y: the source has one class only, {self.classes_[0]}; give it 2 or more")
        return labels

    def split(self, X: ArrayLike, y: ArrayLike, sample_domain: ArrayLike) -> Domains:
        """Checks what `fit` gets, and takes the two domains apart; the order within each stays.

        Raises:
            ConfigError: As `fit` does.
        """
        check_settings(self)
        x = check_rows(self, X, reset=True)
        labels = check_labels(self, y, len(x))
        is_source = find_source(sample_domain, len(x))
        for name, count in (("source", int(is_source.sum())), ("target", int((~is_source).sum()))):
            if count < 2:
                raise ConfigError(
                    f"sample_domain: the {name} has {count} sample{'s' * (count != 1)}; give it 2 or more "
                    "(positive numbers for the source, negative for the target)"
                )
        given = np.asarray(labels[is_source].tolist())  # what stands at rows of the target has no say in its type
        return Domains(x[is_source], given, x[~is_source])

    @property
    def reads_target_labels(self) -> bool:
        """Whether `fit` reads labels of the target."""
        return False

    def labelled_target(self, X: ArrayLike, y: ArrayLike, sample_domain: ArrayLike) -> tuple[Array, Labels]:
        """The rows of the target whose class is known, (m, d), and the positions of their labels in `classes_`, (m,).

        For a method that reads labels of the target; after `split` and `name_classes`.

        Raises:
            ConfigError: If no target row has a label, or one of a class that the source does not have, or if `UNKNOWN`
                is a class of the source.
        """
        if UNKNOWN in self.classes_.tolist():
            raise ConfigError(f"y: the source has a class {UNKNOWN}, which marks rows without a label; rename it")
        every = np.asarray(y).ravel()
        labelled = (np.asarray(sample_domain) < 0) & (every != UNKNOWN)
        known = np.asarray(every[labelled].tolist())
        if not len(known):
            name = type(self).__name__
            raise ConfigError(f"y: no target row has a label; {name} needs some (data.target_labels, train_on both)")
        if foreign := set(known.tolist()) - set(self.classes_.tolist()):
            raise ConfigError(f"y: the source has no class {min(foreign)} of the target; give both the same classes")
        return check_rows(self, X, reset=False)[labelled], np.searchsorted(self.classes_, known)

    def fit_estimator(self) -> None:
        """Makes the final classifier from `features_` and `labels_`."""
        self.estimator_ = self.final_estimator().fit(self.features_, self.labels_)

    def final_estimator(self) -> Any:
        """The final classifier, not fitted."""
        return KNeighborsClassifier(1) if self.estimator is None else clone(self.estimator)

    def fit_transform(self, X: ArrayLike, y: ArrayLike, sample_domain: ArrayLike) -> Array:
        """The features, (n, k), of the rows that it learns from, in their order; see `fit`."""
        return self.fit(X, y, sample_domain).transform(X, sample_domain)

    def transform(self, X: ArrayLike, sample_domain: ArrayLike | None = None) -> Array:
        """The features, (n, k), of rows that `fit` may not have seen, in their order.

        Args:
            X: (n, d).
            sample_domain: (n,), as in `fit`; `None`: all rows are of the target.
        """
        check_is_fitted(self, "classes_")
        x = check_rows(self, X, reset=False)
        is_source = np.zeros(len(x), bool) if sample_domain is None else find_source(sample_domain, len(x))
        parts = {source: self._transform(x[is_source == source], source) for source in np.unique(is_source).tolist()}
        features = np.empty((len(x), next(iter(parts.values())).shape[1]))
        for source, part in parts.items():
            features[is_source == source] = part
        return features

    def predict(self, X: ArrayLike, sample_domain: ArrayLike | None = None) -> NDArray[Any]:
        """The classes, (n,), of rows; the arguments are those of `transform`."""
        z = self.transform(X, sample_domain)
        predicted: NDArray[Any] = self.classes_[self.estimator_.predict(z)]
        return predicted

    @available_if(_has_predict_proba)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike, sample_domain: ArrayLike | None = None) -> Array:
        """The probabilities, (n, C), in the order of `classes_`; the arguments are those of `transform`."""
        z = self.transform(X, sample_domain)
        probabilities: Array = self.estimator_.predict_proba(z)
        return probabilities

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        """Learns from rows, (n_s, d) and (n_t, d), and the source's labels, (n_s,), as positions in `classes_`."""
        raise NotImplementedError

    def _transform(self, x: Array, source: bool) -> Array:
        """The features, (n, k), of rows, (n, d), of one domain."""
        raise NotImplementedError

    def _add(self, rows: Array, labels: Labels) -> None:
        """Takes labelled rows of the target, (m, d), and their labels, (m,), into `features_` and `labels_`."""
        raise NotImplementedError


def check_settings(estimator: BaseEstimator) -> None:
    """Checks the numbers and choices among the arguments of an estimator, by their annotations.

    Raises:
        ConfigError: If a number is negative, not finite or not whole where it must be, or a choice is none of those.
    """
    kinds = get_type_hints(type(estimator))
    for name, value in estimator.get_params(deep=False).items():
        parts = (kinds[name], *get_args(kinds[name]))
        choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        if value in choices or (value is None and NoneType in parts):
            continue
        if choices and (isinstance(value, str) or float not in parts):
            raise ConfigError(f"{name}: {value!r} is not a valid choice; {list_choices(str(value), choices)}")
        if int in parts or float in parts:
            check_range(name, value, low=0)
            if float not in parts and not isinstance(value, Integral):
                raise ConfigError(f"{name}: {value} is not a whole number")


def check_rows(estimator: BaseEstimator, X: ArrayLike, reset: bool) -> Array:
    """Rows (n, d), float64; with `reset` the estimator notes their width, without it they have that width.

    Raises:
        ConfigError: If they have another shape or kind, or a value is NaN or infinite.
    """
    try:
        x: Array = validate_data(estimator, X, dtype=np.float64, reset=reset, ensure_all_finite=False)
    except ValueError as error:
        raise ConfigError(f"X: {one_line(error)}") from error
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise ConfigError(
            f"X: {len(bad)} values are NaN or inf, the first in row {row}, column {column}; fill or drop them"
        )
    return x


def check_labels(estimator: BaseEstimator, y: ArrayLike, rows: int) -> NDArray[Any]:
    """Labels or values, (rows,).

    Raises:
        ConfigError: If they are missing, or have another shape.
    """
    if y is None:
        raise ConfigError(f"y: {type(estimator).__name__} requires y to be passed, but the target y is None")
    labels = np.asarray(y)
    if labels.shape == (rows, 1):
        labels = column_or_1d(labels, warn=True)
    if labels.shape != (rows,):
        raise ConfigError(f"y: its shape is {labels.shape}; give one label a row of X, ({rows},)")
    return labels


def find_source(sample_domain: ArrayLike, rows: int) -> NDArray[np.bool_]:
    """Which rows are of the source, (rows,).

    Raises:
        ConfigError: If the numbers of the domains are no integers, or another number of them.
    """
    numbers = np.asarray(sample_domain)
    if numbers.shape != (rows,) or numbers.dtype.kind not in "iu" or not numbers.all():
        raise ConfigError(
            f"sample_domain: give {rows} integers, one a row of X: positive for the source, negative for the target"
        )
    result: NDArray[np.bool_] = numbers > 0
    return result
