"""A stream of any number of datasets: metrics by hand, the picture, and one stream of four from end to end."""

import json
import random

import pytest
from matplotlib.colors import to_rgb

from k1.experiment import ARMS
from k1.study.forgetting import (
    ACCURACY,
    NATS,
    final_loss,
    forgetting_shares,
    forgotten_nats,
    forgotten_percent,
    matrix_of,
    new_dataset_loss,
    own_and_end,
    stream_tables,
)
from k1.study.frontier import points_of
from k1.study.plots import ARM_STYLES, stream_figure
from tests.conftest import assert_one_clear_line, run_script
from tests.study.records import record

LOSSES = [[4.0], [4.5, 3.0], [4.75, 3.25, 2.0], [5.0, 3.5, 2.25, 1.0]]
ACCURACIES = [[0.5], [0.4, 0.6], [0.3, 0.5, 0.2], [0.25, 0.45, 0.2, 0.7]]
RUNS = ["first-baseline-seed0-0.01", "first-k1-seed0-0.01", *(f"{arm}-seed0-0.01" for arm in ARMS)]


def more_forgotten(method, seed, nats):
    """As `LOSSES`, but at the end every dataset but the last has lost `nats` more."""
    *earlier, last = LOSSES
    return record(method, 1e-3, seed, *earlier, [*(loss + nats for loss in last[:-1]), last[-1]], accuracies=ACCURACIES)


def arms_of(*records):
    return {arm: points[0] for arm, points in points_of(dict(enumerate(records))).items()}


def test_metrics_of_one_run():
    run = more_forgotten("k1", 0, 0.0)
    assert matrix_of(run, NATS)[1] == [4.5, 3.0, None, None] and matrix_of(run, ACCURACY)[3] == ACCURACIES[3]
    assert own_and_end(matrix_of(run, NATS)) == [(4.0, 5.0), (3.0, 3.5), (2.0, 2.25), (1.0, 1.0)]
    assert forgotten_nats(run) == pytest.approx((1.0 + 0.5 + 0.25) / 3)
    assert forgotten_percent(run) == pytest.approx((50 + 25 + 0) / 3)
    assert new_dataset_loss(run) == pytest.approx(2.0)
    assert final_loss(run) == pytest.approx(11.75 / 4)


def test_shares_are_taken_seed_by_seed_of_the_seeds_that_both_have():
    dense = [more_forgotten("baseline", seed, nats) for seed, nats in ((0, 1.75 / 3), (1, 1.75), (3, 9.0))]
    k1 = [more_forgotten("k1", seed, 0.0) for seed in (2, 1, 0)]
    arms = arms_of(*dense, *k1)
    assert forgetting_shares(arms["k1"], arms["baseline"]) == pytest.approx([1 / 2, 1 / 4])
    # The mean and 12.706 standard errors.
    assert "| K-1 / baseline |     2 | 0.38 ± 1.59 |" in stream_tables(arms)


def test_where_the_other_arm_forgot_nothing_there_is_no_share():
    arms = arms_of(more_forgotten("baseline", 0, -1.75 / 3), more_forgotten("k1", 0, 0.0))
    assert forgetting_shares(arms["k1"], arms["baseline"]) == []
    assert "as a share" not in stream_tables(arms)


def test_tables_show_every_dataset_and_average():
    tables = stream_tables(arms_of(more_forgotten("baseline", 0, 1.0), more_forgotten("k1", 0, 0.0)))
    assert "| 1: a    | 50.0 -> 25.0 | 50.0 -> 25.0 |" in tables
    assert "| 2: b    | 3.000 -> 4.500 | 3.000 -> 3.500 |" in tables
    assert "| 4: d    | 1.000 -> 1.000 | 1.000 -> 1.000 |" in tables
    assert "| K-1      |         0.001 |     1 |      0.583 |         25.0 |            2.000 |" in tables


def test_the_picture_follows_each_dataset_from_its_own_stage_on():
    halves = [[value / 2 for value in row] for row in ACCURACIES]
    runs = [
        record(arm, 1e-3, seed, *LOSSES, accuracies=accuracies)
        for arm in ARMS
        for seed, accuracies in enumerate([ACCURACIES, halves])
    ]
    figure = stream_figure(arms_of(*runs))
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["1: a", "2: b", "3: c", "4: d"]
    for stage, axes in enumerate(figure.axes):
        assert axes.get_xlim() == figure.axes[0].get_xlim() and axes.get_ylim() == figure.axes[0].get_ylim()
        assert len(axes.lines) == 4
        for line in axes.lines:
            assert list(line.get_xdata()) == list(range(stage + 1, 5))
            assert list(line.get_ydata()) == pytest.approx([75 * row[stage] for row in ACCURACIES[stage:]])
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["baseline", "51% alone", "baseline + rehearsal", "K-1"]


def test_a_row_of_panels_that_is_not_full_leaves_no_axis_without_numbers():
    stages = [[3.0] * count for count in range(1, 6)]
    figure = stream_figure(arms_of(record("k1", 1e-3, 0, *stages)))
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False]
    numbered = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes[:5]]
    assert numbered == [False, False, True, True, True]


def test_arms_are_told_apart_without_colour():
    lines, markers, colors = zip(*ARM_STYLES.values())
    assert list(ARM_STYLES) == list(ARMS)
    assert len(set(lines)) == len(set(markers)) == 4
    assert max(sum(to_rgb(color)) / 3 for color in colors) < 0.5


@pytest.fixture(scope="module")
def four(corpora, tmp_path_factory):
    """Four local datasets; the last is of words that no other has."""
    words = "cloud rain storm thunder wind frost hail fog sunny humid breeze drizzle sleet gale".split()
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("fourth") / "weather.jsonl"
    texts = [" ".join(generator.choices(words, k=60)).capitalize() + "." for _ in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [*corpora, path]


@pytest.fixture(scope="module")
def stream(four, tmp_path_factory):
    out = tmp_path_factory.mktemp("stream")
    flags = ["--preset", "smoke", "--seeds", 0, "--dataset_names", *four, "--jobs", 1, "--out", out]
    finished = run_script("-m k1.study.stream", *flags, starts_processes=True)
    assert finished.status == 0, finished.stderr
    return flags, out, finished


def test_four_datasets_are_learned_by_all_arms(stream, four):
    _, out, finished = stream
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert sorted(runs) == sorted(RUNS)
    names = [path.name for path in four]
    for arm in ARMS:
        run = runs[f"{arm}-seed0-0.01"]
        assert [list(row) for row in run["evaluations"]] == [names[:count] for count in range(1, 5)]
        # Each dataset is learned in its own stage: an even guess among 512 tokens costs 6.2 nats.
        assert all(own < 4 for own, _ in own_and_end(matrix_of(run, NATS)))
    for arm, share in (("k1", 0.51), ("sparse", 0.51), ("baseline_rehearsal", 1)):
        assert runs[f"{arm}-seed0-0.01"]["updated_fraction"] == pytest.approx(share, abs=2e-3)
    # Only the arms that rehearse keep the words of the first dataset.
    forgotten = {arm: forgotten_nats(runs[f"{arm}-seed0-0.01"]) for arm in ARMS}
    assert max(forgotten["k1"], forgotten["baseline_rehearsal"]) < min(forgotten["sparse"], forgotten["baseline"]) / 2
    arms = {arm: points[0] for arm, points in points_of(runs).items()}
    assert finished.stdout == stream_tables(arms) + "\n" == (out / "results.md").read_text()
    assert (out / "stream.png").read_bytes().startswith(b"\x89PNG")


def test_only_a_run_that_is_missing_is_repeated_to_the_bit(stream):
    flags, out, first = stream
    recorded = json.loads((out / "results.json").read_text())
    removed = recorded["runs"].pop("k1-seed0-0.01")
    kept = recorded["runs"]["baseline-seed0-0.01"]
    kept["evaluations"][-1]["weather.jsonl"]["test"][0] = 9.999
    (out / "results.json").write_text(json.dumps(recorded))
    second = run_script("-m k1.study.stream", *flags, starts_processes=True)
    assert second.status == 0 and "9.999 -> 9.999" in second.stdout
    again = json.loads((out / "results.json").read_text())["runs"]
    assert again["k1-seed0-0.01"]["evaluations"] == removed["evaluations"]


def test_other_text_under_the_same_name_is_refused(stream, four, tmp_path):
    flags, _, _ = stream
    other = tmp_path / four[-1].name
    other.write_text("".join(four[-1].read_text().splitlines(keepends=True)[:-1]))
    finished = run_script("-m k1.study.stream", *flags, "--dataset_names", *four[:-1], other)
    assert_one_clear_line(finished, 1, "was recorded with another", "text; choose another --out")


@pytest.mark.parametrize(
    ("flags", "status", "fragment"),
    [
        (["--dataset_names", "code"], 2, "takes at least two names"),
        (["--dataset_names", "code", "science", "code"], 2, "has code twice"),
        (["--dataset_names", "nothing.jsonl", "code"], 1, "nothing.jsonl: no such file"),
        (["--dataset_names", "models/unseen/other.jsonl", "code"], 1, "python3 -m k1.study.unseen models/unseen"),
        (["--learning_rates", "1e-3", "1e-3"], 2, "expected 4 arguments"),
        (["--learning_rates", "1e-3", "0", "1e-3", "1e-3"], 2, "--learning_rates must be positive"),
        (["--seeds", "-1"], 2, "--seeds at least 0"),
    ],
    ids=["one", "one twice", "missing", "not written", "two rates", "rate of zero", "seed below zero"],
)
def test_bad_input_is_one_line_before_any_training(tmp_path, flags, status, fragment):
    finished = run_script("-m k1.study.stream", "--preset", "smoke", *flags, "--out", tmp_path / "out")
    assert_one_clear_line(finished, status, fragment)
    assert not (tmp_path / "out").exists()
