"""The curve over the share of updated parameters: best settings, paired differences, table and figure."""

import pytest

from k1.study.methods import METHODS
from k1.study.shares import (
    ALL,
    FINAL,
    FORGETTING,
    HALF,
    LEARNING,
    SHARE_OF,
    best_by_share,
    best_references,
    format_shares,
    outcome,
    paired_differences,
    shares_figure,
)
from tests.study.records import record


def run(method, seed, forgotten, new=2.0, rate=1e-3):
    """A run that forgets `forgotten` nats of dataset 1 at once, as much again later, and as much of dataset 2."""
    rows = [4.0], [4.0 + forgotten, new], [4.0 + 2 * forgotten, new + forgotten, new + 1]
    return record(method, rate, seed, *rows)


@pytest.fixture
def runs():
    found = [
        # Not the best rate, although it forgets less: the loss at the end is higher.
        *(run("k1", seed, 0.0, new=3.0, rate=1e-2) for seed in (0, 1)),
        run("k1", 0, 0.3), run("k1", 1, 0.6),
        run("k1_all", 0, 0.6), run("k1_all", 1, 0.6), run("k1_all", 2, 9.0),
        run("k1_5%", 0, 0.1, new=2.5), run("k1_5%", 1, 0.1, new=2.5),
        run("dense", 0, 0.9), run("dense", 1, 0.9), run("dense_rehearsal", 0, 0.45),
        run("ewc", 0, 0.3),
    ]  # fmt: skip
    return dict(enumerate(found))


def test_every_share_is_a_method_that_updates_it():
    assert list(SHARE_OF.values()) == [0.05, 0.10, 0.25, 0.51, 0.75, 1.0]
    for method, share in SHARE_OF.items():
        expected = {HALF: (), ALL: ("--selection", "all")}.get(method, ("--update_fraction", str(share)))
        assert METHODS[method].flags == expected


def test_each_share_is_at_its_lowest_validation_loss(runs):
    best = best_by_share(runs)
    assert list(best) == ["k1_5%", "k1", "k1_all"]
    assert best["k1"].learning_rate == 1e-3 and len(best["k1"].records) == 2
    assert list(best_references(runs)) == ["dense", "dense_rehearsal"]


def test_the_choice_is_made_on_validation_text_and_the_figures_are_of_test_text(runs):
    for name, found in runs.items():
        if found["method"] == "k1" and found["learning_rate"] == 1e-2:
            found["evaluations"][-1]["a"]["validation"][0] = 0.0
    assert best_by_share(runs)["k1"].learning_rate == 1e-2
    assert outcome(best_by_share(runs)["k1"].records[0])[FINAL] == pytest.approx((4 + 3 + 4) / 3)


def test_outcome_of_one_run(runs):
    found = outcome(runs[2])
    assert found[FORGETTING] == pytest.approx((0.3 + 0.6 + 0.3) / 3)
    assert found["dataset 1 at the end"] == pytest.approx(0.6)
    assert found[LEARNING] == pytest.approx(2.5)
    assert found[FINAL] == pytest.approx((4.6 + 2.3 + 3.0) / 3)


def test_differences_are_paired_by_seed(runs):
    best = best_by_share(runs)
    differences = paired_differences(best["k1"], best["k1_all"])
    assert differences[FORGETTING] == pytest.approx({0: -0.4, 1: 0.0})
    assert differences[LEARNING] == pytest.approx({0: 0.0, 1: 0.0})
    other = best_by_share({0: run("k1", 5, 0.3)})
    assert paired_differences(other["k1"], best["k1_all"])[FORGETTING] == {}


def test_table_of_shares_and_of_differences(runs):
    table = format_shares(runs)
    assert "| 5%                |         0.001 |     2 |   0.100 ± 0.000 |" in table
    assert "| dense + rehearsal |         0.001 |     1 |           0.450 |" in table
    assert "EWC" not in table
    # Two seeds: the half width is 12.706 standard errors, here half the difference.
    assert "| mean forgetting      | -0.400 | +0.000 | -0.200 ± 2.541 |" in table
    without = {name: found for name, found in runs.items() if found["method"] != "k1_all"}
    assert "minus 100%" not in format_shares(without)


def test_the_figure_shows_means_intervals_and_the_dense_levels(runs):
    left, right = shares_figure(runs).axes
    points, dense, rehearsal = left.lines[0], *left.lines[-2:]
    assert list(points.get_xdata()) == pytest.approx([5, 51, 100])
    assert list(points.get_ydata()) == pytest.approx([0.4 / 3, 0.6, 4 / 3 * 3.4])
    assert dense.get_ydata()[0] == pytest.approx(1.2) and rehearsal.get_ydata()[0] == pytest.approx(0.6)
    assert list(right.lines[0].get_ydata()) == pytest.approx([3.0, 2.5, 2.5])
    (bars,) = left.collections
    heights = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert heights[0] == pytest.approx(0) and heights[1] == pytest.approx(2 * 12.706 * 0.2, rel=1e-3)
    assert [text.get_text() for text in left.get_xticklabels()] == ["5", "51", "100"]
