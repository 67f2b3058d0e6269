"""Made trajectories, the numbers and the picture of one, and a random forest as tensors."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from lightning_da.data import Trajectories
from lightning_da.data.trajectories import CITIES, MODES, travel
from lightning_da.errors import ConfigError
from lightning_da.methods import CoTrans, FineTune
from lightning_da.networks import FeedForward, Movement, TrajectoryLeNet
from lightning_da.networks.forest import Forest
from lightning_da.networks.trajectories import MOVEMENT
from lightning_da.testing import build, check_data, fit

SHAPE = (1, 12, 3)


def trajectory(*points: tuple[float, float, float]) -> Tensor:
    """A trajectory of twelve points, (1, 1, 12, 3), from its first ones."""
    return torch.tensor([*points, *[points[-1]] * (12 - len(points))])[None, None]


def movement(x: Tensor) -> dict[str, float]:
    return dict(zip(MOVEMENT, Movement(SHAPE)(x)[0].tolist(), strict=True))


# 100 m to the east in 20 s, 30 s of standing, 100 m to the north in 20 s
CORNER = trajectory((0, 0, 0), (20, 100, 0), (50, 100, 0), (70, 100, 100))


def test_the_numbers_of_a_trip_are_those_of_its_parts() -> None:
    found = movement(CORNER)
    assert found["length in km"] == pytest.approx(0.2)
    assert found["mean speed"] == pytest.approx(200 / 70)
    assert found["deviation of speed"] == pytest.approx(np.std([5] * 4 + [0] * 3))
    assert found["mean acceleration"] == pytest.approx(10 / 70)
    assert found["share of the time that is spent standing"] == pytest.approx(30 / 70)
    assert found["at up to 5 m/s"] == pytest.approx(40 / 70)
    assert found["stops per km"] == pytest.approx(5)
    assert found["mean length of a stop in s"] == pytest.approx(30)
    assert found["turning in radians per km"] == 0  # the corner is turned while standing
    assert found["distance from the first to the last point, as a share of the length"] == pytest.approx(0.5**0.5)
    turned = movement(trajectory((0, 0, 0), (20, 100, 0), (40, 100, 100)))
    assert turned["turning in radians per km"] == pytest.approx(5 * np.pi / 2)


def test_the_numbers_do_not_depend_on_place_direction_time_and_padding() -> None:
    x = torch.from_numpy(travel(MODES["car"], CITIES["grid"], np.random.default_rng(0)))[None, None].double()
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    moved = torch.cat([x[..., :1] + 40, x[..., 1:] @ turn + 500], dim=-1)
    longer = torch.cat([moved, moved[:, :, -1:].expand(-1, -1, 9, -1)], dim=2)
    own, other = (Movement(tuple(part.shape[1:]))(part.float()) for part in (x, longer))
    assert torch.allclose(own, other, rtol=1e-3, atol=1e-3)
    network = TrajectoryLeNet(SHAPE)
    assert torch.allclose(network.draw(moved.float()), network.draw(longer.float()), atol=1e-5)


def test_maps_say_how_long_each_cell_is_visited() -> None:
    network = TrajectoryLeNet(SHAPE, side=16, size=1500)
    own, fixed = 10 * network.draw(CORNER)[0].expm1()
    # north is up and west is left; a part is drawn in its middle, and the map is a square of 100 m
    assert [own[15, 8], own[15, 15], own[7, 15]] == pytest.approx([20, 30, 20], rel=1e-4)
    assert own.sum().item() == pytest.approx(70, rel=1e-4)
    assert fixed[7:9, 7:9].sum().item() == pytest.approx(70, rel=1e-4)
    larger = torch.cat([CORNER[..., :1], 10 * CORNER[..., 1:] - 100], dim=-1)
    own, fixed = 10 * network.draw(larger)[0].expm1()
    assert own.sum().item() == pytest.approx(70, rel=1e-4)
    assert (fixed > 0).nonzero().tolist() == [[7, 13], [12, 8], [12, 13]]
    far = trajectory((0, -9e4, 0), (5, 0, 0), (15, 0, 0), (20, 9e4, 0))
    assert network.draw(far)[0, 1].sum().item() == pytest.approx(np.log(2), rel=1e-5)  # the rest is off the map


def test_made_trajectories_hold_what_data_must_hold() -> None:
    check_data(Trajectories(number=20, batch_size=8))


def test_modes_differ_as_they_should_in_each_city() -> None:
    rng = np.random.default_rng(0)
    for city in CITIES.values():
        trips = [np.stack([travel(mode, city, rng) for _ in range(40)]) for mode in MODES.values()]
        found = [Movement((1, 150, 3))(torch.from_numpy(part)[:, None].float()).mean(dim=0) for part in trips]
        walk, bike, bus, car = (dict(zip(MOVEMENT, part.tolist(), strict=True)) for part in found)
        assert walk["mean speed"] < bike["mean speed"] < car["mean speed"]
        straight = "distance from the first to the last point, as a share of the length"
        assert bus[straight] > car[straight]
        assert np.diff(trips[0][0, :10, 0]) == pytest.approx(city.period)


def test_the_cities_differ() -> None:
    own = [Trajectories(number=20).dataset(city, "train") for city in CITIES]
    speeds = [Movement((1, 150, 3))(data.x)[:, MOVEMENT.index("mean speed")].mean().item() for data in own]
    assert speeds[1] < 0.85 * speeds[0]


@pytest.mark.parametrize("network", [Movement, TrajectoryLeNet])
def test_what_is_no_trajectory_is_refused(network: type[Movement | TrajectoryLeNet]) -> None:
    with pytest.raises(ConfigError, match=r"\(1, points, 3\)"):
        network((1, 28, 28))


def test_one_point_is_no_trajectory() -> None:
    with pytest.raises(ConfigError, match="of each of two points or more"):
        Movement((1, 1, 3))


@pytest.mark.parametrize("network", [Movement, TrajectoryLeNet])
def test_times_and_units_of_the_training_samples_are_looked_at(network: type[Movement | TrajectoryLeNet]) -> None:
    data = Trajectories(number=10)
    x = {role: data.dataset(getattr(data, role), "train").x for role in ("source", "target")}
    network((1, 150, 3)).fit(lambda role: x[role].split(7))
    turned = x["target"].flip(2)
    degrees = x["target"] * torch.tensor([1, 9e-6, 9e-6])
    milliseconds = x["target"] * torch.tensor([1000, 1, 1])
    for wrong, message in (
        (turned, "a trajectory of the target has a time before that of the point before it"),
        (degrees, "the median speed of the trajectories of the target is .*e-05 m/s"),
        (milliseconds, r"the target is 0\.00\d+ m/s; a point is \(seconds, metres east"),
        (0 * x["target"], "the median speed of the trajectories of the target is nan"),
    ):
        given = {**x, "target": wrong}
        with pytest.raises(ConfigError, match=message):
            network((1, 150, 3)).fit(lambda role, given=given: given[role].split(7))  # type: ignore[misc]


def test_trajectories_are_not_standardized() -> None:
    with pytest.raises(ConfigError, match="standardize: TrajectoryLeNet reads values in their units; set it to false"):
        build(FineTune, num_classes=4, input_shape=(1, 150, 3), backbone=TrajectoryLeNet, standardize=True)


def test_seconds_are_not_rounded_to_half_precision() -> None:
    data = Trajectories(number=20, batch_size=8)
    x = data.dataset("grid", "train").x
    steps = x[:, 0, :, 0].diff(dim=1)
    assert not torch.equal(x.bfloat16().float()[:, 0, :, 0].diff(dim=1), steps)
    forest: dict[str, Any] = {"backbone": partial(FeedForward, hidden=[4]), "forest_reads": Movement, "trees": 2}
    for method, parts in ((FineTune, {"backbone": TrajectoryLeNet}), (CoTrans, forest)):
        network = {"num_classes": 4, "input_shape": (1, 150, 3), **parts}
        with pytest.raises(ConfigError, match=r"bf16-true rounds the values of samples, which have units; take bf16-m"):
            fit(build(method, **network), 1, data, precision="bf16-true")
        fit(build(method, **network), 1, data, precision="bf16-mixed")


# ---------------------------------------------------------------- the forest


@pytest.mark.parametrize("depth", [1, 6])
def test_a_forest_is_that_of_scikit_learn(depth: int) -> None:
    torch.manual_seed(0)
    x, z = torch.randn(300, 5).round(decimals=1), torch.randn(200, 5).round(decimals=1)
    y = 3 * (x[:, 0] + x[:, 1] * x[:, 2] > 0).long() + (x[:, 3] > 1).long()
    y[y == 1] = 0
    forest = Forest(5, 5, 7, depth)
    assert torch.allclose(forest(z), torch.full((200, 5), 0.2))
    forest.fit(x, y)
    expected = RandomForestClassifier(7, max_depth=depth, random_state=0).fit(x.numpy(), y.numpy())
    found = forest(z)
    assert found[:, expected.classes_].numpy() == pytest.approx(expected.predict_proba(z.numpy()), abs=1e-6)
    assert found.sum(dim=1).numpy() == pytest.approx(1)
    again = Forest(5, 5, 7, depth)
    again.load_state_dict(forest.state_dict())
    assert torch.equal(again(z), found)


@pytest.mark.parametrize("wrong", [{"trees": 0}, {"depth": 0}])
def test_a_forest_without_trees_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        partial(Forest, 5, 2)(**wrong)
