"""The tables and pictures of a study, from made-up records: what is compared with what, and by how much."""

import numpy as np
import pytest

from k1.experiment import ARMS
from k1.study.frontier import (
    TEST,
    accuracies,
    at_equal_learning,
    best_point,
    equal_learning_table,
    points_of,
    share_of_reference,
    study_figure,
    study_tables,
    undominated,
)
from k1.study.methods import MAP
from tests.study.records import record, rows_of

LOSSES = [[4.0], [4.5, 3.0], [4.75, 3.25, 2.0], [5.0, 3.5, 2.25, 1.0]]
ACCURACIES = [[0.5], [0.4, 0.6], [0.3, 0.5, 0.2], [0.25, 0.45, 0.2, 0.7]]
HEAD = ["Method", "Rehearsal %", "Setting", "Seeds"]


def more_forgotten(method, seed, nats):
    """As `LOSSES`, but at the end every dataset but the last has lost `nats` more."""
    *earlier, last = LOSSES
    return record(method, 1e-3, seed, *earlier, [*(loss + nats for loss in last[:-1]), last[-1]], accuracies=ACCURACIES)


def test_tables_show_every_dataset_and_averages_beside_the_baseline_seed_by_seed():
    dense = [more_forgotten("baseline", seed, nats) for seed, nats in ((0, 1.0), (1, 2.0), (3, 9.0))]
    k1 = [more_forgotten("k1", seed, 0.0) for seed in (2, 1, 0)]
    tables = study_tables([*dense, *k1])
    datasets = "25.0 ± 0.0", "45.0 ± 0.0", "20.0 ± 0.0", "70.0 ± 0.0"
    own = "50.0 ± 0.0", "60.0 ± 0.0", "20.0 ± 0.0", "70.0 ± 0.0"
    assert rows_of(tables, HEAD)["K-1"] == ["25", "0.001", "3", *map(" -> ".join, zip(own, datasets))]
    assert "1.000 ± 0.000 -> 1.000 ± 0.000" in tables
    row = rows_of(tables, [*HEAD, "Forgetting"])["K-1"]
    assert row[3:6] == ["0.583 ± 0.000", "2.000 ± 0.000", "2.938 ± 0.000"]
    # Two seeds in common: the mean of -1 and -2, and 12.706 standard errors.
    assert row[6:] == ["-1.500 ± 6.353", "0.000 ± 0.000", "-1.125 ± 4.765", "25.0 ± 0.0", "100.0", "1"]
    # One learning rate of the baseline is no line.
    assert "equal learning" not in tables


def test_forgetting_at_equal_learning_is_read_off_the_line_of_the_baseline():
    dense = [
        record("baseline", 1e-3, 0, [4], [4.5, 3.0], [4.8, 3.4, 3.0]),
        record("baseline", 2e-3, 0, [4], [5.5, 2.0], [5.8, 2.6, 2.0]),
    ]
    others = [
        record("k1", 1e-3, 0, [4], [4.4, 2.5], [4.6, 2.7, 2.5]),
        record("k1", 9e-3, 0, [4], [4.4, 2.5], [5.6, 2.7, 2.5]),
        record("ewc", 1e-3, 0, [4], [4.4, 1.5], [4.6, 2.7, 1.5], setting={"strength": 5}),
    ]
    points = points_of([*dense, *others])
    # Its line at a loss of 2.5 is between 0.6 and 1.2; K-1 forgets 0.4.
    (pair,) = at_equal_learning(points["k1"][0], points["baseline"], TEST)
    assert pair == pytest.approx((0.4, 0.9))
    # Better learned than any run of it: no extrapolation.
    assert at_equal_learning(points["ewc"][0], points["baseline"], TEST) == []
    assert equal_learning_table(points).rows[1:] == [["K-1", "25", "0.001", "1", "0.400", "-0.500", "0.44"]]
    assert share_of_reference([(0.1, 0.2), (0.1, 0.02)]) == "-"
    assert best_point(points["baseline"]) == [dense[1]]
    assert rows_of(study_tables([*dense, *others]), HEAD)["EWC"][:2] == ["0", "0.001, strength 5"]


def test_of_positions_those_are_drawn_that_no_other_beats():
    assert undominated([(3, 1), (1, 3), (2, 3.5), (2, 2), (4, 1.5)]) == [(1, 3), (2, 2), (3, 1)]


@pytest.fixture
def of_map():
    """Two seeds of three methods, without and with rehearsal; a step of 51% costs 0.2 and 0.3 nats more."""

    def run(method, seed, forgotten, rate=1e-3, end=0.0):
        losses = [4 + end], [4 + end, 3 + end], [4 + end + forgotten, 3 + end + forgotten, 2 + end]
        return record(method, rate, seed, *losses)

    found = [
        run(f"{name}_{rehearsal:g}", seed, base + 0.1 * seed + (0 if name == "all" else 0.2 + 0.1 * seed))
        for name in ("all", "windows_0.51", "stage_0.51")
        for rehearsal, base in ((0.0, 1.0), (0.25, 0.5))
        for seed in (0, 1)
    ]
    return [*found, *(run("windows_0.51_0.25", seed, 0.0, rate=3e-3, end=1.0) for seed in (0, 1))]


def test_every_place_of_the_map_is_at_its_best_rate_beside_all_parameters_with_the_same_rehearsal(of_map):
    rows = rows_of(study_tables(of_map), [*HEAD, "Forgetting"])
    # Two seeds: 12.706 standard errors of 0.05. Of the last row of each label, that with rehearsal.
    half, dense = rows["51%, random windows"], rows["100%"]
    assert half[:4] == ["25", "0.001", "2", "0.800 ± 1.271"]
    assert half[6:9] == ["0.250 ± 0.635", "0.000 ± 0.000", "0.167 ± 0.424"] and dense[6:9] == ["-"] * 3


def test_the_picture_has_a_panel_a_share_of_rehearsal(of_map):
    figure = study_figure(of_map)
    assert [axes.get_title() for axes in figure.axes] == ["no rehearsal", "0.25 of the text rehearsed"]
    labels = ["100%", "51%, random windows", "51%, one mask for the stage"]
    for axes, heights in zip(figure.axes, ([1.05, 1.3, 1.3], [0.55, 0.8, 0.8])):
        assert [container.get_label() for container in axes.containers] == labels
        assert [container.lines[0].get_ydata()[0] for container in axes.containers] == pytest.approx(heights)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels


def test_a_step_of_every_share_is_about_as_long():
    rates = {name: MAP[name].learning_rates[1] for name in ("all_0", "windows_0.01_0", "stage_0.01_0")}
    assert rates == {"all_0": 1.5e-3, "windows_0.01_0": 1.5e-4, "stage_0.01_0": 1.5e-2}


def test_accuracies_of_the_arms_are_means_over_seeds():
    halves = [[value / 2 for value in row] for row in ACCURACIES]
    runs = [
        record(arm, 1e-3, seed, *LOSSES, accuracies=accuracies)
        for arm in (*ARMS, "ewc")
        for seed, accuracies in enumerate([ACCURACIES, halves])
    ]
    found = accuracies(runs)
    assert list(found["models"]) == list(ARMS) and [dataset["name"] for dataset in found["datasets"]] == list("abcd")
    first, *_, last = found["models"]["k1"]["accuracy_matrix"]
    assert np.isnan(first).all() and last == pytest.approx([0.75 * value for value in ACCURACIES[-1]])
    assert accuracies(runs[-2:])["models"] == {}
