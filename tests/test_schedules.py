import math

import pytest

from lightning_da import schedules


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [
        (schedules.constant, 1, 1, 1),
        (schedules.ramp, 0, 2 / (1 + math.exp(-5)) - 1, 0.99991),
        (schedules.inverse_decay, 1, 6**-0.75, 11**-0.75),
        (schedules.cosine, 1, 0.5, 0),
    ],
)
def test_ends_and_middle(schedule: object, start: float, middle: float, end: float) -> None:
    assert callable(schedule)
    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([start, middle, end], abs=1e-5)
