"""Sentences as sequences of words, and words as integers."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PADDING = 0
"""The integer of no word, at the end of a sentence."""
UNUSED = 2**63 - 1
"""An integer that is larger than those of all words."""

_WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of a text, in small letters.

    English contractions are split as in the Penn Treebank, and so in most files of word vectors: `do n't`, `it 's`. A
    text that is split in this way already stays as it is.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).lower().replace("’", "'"))


@lru_cache(maxsize=2**20)
def code_of(word: str) -> int:
    """The integer of a word, from 1 to 2^63 - 2: the same on every machine, whatever other words there are.

    Among a million words the chance that two have the same integer is 1 in 18 million.
    """
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % (UNUSED - 1)


def encode(texts: Sequence[str], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts as the integers of their words.

    Args:
        texts: The texts, n in number.
        length: Largest number of words of a text; the later ones are left out.

    Returns:
        Integers, shape (n, length), with `PADDING` after the end of a shorter text; and the number of words of each
        text, also of those that are left out, shape (n,).
    """
    codes = np.full((len(texts), length), PADDING, dtype=np.int64)
    sizes = np.zeros(len(texts), dtype=np.int64)
    for row, text in enumerate(texts):
        found = split_words(text)
        sizes[row] = len(found)
        codes[row, : len(found)] = [code_of(word) for word in found[:length]]
    return codes, sizes
