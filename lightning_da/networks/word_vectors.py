"""The vectors of words, with their vocabulary."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from lightning_da.text.words import PADDING, UNUSED


class WordVectors(nn.Module):
    """One vector for each word of a vocabulary, and one for all other words.

    The vocabulary is kept in the buffer `words`, so that a checkpoint has it. Vectors begin normally distributed; that
    of unknown words begins at 0, the mean of the others.

    Args:
        words: Largest number of words in the vocabulary.
        width: Values of a vector.

    Attributes:
        words: The words as integers (see `lightning_da.text.words.code_of`), ascending, shape (words,), int64; `UNUSED`
            in unused places.
        weight: The vectors of these words, and in the last row that of unknown words, shape (words + 1, width).
    """

    words: Tensor

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.register_buffer("words", torch.full((words,), UNUSED))
        self.weight = nn.Parameter(torch.cat([0.5 * torch.randn(words, width), torch.zeros(1, width)]))

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> tuple[int, int]:
        """Takes the most frequent words of the training sentences of both domains as vocabulary.

        Args:
            samples: From `source` or `target` to chunks of sentences, each of shape (b, length), int64.

        Returns:
            The number of words in the vocabulary, and of different words in the sentences.
        """
        parts = (part for role in ("source", "target") for part in samples(role))
        chunks = [part[part != PADDING].unique(return_counts=True) for part in parts]
        found, places = torch.cat([words for words, _ in chunks]).unique(return_inverse=True)
        counts = torch.zeros_like(found).index_add_(0, places, torch.cat([counts for _, counts in chunks]))
        kept = found[counts.argsort(descending=True, stable=True)[: len(self.words)]].sort().values
        self.words.fill_(UNUSED)[: len(kept)] = kept
        return len(kept), len(found)

    def rows(self, words: Tensor) -> Tensor:
        """The row of `weight` for each word, any shape, int64."""
        places = torch.searchsorted(self.words, words).clamp(max=len(self.words) - 1)
        return torch.where(self.words[places] == words, places, len(self.words))

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (B, length, width) of sentences (B, length), int64.

        In the place of padding stands the mean of the sentence's words, so that the mean over places is that of the
        words, however long the padding is.
        """
        vectors, there = embedding(self.rows(x), self.weight), (x != PADDING)[..., None]
        mean = (vectors * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        return torch.where(there, vectors, mean)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another vocabulary as those of the own one.

        Args:
            state: `words`, shape (n,), and `weight`, shape (n + 1, width), of other word vectors.

        Returns:
            The own `words`; in `weight` the other vector of each word that the other vocabulary has, and the own one of
            all others.
        """
        words, weight = state["words"], state["weight"]
        if weight.shape[1:] != self.weight.shape[1:]:
            return state
        places = torch.searchsorted(words, self.words).clamp(max=len(words) - 1)
        known = (words[places] == self.words) & (self.words != UNUSED)
        matched = self.weight.detach().clone()
        matched[:-1][known] = weight[places[known]]
        matched[-1] = weight[-1]
        return {"words": self.words.clone(), "weight": matched}
