"""Estimators of `lightning_da.classical` as modules, whose fitted state is in a checkpoint without pickle."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from lightning_da.classical.base import Adapter

LINEAR = (LinearSVC, LogisticRegression, RidgeClassifier)
"""Classifiers that are a linear map of the features."""
SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest probability, so that its logarithm is finite."""


class Fitted(nn.Module):
    """From vectors (B, d) to the features (B, k) of an estimator; vectors as they are until it is fitted.

    The estimator computes with NumPy in float64. Its state is in the state dict: each attribute whose name ends in
    `_`, text as its bytes. The final classifier is made of it anew.

    Args:
        estimator: The estimator, of which this module fits a copy.
    """

    def __init__(self, estimator: Adapter) -> None:
        super().__init__()
        self.estimator: Adapter = clone(estimator)
        self.fitted = False
        self.sizes: Mapping[str, int] = {"target": -1}
        self.program: Program | None = None
        """What the estimator computes for the target, in torch, if torch can."""

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        """Sets the domain of the next vectors; for a batch of both, the number of each, in order."""
        self.sizes = {domain: -1} if isinstance(domain, str) else domain

    def fit(self, vectors: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Fits the estimator.

        Args:
            vectors: Of source and target, shapes (n_s, d) and (n_t, d).
            labels: Of both, int64, `UNKNOWN` (-1) where the class is not known.
        """
        domain = np.repeat([1, -1], [len(part) for part in vectors])
        self.estimator.fit(torch.cat(list(vectors)).double().numpy(), torch.cat(list(labels)).numpy(), domain)
        self._set_fitted()

    def _set_fitted(self) -> None:
        self.fitted = True
        self.program = Program.of(self.estimator)

    def domains(self, number: int) -> NDArray[np.int64]:
        """1 for each of the vectors that is of the source, -1 for the others, (number,)."""
        sizes = [number if size < 0 else size for size in self.sizes.values()]
        return np.repeat([1 if name == "source" else -1 for name in self.sizes], sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, k) of vectors (B, d)."""
        if not self.fitted:
            return x
        found = self.estimator.transform(x.detach().cpu().double().numpy(), self.domains(len(x)))
        return torch.from_numpy(found).to(x.device, torch.float32)

    def state(self) -> dict[str, Tensor]:
        """The fitted state by the name of the attribute; nothing before the fit."""
        own = {key: value for key, value in vars(self.estimator).items() if key.endswith("_") and key != "estimator_"}
        return {key: _as_tensor(value) for key, value in own.items() if not key.startswith("_")}

    def restore(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Takes the state whose names have a prefix."""
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for key, value in found.items():
            setattr(self.estimator, key, _as_value(value))
        if found:
            self.estimator.fit_estimator()
            self._set_fitted()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        destination.update({prefix + key: value for key, value in self.state().items()})

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:  # noqa: ARG002
        self.restore(state_dict, prefix)


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, str):
        return torch.tensor(list(value.encode()), dtype=torch.uint8)
    return torch.from_numpy(np.array(value))  # a copy, with one dtype for each kind of number


def _as_value(value: Tensor) -> Any:
    if value.dtype == torch.uint8:
        return bytes(value.tolist()).decode()
    return value.numpy().copy() if value.ndim else value.item()


class Decision(nn.Module):
    """From vectors (B, d) to the logarithms of an estimator's class probabilities (B, num_classes).

    An estimator without probabilities gives the predicted class 1. Classes that it does not know have the smallest
    probability.

    Args:
        fitted: The estimator; until it is fitted, all classes are equally likely.
        num_classes: Number of classes.
    """

    def __init__(self, fitted: Fitted, num_classes: int) -> None:
        super().__init__()
        self._fitted, self.num_classes = [fitted], num_classes  # in a list, it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, num_classes) of vectors (B, d)."""
        (fitted,) = self._fitted
        if not fitted.fitted:
            return x.new_zeros(len(x), self.num_classes)
        vectors, domains = x.detach().cpu().double().numpy(), fitted.domains(len(x))
        estimator = fitted.estimator
        if hasattr(estimator, "predict_proba"):
            known = estimator.predict_proba(vectors, domains)
        else:
            known = np.equal.outer(estimator.predict(vectors, domains), estimator.classes_)
        shape = len(x), self.num_classes
        found = torch.zeros(shape, dtype=torch.float32)  # the default is half precision in `bf16-true`
        found[:, estimator.classes_.tolist()] = torch.from_numpy(np.asarray(known, dtype=np.float32))
        return found.clamp(min=SMALLEST).log().to(x.device)


class Program(nn.Module):
    """An affine map of vectors and a simple classifier, in torch: a network of them can be exported.

    Args:
        unit: Whether the features are brought to length 1.
        weight: Shape (d, k), float64.
        bias: Shape (k,).
        classifier: A fitted linear model of scikit-learn, or the nearest neighbour.
        classes: The label of each of its classes, (C,), int64.
    """

    weight: Tensor
    bias: Tensor
    points: Tensor
    offsets: Tensor
    labels: Tensor

    def __init__(
        self, unit: bool, weight: NDArray[Any], bias: NDArray[Any], classifier: Any, classes: NDArray[np.int64]
    ) -> None:
        super().__init__()
        self._unit = unit
        # the nearest point has the largest inner product less half of its own square
        if isinstance(classifier, KNeighborsClassifier):
            points = classifier._fit_X
            offsets, labels = -np.square(points).sum(axis=1) / 2, classifier._y
        else:
            points, offsets = classifier.coef_, classifier.intercept_
            labels = np.arange(len(classifier.classes_))
            if len(points) == 1:  # of two classes
                points, offsets = np.concatenate([0 * points, points]), np.append(0, offsets)
        self._soft = isinstance(classifier, LogisticRegression)
        parts = {"weight": weight, "bias": bias, "points": points, "offsets": offsets, "labels": classes[labels]}
        for name, value in parts.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    @classmethod
    def of(cls, estimator: Adapter) -> "Program | None":
        """The program of a fitted estimator; None if it is no affine map, or its classifier is another one.

        The map is found by its values at 0 and at the unit vectors, and tried at two random vectors.
        """
        classifier = getattr(estimator, "estimator_", None)
        nearest = isinstance(classifier, KNeighborsClassifier) and classifier.n_neighbors == 1
        if not (nearest or isinstance(classifier, LINEAR)):
            return None
        plain, width = copy(estimator), int(estimator.n_features_in_)
        if unit := bool(getattr(estimator, "unit", False)):
            plain.set_params(unit=False)
        bias = plain.transform(np.zeros((1, width)))
        weight = plain.transform(np.eye(width)) - bias
        x = np.random.default_rng(0).normal(size=(2, width))
        mapped = x @ weight + bias
        expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True) if unit else mapped
        if not np.allclose(estimator.transform(x), expected, rtol=1e-6, atol=1e-9):
            return None
        return cls(unit, weight, bias[0], classifier, np.asarray(estimator.classes_))

    def forward(self, x: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Features (B, k) and log-probabilities (B, num_classes) of vectors (B, d) of the target."""
        features = x.double() @ self.weight + self.bias
        if self._unit:
            features = normalize(features, eps=1e-300)
        scores = features @ self.points.T + self.offsets
        if self._soft:
            found = scores.softmax(dim=1) @ one_hot(self.labels, num_classes).double()
        else:
            found = one_hot(self.labels[scores.argmax(dim=1)], num_classes).double()
        return features.float(), found.clamp(min=SMALLEST).log().float()
