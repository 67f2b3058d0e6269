"""No adaptation."""

from dataclasses import dataclass

from sklearn.base import BaseEstimator

from lightning_da.classical.base import Adapter, Array, Labels


@dataclass(eq=False, repr=False, kw_only=True)
class SourceOnly(Adapter):
    """The lower bound: the classifier learns from the source's vectors as they are.

    Args:
        estimator: The classifier. `None` is the nearest neighbour.
    """

    estimator: BaseEstimator | None = None

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        pass

    def _transform(self, x: Array, source: bool) -> Array:  # noqa: ARG002
        return x
