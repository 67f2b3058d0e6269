"""Word vectors from a text file."""

from collections.abc import Container
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_da.errors import ConfigError
from lightning_da.text.words import code_of

LARGEST = float(np.finfo(np.float32).max)


def read_vectors(path: str, wanted: Container[int], width: int) -> dict[int, NDArray[np.float32]]:
    """Vectors of some words, by the integer of the word; a word that is there twice has its first vector.

    Each line is a word and its values with one space between them, in UTF-8, as in the files of GloVe. The first line
    may hold the numbers of words and of values, as in those of word2vec and fastText.

    Args:
        path: The file.
        wanted: The integers of the words (see `code_of`).
        width: Number of values of a vector.

    Raises:
        ConfigError: If there is no such file, or a line has no word, another number of values, or values that are no
            finite numbers; the numbers are looked at for the wanted words only.
    """
    if not Path(path).is_file():
        raise ConfigError(f"vectors: no file {path!r}; give a text file with a word and its values on each line")
    found: dict[int, NDArray[np.float32]] = {}
    number = 0
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                word, values = _split(line.rstrip("\r\n "), width)
                if number == 1 and len(values) == 1 and word.isdecimal() and values[0].isdecimal():
                    continue
                if len(values) != width or not word:
                    raise ConfigError(
                        f"{path}, line {number}: {len(values)} values after {word[:40]!r}, not {width}; one space "
                        "stands before each value; repair the line, or, if all lines have so many, set the width of "
                        "the backbone"
                    )
                code = code_of(word)
                if code in wanted and code not in found:
                    found[code] = _numbers(values, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}, after line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    return found


def _split(line: str, width: int) -> tuple[str, list[str]]:
    """The word of a line and its values; a word may contain spaces, as some of GloVe's do."""
    word, *values = line.split(" ")
    while len(values) > width and not _is_number(values[0]):
        word = f"{word} {values.pop(0)}"
    return word, values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(values: list[str], place: str) -> NDArray[np.float32]:
    wrong = [value for value in values if not _is_number(value) or not abs(float(value)) <= LARGEST]
    if wrong:
        raise ConfigError(f"{place}: {wrong[0][:40]!r} is no finite number; repair or remove the line")
    return np.array(values, dtype=np.float32)
