"""The figures of the report, checked against values computed by hand."""

import pytest

from k1.report.metrics import (
    average_forgetting_percent,
    backward_transfer,
    distinct_2,
    forgetting_percent,
    forward_transfer,
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


def test_average_forgetting_leaves_the_last_dataset_out():
    assert average_forgetting_percent(MATRIX) == pytest.approx(20.0)


def test_forgetting_of_what_was_never_learned_is_zero():
    assert forgetting_percent([[0.0, 0.0], [0.0, 0.0], [0.0, 0.5]])[0] == 0.0


def test_backward_transfer():
    assert backward_transfer(MATRIX) == pytest.approx(((0.20 - 0.40) + (0.55 - 0.50)) / 2)


def test_forward_transfer_compares_with_the_untrained_model():
    assert forward_transfer(MATRIX) == pytest.approx(((0.10 - 0.02) + (0.13 - 0.03)) / 2)


def test_distinct_2():
    assert distinct_2(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["a b", "a b"]) == pytest.approx(1 / 2)
    assert distinct_2(["", "a"]) == 0.0
