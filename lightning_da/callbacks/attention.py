"""Which words a memory network reads: a table of all words, and a picture."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_da.text.words import PADDING

LEAST = 3
"""A word that is read fewer times in a domain has no value for it."""
WORDS, SENTENCES, WIDTH = 20, 6, 12
"""Words in the picture, sentences of each domain, and words of a sentence."""


class ReadSentences(NamedTuple):
    """What a memory network reads in a domain.

    Attributes:
        words: The words of each sentence as integers, shape (n, length), int64.
        attention: Their weights, the mean over hops, shape (n, length); a sentence has the sum 1.
    """

    words: NDArray[np.int64]
    attention: NDArray[np.float64]

    def relative(self) -> NDArray[np.float64]:
        """The weights times the number of words in the sentence: 1 where all words are read alike."""
        numbers = (self.words != PADDING).sum(axis=1, keepdims=True)
        found: NDArray[np.float64] = self.attention * numbers
        return found


def attention_table(read: dict[str, ReadSentences], spelling: dict[int, str]) -> pd.DataFrame:
    """How much each word is read, those first that every domain reads: words that may be pivots.

    Args:
        read: Of each domain, by its name.
        spelling: The words by their integers.

    Returns:
        One row for each word: `word`, and for each domain the mean of `ReadSentences.relative`, NaN where the word
        stands fewer than `LEAST` times; in falling order of the smallest of these.
    """
    columns = {}
    for name, part in read.items():
        there = part.words != PADDING
        found, places = np.unique(part.words[there], return_inverse=True)
        counts, sums = np.bincount(places), np.bincount(places, part.relative()[there])
        often = counts >= LEAST
        columns[name] = pd.Series(sums[often] / counts[often], index=found[often])
    table = pd.DataFrame(columns)
    order = table.min(axis=1, skipna=False).sort_values(ascending=False, kind="stable").index
    table = table.loc[order].rename(index=spelling)
    return table.rename_axis("word").reset_index()


def attention_figure(read: dict[str, ReadSentences], spelling: dict[int, str]) -> Figure:
    """The words that every domain reads most, and the most read words of some sentences.

    Args:
        read: As for `attention_table`.
        spelling: As for `attention_table`.
    """
    table = attention_table(read, spelling).set_index("word").dropna().head(WORDS)[::-1]
    figure = Figure(figsize=(5 + WIDTH, max(4.0, 2.4 * len(read))), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(5, WIDTH))[0]
    bars = left.subplots()
    for place, name in enumerate(read):
        height = 0.8 / len(read)
        bars.barh(np.arange(len(table)) - place * height, table[name], height, label=name)
    bars.axvline(1, color="lightgrey", zorder=0)
    bars.set_yticks(range(len(table)), table.index)
    bars.set(xlabel="attention, 1 = all words alike", title="words that are read most in every domain")
    bars.legend(fontsize=8)
    panels = right.subplots(len(read), squeeze=False)[:, 0]
    for axes, (name, part) in zip(panels, read.items(), strict=True):
        values, words = np.zeros((SENTENCES, WIDTH)), np.full((SENTENCES, WIDTH), PADDING)
        for row, (weights, sentence) in enumerate(zip(part.relative()[:SENTENCES], part.words, strict=False)):
            length = (sentence != PADDING).sum()
            most = np.sort(np.argsort(-weights[:length], kind="stable")[:WIDTH])
            values[row, : len(most)], words[row, : len(most)] = weights[most], sentence[most]
        axes.imshow(values, cmap="Oranges", aspect="auto", vmin=0)
        for row, column in zip(*np.nonzero(words != PADDING), strict=True):
            dark = values[row, column] > 0.6 * values.max()
            word = spelling[int(words[row, column])]
            axes.text(column, row, word[:14], ha="center", va="center", fontsize=7, color="white" if dark else "black")
        axes.set(xticks=[], yticks=[], title=f"{name}: the {WIDTH} most read words of a sentence")
    return figure
