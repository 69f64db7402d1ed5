"""A stream of any number of datasets: its metrics by hand, tables, picture, and one stream of four from end to end."""

import json
import random

import pytest
from matplotlib.colors import to_rgb

from k1.experiment import ARMS
from k1.report.metrics import own_and_end
from k1.report.plots import STYLES
from k1.study.points import final_loss, forgotten_nats, matrix_of, new_dataset_loss, points_of
from k1.study.stream import stream_figure, stream_tables
from tests.conftest import assert_one_clear_line, run_script
from tests.study.records import record, rows_of

pytestmark = [pytest.mark.xdist_group("stream"), pytest.mark.slow]

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
    assert matrix_of(run, "loss")[2] == [4.5, 3.0, None, None] and matrix_of(run, "accuracy")[4] == ACCURACIES[3]
    assert own_and_end(matrix_of(run, "loss")) == [(4.0, 5.0), (3.0, 3.5), (2.0, 2.25), (1.0, 1.0)]
    assert forgotten_nats(run) == pytest.approx((1.0 + 0.5 + 0.25) / 3)
    assert new_dataset_loss(run) == pytest.approx(2.0)
    assert final_loss(run) == pytest.approx(11.75 / 4)


def test_tables_show_every_dataset_and_averages_beside_the_baseline_seed_by_seed():
    dense = [more_forgotten("baseline", seed, nats) for seed, nats in ((0, 1.0), (1, 2.0), (3, 9.0))]
    k1 = [more_forgotten("k1", seed, 0.0) for seed in (2, 1, 0)]
    tables = stream_tables(arms_of(*dense, *k1))
    head = ["Method", "Setting", "Seeds"]
    datasets = "25.0 ± 0.0", "45.0 ± 0.0", "20.0 ± 0.0", "70.0 ± 0.0"
    own = "50.0 ± 0.0", "60.0 ± 0.0", "20.0 ± 0.0", "70.0 ± 0.0"
    assert rows_of(tables, head)["K-1"] == ["0.001", "3", *map(" -> ".join, zip(own, datasets))]
    assert "1.000 ± 0.000 -> 1.000 ± 0.000" in tables
    row = rows_of(tables, [*head, "Forgetting"])["K-1"]
    assert row[2:5] == ["0.583 ± 0.000", "2.000 ± 0.000", "2.938 ± 0.000"]
    # Two seeds in common: the mean of -1 and -2, and 12.706 standard errors.
    assert row[5:] == ["-1.500 ± 6.353", "0.000 ± 0.000", "-1.125 ± 4.765", "25.0 ± 0.0", "100.0", "1"]


def test_the_picture_follows_each_dataset_from_its_own_stage_on():
    halves = [[value / 2 for value in row] for row in ACCURACIES]
    runs = [
        record(arm, 1e-3, seed, *LOSSES, accuracies=accuracies)
        for arm in ARMS
        for seed, accuracies in enumerate([ACCURACIES, halves])
    ]
    figure = stream_figure(arms_of(*runs))
    assert [axes.get_title() for axes in figure.axes] == ["1: a", "2: b", "3: c", "4: d"]
    for stage, axes in enumerate(figure.axes):
        assert axes.get_xlim() == figure.axes[0].get_xlim() and axes.get_ylim() == figure.axes[0].get_ylim()
        assert len(axes.lines) == 4
        for line in axes.lines:
            assert list(line.get_xdata()) == list(range(stage + 1, 5))
            assert list(line.get_ydata()) == pytest.approx([75 * row[stage] for row in ACCURACIES[stage:]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*ARMS.values()]
    # Without colour too.
    lines, markers, colors = zip(*STYLES.values())
    assert len(set(lines)) == len(set(markers)) == 4 and max(sum(to_rgb(color)) / 3 for color in colors) < 0.5


def test_a_row_of_panels_that_is_not_full_leaves_no_axis_without_numbers():
    figure = stream_figure(arms_of(record("k1", 1e-3, 0, *([3.0] * count for count in range(1, 6)))))
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False]
    numbered = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes[:5]]
    assert numbered == [False, False, True, True, True]


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
        assert all(own < 4 for own, _ in own_and_end(matrix_of(run, "loss")))
        assert run["updated_fraction"] == pytest.approx(0.51 if arm in ("k1", "sparse") else 1, abs=2e-3)
    # Only the arms that rehearse keep the words of the first dataset.
    forgotten = {arm: forgotten_nats(runs[f"{arm}-seed0-0.01"]) for arm in ARMS}
    assert max(forgotten["k1"], forgotten["baseline_rehearsal"]) < min(forgotten["sparse"], forgotten["baseline"]) / 2
    arms = {arm: points[0] for arm, points in points_of(runs).items()}
    assert finished.stdout == stream_tables(arms) + "\n" == (out / "results.md").read_text()
    assert (out / "stream.png").read_bytes().startswith(b"\x89PNG")


def test_other_text_under_the_same_name_is_refused(stream, four, tmp_path):
    other = tmp_path / four[-1].name
    other.write_text("".join(four[-1].read_text().splitlines(keepends=True)[:-1]))
    finished = run_script("-m k1.study.stream", *stream[0], "--dataset_names", *four[:-1], other)
    assert_one_clear_line(finished, 1, "was recorded with another", "text; choose another --out")


@pytest.mark.parametrize(
    ("flags", "status", "fragment"),
    [
        (["--dataset_names", "code"], 2, "takes at least two names"),
        (["--dataset_names", "code", "science", "code"], 2, "has code twice"),
        (["--dataset_names", "nothing.jsonl", "code"], 1, "nothing.jsonl: no such file"),
        (["--learning_rates", "1e-3", "1e-3"], 2, "expected 4 arguments"),
        (["--learning_rates", "1e-3", "0", "1e-3", "1e-3"], 2, "--learning_rates: must be a positive number, not 0"),
        (["--seeds", "-1"], 2, "--seeds: must be at least 0"),
    ],
    ids=["one", "one twice", "missing", "two rates", "rate of zero", "seed below zero"],
)
def test_bad_input_is_one_line_before_any_training(tmp_path, flags, status, fragment):
    finished = run_script("-m k1.study.stream", "--preset", "smoke", *flags, "--out", tmp_path / "out")
    assert_one_clear_line(finished, status, fragment)
    assert not (tmp_path / "out").exists()
