"""The base of the networks for sentences."""

from collections.abc import Callable, Iterable

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_da.errors import ConfigError, check_range
from lightning_da.networks.backbones import Backbone
from lightning_da.networks.word_vectors import WordVectors
from lightning_da.text.vectors import read_vectors
from lightning_da.text.words import UNUSED


class SentenceBackbone(Backbone):
    """A network that reads a sentence as the vectors of its words: its first layer is `embedding`.

    The vocabulary is that of the training sentences of both domains, without their labels; a fit takes it at its start
    and the checkpoint keeps it. Of an earlier run (`init_from`) the vectors of the same words are copied; words that it
    did not have keep their vector.

    Args:
        input_shape: (length,), the largest number of words of a sentence.
        width: Values of a word's vector.
        words: Largest number of words in the vocabulary, the most frequent ones; all others are one unknown word.
        vectors: File of pretrained word vectors in the text format of GloVe (see
            `lightning_da.text.vectors.read_vectors`); words that it does not have begin at random. It is read when a
            fit begins; a checkpoint of the run does not need it.
        dropout: Dropout rate of the words' vectors and of the output.

    Raises:
        ConfigError: If `input_shape` is not that of sentences, or a number is out of range.
    """

    reads_words = True

    def __init__(
        self,
        input_shape: tuple[int, ...],
        width: int = 50,
        words: int = 20_000,
        vectors: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ConfigError(
                f"{type(self).__name__} reads sentences of shape (length,), not {input_shape}; for images use LeNet"
            )
        for name, value in (("width", width), ("words", words)):
            check_range(name, value, 1)
        check_range("dropout", dropout, 0, 1)
        self.embedding = WordVectors(words, width)
        self.dropout = nn.Dropout(dropout)
        self._vectors, self.pretrained = vectors, vectors is not None

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> None:
        kept, found = self.embedding.fit(samples)
        more = f", the most frequent of {found}" if kept < found else ""
        rank_zero_info(f"vocabulary: {kept} words of the training sentences{more}")

    def load_pretrained(self) -> None:
        """Copies the vectors of the words in the file `vectors`."""
        if self._vectors is None:
            return
        wanted = {word: row for row, word in enumerate(self.embedding.words.tolist()) if word != UNUSED}
        found = read_vectors(self._vectors, wanted, self.embedding.weight.shape[1])
        if not found:
            raise ConfigError(f"vectors: {self._vectors!r} has no word of the training sentences; give another file")
        with torch.no_grad():
            for word, vector in found.items():
                self.embedding.weight[wanted[word]] = torch.from_numpy(vector)
        rank_zero_info(f"vectors: {len(found)} of the {len(wanted)} words of the vocabulary are in {self._vectors!r}")
