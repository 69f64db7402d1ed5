"""The map of shares, rehearsal and policies: what is compared with what, the picture, and a map from end to end."""

import json

import pytest

from k1.study.map import ALL, cells_of, map_figure, map_table, own_rate
from k1.study.points import forgotten_nats
from tests.conftest import run_script
from tests.study.records import record, rows_of


def run(policy, share, rehearsal, seed, forgotten, rate=1e-3, end=0.0):
    """A run that forgets `forgotten` nats of `a` and of `b`; all its losses are `end` higher."""
    losses = [4 + end], [4 + end, 3 + end], [4 + end + forgotten, 3 + end + forgotten, 2 + end]
    return record(policy, rate, seed, *losses, setting={"update_fraction": share, "rehearsal": rehearsal})


@pytest.fixture
def cells():
    found = [
        run(policy, share, rehearsal, seed, base + 0.1 * seed + (0.2 + 0.1 * seed if share < 1 else 0))
        for policy, share in ((ALL, 1.0), (ALL, 0.51), ("one_mask", 0.51))
        for rehearsal, base in ((0.0, 1.0), (0.25, 0.5))
        for seed in (0, 1)
    ]
    worse = [run(ALL, 0.51, 0.25, seed, 0.0, rate=3e-3, end=1.0) for seed in (0, 1)]
    return cells_of(dict(enumerate([*found, *worse])))


def test_every_cell_is_at_its_best_rate_beside_all_parameters_with_the_same_rehearsal(cells):
    assert list(cells) == [
        (rehearsal, *cell) for rehearsal in (0.0, 0.25) for cell in ((0.51, "one_mask"), (0.51, ALL), (1.0, ALL))
    ]
    rows = rows_of(map_table(cells), ["Method", "Setting"])
    # Two seeds: 12.706 standard errors of 0.05. Of the last row of each label, that with rehearsal.
    half, dense = rows["random windows"], rows["all"]
    assert half[:3] == ["0.001, update_fraction 0.51, rehearsal 0.25", "2", "0.800 ± 1.271"]
    assert half[5:8] == ["0.250 ± 0.635", "0.000 ± 0.000", "0.167 ± 0.424"] and dense[5:8] == ["-"] * 3


def test_the_picture_has_a_panel_a_policy_and_all_parameters_in_each(cells):
    figure = map_figure(cells)
    assert [axes.get_title() for axes in figure.axes] == ["random windows", "one mask for the stage"]
    for axes in figure.axes:
        assert [container.get_label() for container in axes.containers] == ["51%", "100%"]
        half, dense = [list(container.lines[0].get_ydata()) for container in axes.containers]
        assert half == pytest.approx([1.3, 0.8]) and dense == pytest.approx([1.05, 0.55])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["51%", "100%"]


def test_a_step_of_every_share_is_about_as_long():
    assert [own_rate(1e-3, share, ALL) for share in (1.0, 0.25, 0.01)] == [1e-3, 5e-4, 1e-4]
    assert [own_rate(1e-3, share, "one_mask") for share in (1.0, 0.25, 0.01)] == [1e-3, 2e-3, 1e-2]


def test_a_map_is_trained_recorded_and_shown(corpora, tmp_path):
    flags = [
        "--preset", "smoke", "--seeds", 0, "--shares", 0.25, "--rehearsals", 0, 0.25, "--policies", "largest_momenta",
        "--learning_rates", 1e-2, "--dataset_names", *corpora, "--out", tmp_path,
    ]  # fmt: skip
    finished = run_script("-m k1.study.map", *flags, starts_processes=True)
    assert finished.status == 0, finished.stderr
    first, *recorded = json.loads((tmp_path / "results.json").read_text())["runs"].values()
    assert first["method"] == "first-k1" and len(recorded) == 4
    for found in recorded:
        assert found["updated_fraction"] == pytest.approx(found["setting"]["update_fraction"], abs=2e-3)
    cells = cells_of(dict(enumerate(recorded)))
    assert finished.stdout == map_table(cells) + "\n" == (tmp_path / "results.md").read_text()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    # Rehearsal is what differs between the rows.
    for share, policy in ((0.25, "largest_momenta"), (1.0, ALL)):
        without, rehearsed = (forgotten_nats(cells[part, share, policy].records[0]) for part in (0.0, 0.25))
        assert rehearsed < without
