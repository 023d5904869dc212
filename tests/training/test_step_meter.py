"""The metrics of steps."""

import math
from types import SimpleNamespace

import pytest

from neobert_train.training.step_meter import StepMeter


@pytest.mark.parametrize(
    ("own_peak", "others", "mfu"),
    [
        (400.0, 0.0, 0.25),
        (400.0, 600.0, 0.1),
        (100.0, 0.0, 1.0),
        (99.0, 0.0, None),  # measured while other programs ran
        (None, 0.0, None),  # an unknown GPU
        (400.0, math.nan, None),  # on another process
    ],
)
def test_the_share_of_the_peak_is_left_out_where_it_says_nothing(own_peak, others, mfu):
    meter = SimpleNamespace(
        size=SimpleNamespace(compute_flops=lambda *_: 200),
        peak=SimpleNamespace(read=lambda: own_peak),
        collectives=SimpleNamespace(sum_floats=lambda own: [own[0] + others]),
    )
    assert StepMeter._measure_work(meter, [], seconds=2.0) == {
        "train/flops_per_second": 100.0,
        **({} if mfu is None else {"train/mfu": mfu}),
    }
