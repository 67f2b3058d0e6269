"""Reviews that are made, of three kinds of goods; they need no download.

A review is positive or negative, and has one to three statements. The words of praise and of blame are shared by all
kinds of goods or belong to one of them, so that a classifier for one kind knows only some of the words of another. One
statement in four is negated (`was not dull`), and one in three says something that is neither good nor bad; a bag of
words reads neither the negation nor its place.
"""

from typing import NamedTuple

import numpy as np


class Goods(NamedTuple):
    """The words of one kind of goods: its parts, and those of praise and of blame."""

    parts: str
    praise: str
    blame: str


GOODS = {
    "synthetic-books": Goods(
        "plot story author ending hero chapter style dialogue opening translation",
        "gripping moving witty clever vivid touching suspenseful thoughtful",
        "dull predictable boring shallow confusing wordy lifeless clumsy",
    ),
    "synthetic-kitchen": Goods(
        "pan kettle knife handle lid toaster blade mixer cable filter",
        "sturdy sharp quiet durable practical fast tidy solid",
        "leaky blunt noisy flimsy rusty slow wobbly brittle",
    ),
    "synthetic-hotels": Goods(
        "room bed breakfast staff lobby shower view pool carpet window",
        "clean comfortable friendly spacious cosy bright central warm",
        "dirty cramped rude smelly loud mouldy dark cold",
    ),
}
"""The domains by name."""
SHARED = ("good great excellent lovely perfect wonderful", "bad poor awful terrible disappointing horrible")
"""Words of praise and of blame that all kinds of goods have."""
CLASSES = ("negative", "positive")

_SURE = ("really", "very", "quite", "rather", "simply", "")
_NEUTRAL = (
    "i bought it in may .",
    "it came on a monday .",
    "my sister told me about the {part} .",
    "the {part} is next to the {other} .",
    "it is the second one that we had .",
    "the {part} is blue .",
)
_SAID = ("the {part} was {sure} {word}", "{sure} {word} , the {part}", "{part} : {word}", "i found the {part} {word}")
_DENIED = ("the {part} was not {word}", "the {part} is n't {sure} {word}", "i did n't find the {part} {word}")


def write_reviews(domain: str, number: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Reviews of one kind of goods.

    Args:
        domain: A name in `GOODS`.
        number: How many; no two are equal.
        seed: Equal seeds give equal reviews.

    Returns:
        The reviews and their classes, `negative` or `positive`.
    """
    goods, rng = GOODS[domain], np.random.default_rng([seed, list(GOODS).index(domain)])
    reviews: dict[str, str] = {}
    while len(reviews) < number:
        label = int(rng.integers(2))
        reviews[" ".join(_statement(goods, label, rng) for _ in range(rng.integers(1, 4)))] = CLASSES[label]
    return list(reviews), list(reviews.values())


def _statement(goods: Goods, label: int, rng: np.random.Generator) -> str:
    part, other = rng.choice(goods.parts.split(), 2, replace=False)
    denied = rng.random() < 0.25
    means = label != denied  # the word of a negated statement is that of the other class
    own, shared = (goods.praise, SHARED[0]) if means else (goods.blame, SHARED[1])
    word = rng.choice((own if rng.random() < 0.6 else shared).split())
    said = str(rng.choice(_DENIED if denied else _SAID)).format(part=part, word=word, sure=rng.choice(_SURE))
    before = str(rng.choice(_NEUTRAL)).format(part=part, other=other) if rng.random() < 1 / 3 else ""
    return " ".join(f"{before} {said} .".split())
