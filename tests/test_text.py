"""Words, files of word vectors, and reviews that are made."""

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from lightning_da.errors import ConfigError
from lightning_da.text.synthesis import CLASSES, GOODS, write_reviews
from lightning_da.text.vectors import read_vectors
from lightning_da.text.words import PADDING, UNUSED, code_of, encode, split_words

TEXT = "I can't SAY it's good; you’ll see… 3.5 stars!"


def test_words_are_split_as_in_the_penn_treebank_and_stay_split() -> None:
    found = split_words(TEXT)
    assert found == [
        *("i", "ca", "n't", "say", "it", "'s", "good", ";", "you", "'ll", "see", "…"),
        *("3", ".", "5", "stars", "!"),
    ]
    assert split_words(" ".join(found)) == found
    assert split_words("Cafe\u0301") == split_words("CAFÉ") == ["café"]
    assert split_words(" \n\t") == []


@pytest.mark.parametrize(
    "text",
    [
        "हिन्दी में अच्छा है ।",
        "இது நல்ல புத்தகம்",
        "العَرَبِيَّة جميلة",
        "می\u200cخواهم بروم",
        "한국어 문장 입니다",
        "naïve čeština ἄνθρωπος п я т ь",
        "i\u0307stanbul güzel",
        "x\u0301y",
        "❤\ufe0f 👍 ok",
    ],
)
def test_vowel_signs_accents_and_joiners_stay_in_their_words(text: str) -> None:
    assert split_words(text) == unicodedata.normalize("NFC", text).split()


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("我喜欢这本书。", "我 喜 欢 这 本 书 。"),
        ("日本語のテキスト", "日 本 語 の テ キ ス ト"),
        ("ภาษาไทยที่ดี", "ภ า ษ า ไ ท ย ที่ ดี"),
        ("GPT 很好 ok", "gpt 很 好 ok"),
    ],
)
def test_letters_are_words_in_scripts_without_spaces(text: str, letters: str) -> None:
    assert split_words(text) == letters.split()
    assert split_words(letters) == letters.split()


def test_the_integer_of_a_word_is_fixed_and_its_own() -> None:
    assert code_of("good") == 1 + int.from_bytes(bytes.fromhex(BLAKE), "big") % (2**63 - 2)
    codes = {code_of(f"word {i}") for i in range(20_000)}
    assert len(codes) == 20_000
    assert min(codes) > PADDING
    assert max(codes) < UNUSED


BLAKE = "07878fd8745bb530"
"""What `printf good | b2sum --length 64` prints."""


def test_texts_are_cut_and_padded() -> None:
    codes, sizes = encode(["good , good .", "bad", "good"], 3)
    good, comma, bad = (code_of(word) for word in ("good", ",", "bad"))
    assert codes.tolist() == [[good, comma, good], [bad, 0, 0], [good, 0, 0]]
    assert sizes.tolist() == [4, 1, 1]


# ---------------------------------------------------------------- vectors


def vectors(path: Path, text: str, width: int = 2) -> dict[str, list[float]]:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    words = {code_of(word): word for word in ("the", "cat", "at name", "né")}
    return {words[code]: vector.tolist() for code, vector in read_vectors(str(path), words, width).items()}


def test_vectors_are_read_by_word(tmp_path: Path) -> None:
    found = vectors(tmp_path / "v", "the 0.5 -1\r\ndog 1 1\ncat 2e-1 3 \nthe 9 9\nat name 1 2\nné 4 5\n")
    assert found == {
        "the": [0.5, -1],
        "cat": pytest.approx([0.2, 3]),
        "at name": [1, 2],
        "né": [4, 5],
    }
    assert vectors(tmp_path / "v", "2 2\nthe 1 2\ncat 3 4\n").keys() == {"the", "cat"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 1 2\ncat 1\n", "line 2: 1 values after 'cat', not 2"),
        ("the 1 2\ndog 1 2 3\n", "line 2: 3 values after 'dog', not 2"),
        ("the 1 2\n\ncat 1 2\n", "line 2: 0 values"),
        ("the 1 x\n", "line 1: 'x' is no finite number"),
        ("the 1 2\ncat nan 2\n", "line 2: 'nan' is no finite number"),
        ("cat 1e40 2\n", "line 1: '1e40' is no finite number"),
        ("the 1 2\n\udce9 1 2\n", "not UTF-8"),
        (" 1 2\n", "line 1: 2 values after ''"),
    ],
)
def test_a_bad_line_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        vectors(tmp_path / "v", text)
    assert str(tmp_path / "v") in str(error.value)


def test_no_file_of_vectors() -> None:
    with pytest.raises(ConfigError, match="no file 'missing'"):
        read_vectors("missing", {}, 2)


# ---------------------------------------------------------------- reviews that are made


def test_reviews_are_different_and_the_same_each_time() -> None:
    texts, labels = write_reviews("synthetic-books", 300)
    assert len(set(texts)) == 300
    assert write_reviews("synthetic-books", 300) == (texts, labels)
    assert write_reviews("synthetic-books", 300, seed=1)[0] != texts
    counts = Counter(labels)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) > 110


def test_the_domains_differ_and_order_matters() -> None:
    """A bag of words knows its own domain best, and does not know it all: negation is not in it."""
    data = {name: write_reviews(name, 1000) for name in GOODS}
    for own in GOODS:
        bag = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=500))
        bag.fit(data[own][0][:700], data[own][1][:700])
        score = {name: bag.score(texts[700:], labels[700:]) for name, (texts, labels) in data.items()}
        assert 0.65 < score.pop(own) < 0.85
        assert max(score.values()) < 0.72
        assert np.mean(list(score.values())) > 0.55
