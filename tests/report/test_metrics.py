"""The figures of the report, checked against values computed by hand."""

import pytest
from scipy.stats import t

from k1.report.metrics import (
    average_forgetting_percent,
    backward_transfer,
    distinct_2,
    forgetting_percent,
    forward_transfer,
    half_interval,
    mean_and_interval,
)

# Rows: untrained, after stage 1, 2, 3. Columns: datasets.
MATRIX = [
    [0.01, 0.02, 0.03],
    [0.40, 0.10, None],
    [0.30, 0.50, 0.13],
    [0.20, 0.55, 0.60],
]


def test_forgetting_is_the_lost_share_of_the_accuracy_after_the_own_stage():
    assert forgetting_percent(MATRIX) == pytest.approx([50.0, -10.0, 0.0])
    # The last dataset is left out of the average, and what was never learned is not forgotten.
    assert average_forgetting_percent(MATRIX) == pytest.approx(20.0)
    assert forgetting_percent([[0.0, 0.0], [0.0, 0.0], [0.0, 0.5]])[0] == 0.0


def test_transfer_compares_with_the_own_stage_and_with_the_untrained_model():
    assert backward_transfer(MATRIX) == pytest.approx(((0.20 - 0.40) + (0.55 - 0.50)) / 2)
    assert forward_transfer(MATRIX) == pytest.approx(((0.10 - 0.02) + (0.13 - 0.03)) / 2)


def test_interval_is_that_of_student():
    values = [1.0, 2.0, 4.0]
    low, high = t.interval(0.95, 2, loc=7 / 3, scale=(7 / 3) ** 0.5 / 3**0.5)
    assert mean_and_interval(values) == f"2.333 ± {(high - low) / 2:.3f}"
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert mean_and_interval([1.0]) == "1.000" and half_interval([1.0]) == 0


def test_distinct_2():
    assert distinct_2(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["a b", "a b"]) == pytest.approx(1 / 2)
    assert distinct_2(["", "a"]) == 0.0
