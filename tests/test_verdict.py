"""The verdict over several methods: the choice and the estimate."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_da.transferability.verdict import Answers, verdict


def answers(accuracy: float, score: float, seed: int, number: int = 600, classes: int = 10) -> Answers:
    """A network that is right on a random part of the samples, whose neighbours agree on another."""
    rng = np.random.default_rng(seed)
    truth = np.arange(number) % classes
    wrong = (truth + rng.integers(1, classes, number)) % classes
    predicted = np.where(rng.random(number) < accuracy, truth, wrong)
    return Answers(predicted, np.where(rng.random(number) < score, predicted, (predicted + 1) % classes))


def test_the_highest_score_is_chosen_if_it_is_clearly_higher() -> None:
    clear = {"source_only": [answers(0.6, 0.7, 1)], "dann": [answers(0.8, 0.9, 2)], "dan": [answers(0.9, 0.8, 3)]}
    found = verdict(clear, "source_only")
    assert (found.method, found.best) == ("dann", "dann")
    assert found.scores == pytest.approx({"source_only": 0.7, "dann": 0.9, "dan": 0.8}, abs=0.04)
    close = {"source_only": [answers(0.6, 0.80, 1)], "dann": [answers(0.8, 0.815, 2)]}
    found = verdict(close, "source_only")
    assert found.method == "source_only"
    assert found.estimate is None  # one other method is too few


def test_more_seeds_make_a_small_gain_certain() -> None:
    def runs(number: int) -> dict[str, list[Answers]]:
        return {
            "source_only": [answers(0.6, 0.80, seed) for seed in range(number)],
            "dann": [answers(0.6, 0.83, 50 + seed) for seed in range(number)],
        }

    assert verdict(runs(1), "source_only").method == "source_only"
    assert verdict(runs(12), "source_only").method == "dann"


def test_differences_between_trainings_and_many_methods_count() -> None:
    """Of four methods with the score of the baseline, one is chosen by chance at most once in forty times or so."""
    rng, chosen = np.random.default_rng(0), 0
    for trial in range(100):
        chosen += (
            verdict(
                {
                    name: [
                        answers(0.6, 0.8 + 0.04 * rng.normal(), 1000 * trial + 10 * place + seed, 500)
                        for seed in range(3)
                    ]
                    for place, name in enumerate(["source_only", "dann", "dan", "adda", "jan"])
                },
                "source_only",
            ).method
            != "source_only"
        )
    assert chosen <= 8


def test_a_tie_is_the_baseline() -> None:
    same = [answers(0.6, 0.8, 1)]
    assert verdict({"dann": same, "source_only": same}, "source_only").best == "source_only"


def test_the_estimate_is_the_agreement_with_other_methods() -> None:
    runs = {name: [answers(accuracy, score, seed)] for seed, (name, accuracy, score) in enumerate(
        [("source_only", 0.5, 0.5), ("dann", 0.9, 0.9), ("dan", 0.85, 0.7), ("adda", 0.8, 0.7)])}  # fmt: skip
    found = verdict(runs, "source_only")
    agreements = [
        float(np.mean(runs["dann"][0].predicted == runs[name][0].predicted)) for name in runs if name != "dann"
    ]
    assert found.method == "dann"
    assert found.estimate == pytest.approx(np.median(agreements))
    assert (found.low, found.high) == pytest.approx((min(agreements) - 0.15, max(agreements) + 0.15))


def test_the_estimate_is_not_above_the_accuracy_on_the_source() -> None:
    """Networks that all err alike agree everywhere."""
    same = answers(0.5, 0.5, 1)
    runs = {name: [replace(same, source_acc=0.55)] for name in ("source_only", "dann", "dan")}
    found = verdict(runs, "source_only")
    assert (found.low, found.estimate, found.high) == pytest.approx((0.4, 0.55, 0.7))
    apart = {name: [answers(0.5, 0.5, seed)] for seed, name in enumerate(runs)}
    assert verdict(apart, "source_only") == verdict(
        {name: [replace(own[0], source_acc=0.99)] for name, own in apart.items()}, "source_only"
    )
