"""A memory network for sentences: attention over words, in several hops."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.errors import check_range
from lightning_da.networks.sentences import SentenceBackbone
from lightning_da.text.words import PADDING


class _Memory(nn.Module):
    """Reads a memory of vectors in several hops, which share their weights, from a learned first query."""

    def __init__(self, width: int, hops: int) -> None:
        super().__init__()
        self.hops = hops
        self.key, self.turn = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.query = nn.Parameter(torch.randn(width) / width**0.5)

    def read(self, vectors: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """The output (B, width) for memories (B, n, width), and the attention (B, hops, n); `there` is (B, n), bool."""
        keys, query, attention = self.key(vectors).tanh(), self.query[None], []
        for _ in range(self.hops):
            scores = (keys * query[:, None]).sum(dim=2)
            attention.append(scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(dim=1))
            query = (attention[-1][..., None] * vectors).sum(dim=1) + self.turn(query)
        return query, torch.stack(attention, dim=1)

    def forward(self, vectors: Tensor, there: Tensor) -> Tensor:
        return self.read(vectors, there)[0]


class MemoryNetwork(SentenceBackbone):
    """A network that reads the words of a sentence by attention: the layers `embedding` and `memory`.

    The vectors of the words are the memory, in no order. A hop with the query q looks at the word i with the weight
    `softmax_i(tanh(A m_i + b) . q)`, and the next query is the weighted sum of the m_i plus H q. The first query is
    learned; A, b and H are those of every hop. The output is the query after the last hop.

    Source: Li et al., "End-to-end adversarial memory network for cross-domain sentiment classification", IJCAI 2017,
    https://www.ijcai.org/proceedings/2017/0311.pdf; Yang et al., "Hierarchical attention networks for document
    classification", NAACL 2016, equations 5 to 7, for the weights; Sukhbaatar et al., "End-to-end memory networks",
    NeurIPS 2015, section 2.2, for hops with shared weights.
    https://aclanthology.org/N16-1174, https://arxiv.org/abs/1503.08895

    Args:
        input_shape: (length,), the largest number of words of a sentence.
        width: Values of a word's vector, of a query and of the output.
        hops: How often the memory is read.
        **kwargs: Arguments of `SentenceBackbone`.

    Raises:
        ConfigError: If `input_shape` is not that of sentences, or a number is out of range.
    """

    def __init__(self, input_shape: tuple[int, ...], width: int = 50, hops: int = 3, **kwargs: Any) -> None:
        super().__init__(input_shape, width, **kwargs)
        check_range("hops", hops, 1)
        self.memory = _Memory(width, hops)
        self.layers, self.num_features = ["embedding", "memory"], width

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width) of sentences (B, length): integers of words, and `PADDING` after them."""
        x = x.long()
        features: Tensor = self.dropout(self.memory(self.dropout(self.embedding(x)), x != PADDING))
        return features

    def attention(self, x: Tensor) -> Tensor:
        """The weight of each word in each hop, (B, hops, length), of sentences (B, length).

        That of padding is 0; where a sentence has no word, all are equal.
        """
        return self.memory.read(self.embedding(x.long()), x != PADDING)[1]
