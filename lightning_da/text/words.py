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

_MARKS = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)).startswith("M"))
_AFTER = rf"[{_MARKS}\u200c\u200d]*"
"""Vowel signs, accents and joiners, which belong to the character before; `\\w` has none of them."""
_ALONE = (
    "\u0e01-\u0edf\u0f40-\u0fbc\u1000-\u109f\u1780-\u17d3"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
)
"""Letters of scripts that have no spaces between words."""
_LETTER = rf"(?:(?![{_ALONE}])\w{_AFTER})"
_WORD = re.compile(rf"{_LETTER}+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|{_LETTER}+|[{_ALONE}]{_AFTER}|[^\w\s]{_AFTER}")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of a text, in small letters.

    English contractions are split as in the Penn Treebank, and so in most files of word vectors: `do n't`, `it 's`. A
    text that is split in this way already stays as it is. In scripts without spaces between words (Chinese, Japanese,
    Thai, Lao, Tibetan, Burmese, Khmer) each letter with its marks is a word.
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
