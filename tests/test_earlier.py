"""Learning to transfer: what is expected of a method on a new pair, and what it may not read."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightning_da.commands import compare
from lightning_da.transferability.earlier import FEWEST, Transfer, expected


def records(gains: dict[str, Any], number: int = 12) -> list[Transfer]:
    distances = np.linspace(-2, 0, number)
    return [Transfer(str(k), d, {name: gain(d) for name, gain in gains.items()}) for k, d in enumerate(distances)]


def test_the_method_with_the_largest_gain_at_this_distance_is_expected_to_win() -> None:
    earlier = records({"near": lambda d: 0.1 + 0.1 * d, "far": lambda d: -0.1 * d - 0.1})
    for distance, method in ((-0.1, "near"), (-1.9, "far")):
        found = expected(earlier, distance, ["near", "far"])
        assert found is not None
        assert found.method == method
        assert found.gain == pytest.approx(0.09, abs=0.005)
        assert found.error < 0.01
    found = expected(earlier, -1.9, ["near"])
    assert found is not None
    assert found.gain < 0
    assert (found.number, found.better, round(found.mean, 6)) == (12, 6, 0)


def test_noise_is_not_learned() -> None:
    rng = np.random.default_rng(0)
    found = expected(records({"dann": lambda _: 0.05 + 0.02 * rng.normal()}), -1.0, ["dann"])
    assert found is not None
    assert found.gain == pytest.approx(0.05, abs=0.015)
    assert found.error == pytest.approx(0.02, abs=0.01)


def test_few_pairs_say_nothing() -> None:
    few = records({"dann": lambda d: d}, FEWEST - 1)
    assert expected(few, -1.0, ["dann"]) is None
    assert expected([*few, *few], -1.0, ["dann"]) is None, "the same pairs again"
    assert expected(records({"dann": lambda d: d}, FEWEST), -1.0, ["dan"]) is None
    assert expected(records({"dann": lambda d: d}, FEWEST), -1.0, ["dan", "dann"]) is not None


def run(number: int, method: str, source: str, target: str, acc: float | None, **params: str) -> Any:
    metrics = {"score/a_distance": -1.0 - 0.1 * number, "score/neighbours": 0.5, "test/source/acc": 0.9}
    metrics |= {} if acc is None else {"test/target/acc": acc}
    given = {"method": method, "seed": "0", "source": source, "target": target, "train_on": "source", **params}
    data = SimpleNamespace(params=given, metrics=metrics, tags={"data": f"{source}{target}"})
    return SimpleNamespace(data=data, info=SimpleNamespace(run_id=f"{method}{source}{target}{params}", run_name=method))


def both(number: int, source: str, target: str, gain: float | None = 0.1, **params: str) -> list[Any]:
    acc = None if gain is None else 0.5
    upper = None if gain is None else 0.5 + gain
    methods: tuple[tuple[str, float | None], ...] = (("source_only", acc), ("dann", upper))
    return [run(number, method, source, target, found, **params) for method, found in methods]


def test_the_labels_of_the_pair_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with a target of the new pair, the runs of the pair, and those that read target labels are left out."""
    earlier = [one for k in range(8) for one in both(k, "a", f"t{k}")]
    poison = [*both(3, "b", "new", 100.0), *both(4, "b", "x+new", 100.0), *both(5, "a", "t9", 100.0, train_on="both")]

    def learned(new: list[Any], stored: list[Any]) -> Any:
        store = SimpleNamespace(search_experiments=lambda: [SimpleNamespace(experiment_id="0")])
        monkeypatch.setattr(compare, "client", lambda: store)
        monkeypatch.setattr(compare, "search_runs", lambda *_, **__: [*stored, *new])
        monkeypatch.setattr(compare, "answers_of", lambda _: None)
        return compare.learned_of(compare.comparison(compare.rows_of(new)), new)

    for gain in (None, 0.1, -50.0):  # with and without labels in the test of the new pair
        found = learned(both(2, "a", "new+other", gain), [*earlier, *poison])
        assert (found.method, found.number, found.better) == ("dann", 8, 8)
        assert found.gain == pytest.approx(0.1)
        assert "dann is expected to gain +0.100 over source_only" in compare.describe_learned(found)
    assert learned(both(2, "a", "t1"), earlier).number == 7, "the pair itself is left out"
    assert learned(both(2, "a", "new"), earlier[: 2 * (FEWEST - 1)]) is None


def test_gains_are_those_of_equal_networks() -> None:
    runs = [*both(0, "a", "b", 0.1, backbone="LeNet"), *both(0, "a", "b", 0.3, backbone="FeedForward")]
    found = compare.earlier_transfers(runs)
    assert [round(own.gains["dann"], 6) for own in found] == [0.1, 0.3]
    assert {own.pair for own in found} == {"a -> b"}
