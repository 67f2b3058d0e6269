"""A random forest as tensors, which a checkpoint keeps and a program can contain."""

from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from lightning_da.errors import check_range


class Forest(nn.Module):
    """From vectors (B, width) to class probabilities (B, num_classes), the mean of those of the trees.

    scikit-learn grows the trees. Each is kept as a complete one: a leaf above the last level is repeated below.

    Source: Breiman, "Random forests", Machine Learning 2001.
    https://doi.org/10.1023/A:1010933404324

    Args:
        width: Number of values of a vector.
        num_classes: Number of classes, which are equally likely until it is fitted.
        trees: Number of trees.
        depth: The largest number of comparisons from the root of a tree to a leaf.

    Raises:
        ConfigError: If `trees` or `depth` is less than 1.
    """

    feature: Tensor
    threshold: Tensor
    values: Tensor

    def __init__(self, width: int, num_classes: int, trees: int = 100, depth: int = 8) -> None:
        super().__init__()
        check_range("trees", trees, 1)
        check_range("depth", depth, 1)
        self.width, self._depth = width, depth
        self.register_buffer("feature", torch.zeros(trees, 2**depth - 1, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(trees, 2**depth - 1))
        self.register_buffer("values", torch.full((trees, 2**depth, num_classes), 1 / num_classes))

    def _apply(self, fn: Any, recurse: bool = True) -> "Forest":
        """Moves the forest, whose thresholds stay as exact as they are: in half precision a comparison would change."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def fit(self, x: Tensor, y: Tensor) -> None:
        """Grows the trees anew; equal rows and labels give equal trees, whatever the seed of the training.

        Args:
            x: Vectors, shape (n, width), float32.
            y: Labels, shape (n,), int64.
        """
        trees = len(self.feature)
        grown = RandomForestClassifier(trees, max_depth=self._depth, random_state=0).fit(x.numpy(), y.numpy())
        classes = torch.from_numpy(grown.classes_)
        self.values.zero_()
        for number, tree in enumerate(grown.estimators_):
            feature, threshold, nodes = _complete(tree.tree_, self._depth)
            self.feature[number] = torch.from_numpy(feature)
            self.threshold[number] = torch.from_numpy(threshold)
            self.values[number, :, classes] = torch.from_numpy(tree.tree_.value[nodes, 0]).to(self.values)

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities (B, num_classes) of vectors (B, width)."""
        x, tree = x.float(), torch.arange(len(self.feature), device=x.device)
        place = torch.zeros((x.shape[0], len(tree)), dtype=torch.int64, device=x.device)
        for _ in range(self._depth):
            right = x.gather(1, self.feature[tree, place]) > self.threshold[tree, place]
            place = 2 * place + 1 + right
        return self.values[tree, place - self.feature.shape[1]].float().mean(dim=1)


def _complete(tree: Any, depth: int) -> tuple[Any, Any, Any]:
    """The comparisons of a complete tree, level by level, and the node of the tree in each of its leaves."""
    features, thresholds, nodes = [], [], np.zeros(1, dtype=np.int64)
    for _ in range(depth):
        ends = tree.children_left[nodes] < 0
        features.append(np.where(ends, 0, tree.feature[nodes]))
        thresholds.append(_below(np.where(ends, 0, tree.threshold[nodes])))
        below = (np.where(ends, nodes, children[nodes]) for children in (tree.children_left, tree.children_right))
        nodes = np.stack(list(below), axis=1).ravel()
    return np.concatenate(features), np.concatenate(thresholds), nodes


def _below(thresholds: Any) -> Any:
    """The largest numbers of float32 that are not above numbers of float64, so that comparisons are the same."""
    found = thresholds.astype(np.float32)
    return np.where(found > thresholds, np.nextafter(found, np.float32(-np.inf)), found)
