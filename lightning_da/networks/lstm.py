"""A recurrent network for sentences."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.errors import check_range
from lightning_da.networks.sentences import SentenceBackbone
from lightning_da.text.words import PADDING


class _LargestStates(nn.LSTM):
    """An LSTM that returns the largest value of each state over the words of a sentence."""

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        states, _ = super().forward(vectors)
        after = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
        return states.masked_fill(after[..., None], -1).amax(dim=1)  # no state is below -1


class LSTM(SentenceBackbone):
    """A recurrent network that reads a sentence word by word: the layers `embedding` and `lstm`.

    Source: Mou et al., "How transferable are neural networks in NLP applications?", EMNLP 2016, section 3: one layer of
    long short-term memory (Hochreiter and Schmidhuber, Neural Computation 1997). The paper reads the last state; here
    the output is the largest value of each state over the words (Conneau et al., EMNLP 2017, section 3.2.3), which long
    texts need fewer steps for.
    https://aclanthology.org/D16-1046, https://doi.org/10.1162/neco.1997.9.8.1735, https://arxiv.org/abs/1705.02364

    Args:
        input_shape: (length,), the largest number of words of a sentence.
        width: Values of a word's vector.
        hidden: Number of states.
        **kwargs: Arguments of `SentenceBackbone`.

    Raises:
        ConfigError: If `input_shape` is not that of sentences, or a number is out of range.
    """

    def __init__(self, input_shape: tuple[int, ...], width: int = 50, hidden: int = 100, **kwargs: Any) -> None:
        super().__init__(input_shape, width, **kwargs)
        check_range("hidden", hidden, 1)
        self.lstm = _LargestStates(width, hidden, batch_first=True)
        self.layers, self.num_features = ["embedding", "lstm"], hidden

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, hidden) of sentences (B, length): integers of words, and `PADDING` after them."""
        x = x.long()
        lengths = (x != PADDING).sum(dim=1).clamp(min=1)
        if not torch.compiler.is_exporting():  # an exported program has no size that depends on values
            x = x[:, : int(lengths.max())].contiguous()
        features: Tensor = self.dropout(self.lstm(self.dropout(self.embedding(x)), lengths))
        return features
