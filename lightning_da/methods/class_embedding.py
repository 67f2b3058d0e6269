from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lightning_da.errors import check_range
from lightning_da.methods.zero_shot import ZeroShot


class ClassEmbedding(ZeroShot):
    """Zero-shot learning by embedding: samples and descriptions of classes in one space.

    The score of class m is `f(x) . g(a_m)`: f is the network with a linear map as head, g a linear map of the
    attributes a_m, which are centred over the seen classes and brought to unit length. The loss of a sample of class n
    is the mean of `max(0, margin - f(x) . g(a_n) + f(x) . g(a_m))` over the other seen classes m, or its maximum.

    Source: the ranking losses of Frome et al., "DeViSE: a deep visual-semantic embedding model", NeurIPS 2013, equation
    1 (all classes, a sum there), and of Akata et al., "Evaluation of output embeddings for fine-grained image
    classification", CVPR 2015 (the hardest one; https://arxiv.org/abs/1409.8403).

    Args:
        num_attributes: As for `ZeroShot`.
        width: Dimension of the space.
        margin: How much higher the score of the true class is to be than that of each other class.
        others: The classes that the true one is compared with: `all`, or the `hardest`, which has the highest score.
        **kwargs: Arguments of `ZeroShot`.

    Raises:
        ConfigError: If `width` is less than 1, or `margin` is not more than 0.
    """

    def __init__(
        self,
        num_attributes: int,
        width: int = 100,
        margin: float = 1.0,
        others: Literal["all", "hardest"] = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_attributes, **kwargs)
        check_range("width", width, 1)
        check_range("margin", margin, above=0)
        self._margin, self._others = margin, others
        self.set_head(width, EmbeddingScores(self.num_classes, num_attributes, width))

    @property
    def scores(self) -> "EmbeddingScores":
        """The second part of the head."""
        _, scores = self.head.children()
        return cast(EmbeddingScores, scores)

    def describe(self, descriptions: Tensor, seen: Tensor) -> None:
        self.scores.descriptions.copy_(normalize(descriptions - descriptions[seen].mean(dim=0), dim=1))

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Ranking hinge; for the shapes see `ZeroShot.losses`."""
        scores: Tensor = self.scores(outputs).float()
        others = self.own_classes("source") & (torch.arange(self.num_classes, device=y.device) != y[:, None])
        short = (self._margin - scores.gather(1, y[:, None]) + scores).clamp(min=0) * others
        if self._others == "hardest":
            return short.amax(dim=1)
        return short.sum(dim=1) / others.sum(dim=1).clamp(min=1)


class EmbeddingScores(nn.Module):
    """From samples in the space (n, width) to the scores of the classes (n, num_classes)."""

    descriptions: Tensor

    def __init__(self, num_classes: int, num_attributes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("descriptions", torch.zeros(num_classes, num_attributes))
        self.embed = nn.Linear(num_attributes, width, bias=False)  # a bias would cancel in the loss

    def forward(self, outputs: Tensor) -> Tensor:
        scores: Tensor = outputs @ self.embed(self.descriptions).T
        return scores
