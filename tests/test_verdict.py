"""The verdict over several methods: the choice and the estimate."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

from lightning_da.transferability.verdict import JUDGES, Answers, judges_of, mean_ranks, verdict

BASELINES = ["source_only"]


def answers(accuracy: float, score: float, seed: int, number: int = 600, spread: float = 0.02) -> Answers:
    """A network that is right on a random part of the samples, with scores around a value."""
    rng = np.random.default_rng(seed)
    truth = np.arange(number) % 10
    wrong = (truth + rng.integers(1, 10, number)) % 10
    predicted = np.where(rng.random(number) < accuracy, truth, wrong)
    return Answers(predicted, {name: score + spread * rng.normal() for name in JUDGES})


def scored(*values: float) -> Answers:
    """A network with the given values of the judges."""
    return Answers([0, 1], dict(zip(JUDGES, values, strict=True)))


def test_the_best_mean_rank_is_chosen_if_it_is_clearly_above_the_baseline() -> None:
    clear = {"source_only": [answers(0.6, 0.5, 1)], "dann": [answers(0.8, 0.9, 2)], "dan": [answers(0.9, 0.7, 3)]}
    found = verdict(clear, BASELINES)
    assert (found.method, found.best, found.baseline, found.clear) == ("dann", "dann", "source_only", JUDGES)
    lonely = {"source_only": [scored(0.5, 0.5, 0.5, 0.5)], "dann": [scored(0.9, 0.9, 0.4, 0.6)]}
    assert verdict(lonely, BASELINES).method == "dann"
    assert verdict(lonely, BASELINES).clear == ("neighbours", "class_ami", "bnm")
    assert verdict(lonely, BASELINES).estimate is None  # one other method is too few
    half = {"source_only": [scored(0.5, 0.5, 0.5, 0.5)], "dann": [scored(0.9, 0.9, 0.4, 0.5)]}
    found = verdict(half, BASELINES)
    assert (found.method, found.best, found.clear) == ("source_only", "dann", ("neighbours", "class_ami"))


def test_one_score_that_is_far_off_does_not_choose() -> None:
    """`dan` has one score far above all, `dann` is better by the three others."""
    runs = {
        "source_only": [scored(0.5, 0.5, -0.2, 0.5)],
        "dan": [scored(0.55, 0.55, 99.0, 0.55)],
        "dann": [scored(0.6, 0.6, -0.1, 0.6)],
    }
    assert verdict(runs, BASELINES).method == "dann"


def test_ranks_are_those_of_each_score_and_ignore_its_scale() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 4))
    assert mean_ranks(scores) == pytest.approx(np.mean([rankdata(column) for column in scores.T], axis=0))
    assert mean_ranks(np.exp(3 * scores)) == pytest.approx(mean_ranks(scores))
    assert mean_ranks([[1.0], [1.0]]).tolist() == [1.5, 1.5]


def test_scores_judge_if_all_runs_have_them() -> None:
    whole, part = scored(0.1, 0.2, 0.3, 0.4), Answers([0], {"mmd": 0.1, "bnm": float("nan"), "entropy": 1.0})
    assert judges_of([whole, whole]) == JUDGES
    assert judges_of([whole, part]) == ("mmd",)
    assert judges_of([Answers([0], {"entropy": 1.0})]) == ()


def test_the_best_of_several_baselines_is_the_baseline() -> None:
    runs = {
        "source_only a": [scored(0.1, 0.1, 0.1, 0.1)],
        "source_only b": [scored(0.6, 0.6, 0.6, 0.6)],
        "dann": [scored(0.5, 0.5, 0.5, 0.5)],
    }
    found = verdict(runs, ["source_only a", "source_only b"])
    assert (found.baseline, found.method) == ("source_only b", "source_only b")


def test_more_seeds_make_a_small_gain_certain() -> None:
    def runs(number: int) -> dict[str, list[Answers]]:
        return {
            "source_only": [answers(0.6, 0.80, seed) for seed in range(number)],
            "dann": [answers(0.6, 0.83, 50 + seed) for seed in range(number)],
        }

    assert verdict(runs(2), BASELINES).method == "source_only"
    assert verdict(runs(2), BASELINES).best == "dann"
    assert verdict(runs(30), BASELINES).method == "dann"


def test_differences_between_trainings_and_many_methods_count() -> None:
    """Of four methods with the scores of the baseline, one is hardly ever chosen; a better one is."""
    methods = ["source_only", "dann", "dan", "adda", "jan"]

    def chosen(gain: float) -> int:
        return sum(
            verdict(
                {
                    name: [
                        answers(0.6, 0.8 + gain * (name == "jan"), 1000 * trial + 10 * place + seed, 20)
                        for seed in range(3)
                    ]
                    for place, name in enumerate(methods)
                },
                BASELINES,
            ).method
            != "source_only"
            for trial in range(100)
        )

    assert chosen(0.0) <= 8
    assert chosen(0.1) >= 90


def test_a_tie_is_the_baseline() -> None:
    same = [answers(0.6, 0.8, 1)]
    assert verdict({"dann": same, "source_only": same}, BASELINES).best == "source_only"


def test_the_estimate_is_the_agreement_with_other_methods() -> None:
    runs = {name: [answers(accuracy, score, seed)] for seed, (name, accuracy, score) in enumerate(
        [("source_only", 0.5, 0.5), ("dann", 0.9, 0.9), ("dan", 0.85, 0.7), ("adda", 0.8, 0.7)])}  # fmt: skip
    found = verdict(runs, BASELINES)
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
    found = verdict(runs, BASELINES)
    assert (found.low, found.estimate, found.high) == pytest.approx((0.4, 0.55, 0.7))
    apart = {name: [answers(0.5, 0.5, seed)] for seed, name in enumerate(runs)}
    assert verdict(apart, BASELINES) == verdict(
        {name: [replace(own[0], source_acc=0.99)] for name, own in apart.items()}, BASELINES
    )
