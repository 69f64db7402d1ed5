"""The figures of the report, the numbers in them, and the refusals before anything is computed."""

import copy
import io
import os

import pytest
import torch
from matplotlib.image import imread

from k1.checkpoints.storage import load_checkpoint
from k1.presets import FILES
from k1.report.metrics import parameter_names, selection_of
from k1.report.plots import accuracy_figure, learning_figure, plot_report, selection_figure
from k1.report.tables import LABELS
from k1.report.text import format_report
from k1.sparse.selection import module_group
from tests.conftest import assert_one_clear_line, run_script

PICTURES = ["accuracy.png", "learning.png", "selection.png"]
GROUPS = ["embedding", "attention 0", "feed-forward 0", "attention 1", "feed-forward 1", "output"]


@pytest.fixture
def report(written):
    return written.results


@pytest.fixture(scope="module")
def runs(trained):
    return {
        method: [load_checkpoint(trained.models_dir / file, method) for file in files]
        for method, files in FILES.items()
    }


def cells(axes):
    """The numbers printed in a heat map, by (row, column)."""
    return {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}


def test_the_pictures_are_whole_and_the_same_each_time(written, report, tmp_path):
    folder = written.folder / "new" / "plots"
    plot_report(report, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == PICTURES
    for name in PICTURES:
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and b"Software" not in content
        pixels = imread(io.BytesIO(content), format="png")
        assert pixels.shape[1] == 900 and pixels[..., :3].min() < 0.2 and pixels[..., :3].max() == 1
        assert (tmp_path / name).read_bytes() == content


def test_the_accuracy_map_shows_every_measured_cell_on_one_scale(report):
    left, right, *_ = accuracy_figure(report).axes
    assert left.images[0].get_clim() == right.images[0].get_clim()
    for axes, method in ((left, "k1"), (right, "baseline")):
        matrix = report["models"][method]["accuracy_matrix"]
        expected = {
            (dataset, stage): f"{100 * value:.1f}"
            for stage, row in enumerate(matrix)
            for dataset, value in enumerate(row)
            if value is not None
        }
        assert cells(axes) == expected
        hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
        assert hatched == [(0.5, 1.5)]  # dataset 3 after stage 1


def test_numbers_stand_out_from_their_cells(report):
    def luminance(color):
        return color / 12.92 if color <= 0.04045 else ((color + 0.055) / 1.055) ** 2.4

    shares = torch.linspace(0, 1, 3 * len(GROUPS)).view(-1, 3).tolist()
    report["models"]["k1"]["selection"]["share"] = dict(zip(GROUPS, shares))
    axes = selection_figure(report).axes[0]
    for text in axes.texts:
        column, row = text.get_position()
        ground = luminance(axes.images[0].to_rgba(100 * shares[row][column])[0])
        ink = {"black": 0, "white": 1}[text.get_color()]
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5


def test_the_selection_map_shows_shares_and_overlap(report):
    selection = report["models"]["k1"]["selection"]
    selection["overlap"]["output"] = None
    left, right, *_ = selection_figure(report).axes
    assert [label.get_text() for label in left.get_yticklabels()] == GROUPS
    shares = [selection["share"][group] for group in GROUPS]
    assert cells(left) == {(i, j): f"{100 * shares[i][j]:.1f}" for i in range(len(GROUPS)) for j in range(3)}
    overlaps = [selection["overlap"][group] for group in GROUPS[:-1]]
    assert cells(right) == {(i, 0): f"{100 * overlap:.1f}" for i, overlap in enumerate(overlaps)}
    overall, chance = selection["overlap_overall"], selection["overlap_by_chance"]
    assert f"(overall {100 * overall:.0f}, by chance {100 * chance:.0f})" in right.get_title()


def test_the_learning_curves_are_the_histories_one_stage_after_the_other(runs, report):
    axes = learning_figure(report).axes[0]
    for index, method in enumerate(FILES):
        lines = axes.lines[3 * index : 3 * index + 3]
        assert lines[0].get_linestyle() == ("-", "--")[index]
        for stage, (line, checkpoint) in enumerate(zip(lines, runs[method])):
            assert list(line.get_xdata()) == [20 * stage + entry["step"] for entry in checkpoint.history]
            assert list(line.get_ydata()) == [entry["loss"] for entry in checkpoint.history]
    assert [line.get_xdata()[0] for line in axes.lines[6:]] == [20, 40]
    assert [text.get_text() for text in axes.texts] == ["1: rivers.jsonl", "2: numbers.jsonl", "3: kitchen.jsonl"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["K-1", "baseline"]


def test_unusual_runs_are_drawn_without_overlapping_labels(report, tmp_path):
    """Long names, nothing learned, nothing changed in stage 2, one logged step in a stage."""
    for dataset in report["datasets"]:
        dataset["name"] = f"/a/folder/{dataset['name'].split('/')[-1]} and a long description of what is in the file"
    for model in report["models"].values():
        model["accuracy_matrix"] = [[value and 0.0 for value in row] for row in model["accuracy_matrix"]]
        model["history"] = [entry for entry in model["history"] if entry["stage"] < 3 or entry["step"] == 20]
        model["selection"] |= {"overlap": dict.fromkeys(GROUPS), "overlap_overall": None}
    plot_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == PICTURES
    for figure in (accuracy_figure(report), selection_figure(report), learning_figure(report)):
        figure.draw_without_rendering()
        left_to_right = [[label.get_window_extent() for label in axes.get_xticklabels()] for axes in figure.axes]
        if len(figure.axes) == 1:
            left_to_right = [[text.get_window_extent() for text in figure.axes[0].texts]]
        for boxes in left_to_right:
            assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))


def test_a_third_model_is_drawn_beside_the_others(report, monkeypatch):
    monkeypatch.setitem(LABELS, "third", "baseline + rehearsal")
    third = copy.deepcopy(report["models"]["baseline"])
    third["accuracy_matrix"] = [[value and value / 2 for value in row] for row in third["accuracy_matrix"]]
    third["history"] = [{**entry, "loss": entry["loss"] + 1} for entry in third["history"]]
    report["models"]["third"] = third
    figure = accuracy_figure(report)
    figure.draw_without_rendering()
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == ["K-1", "baseline", "baseline + rehearsal"]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    assert cells(panels[2])[0, 1] == f"{100 * third['accuracy_matrix'][1][0]:.1f}"
    for labels in ([axes.title for axes in panels], [text for axes in panels for text in row_of_numbers(axes, 0)]):
        boxes = [label.get_window_extent() for label in labels]
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))

    axes = learning_figure(report).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["K-1", "baseline", "baseline + rehearsal"]
    assert list(axes.lines[6].get_ydata()) == [entry["loss"] for entry in third["history"] if entry["stage"] == 1]
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in axes.lines[:9]}
    assert [len(set(kind)) for kind in zip(*looks)] == [3, 3, 3]


def row_of_numbers(axes, row):
    """The texts in one row of a heat map, from left to right."""
    return sorted((text for text in axes.texts if text.get_position()[1] == row), key=lambda t: t.get_position()[0])


@pytest.mark.parametrize("method", FILES)
def test_selection_is_that_of_the_files(runs, report, method):
    first, second, third = (checkpoint.model for checkpoint in runs[method])
    found = selection_of(runs[method])
    assert found == report["models"][method]["selection"]
    # Element by element, with nothing but the bits.
    pairs = {group: [] for group in GROUPS}
    for name in first:
        if ".parametrizations." not in name or name.endswith(".original"):
            bits = [model[name].flatten().view(torch.int32).tolist() for model in (first, second, third)]
            pairs[module_group(name)] += [(a != b, b != c) for a, b, c in zip(*bits)]
    assert sum(map(len, pairs.values())) == report["parameters"]
    everything = [pair for members in pairs.values() for pair in members]
    for group, members in {**pairs, "all": everything}.items():
        again = [in_third for in_second, in_third in members if in_second]
        overlap = found["overlap_overall"] if group == "all" else found["overlap"][group]
        assert overlap == pytest.approx(sum(again) / len(again))
    assert found["overlap_by_chance"] == pytest.approx(sum(later for _, later in everything) / len(everything))

    assert list(found["share"]) == list(found["overlap"]) == GROUPS
    for stage, checkpoint in enumerate(runs[method]):
        count = len(checkpoint.history)
        for group in GROUPS:
            total = sum(entry["updated_by_group"][group] for entry in checkpoint.history)
            assert found["share"][group][stage] == pytest.approx(total / count)
        weighted = sum(found["share"][group][stage] * len(pairs[group]) for group in GROUPS) / len(everything)
        assert found["share_overall"][stage] == pytest.approx(weighted)


def test_the_fixed_bases_are_no_parameters(runs):
    second = runs["k1"][1]
    assert len(second.importance) < len(second.model)
    assert set(parameter_names(second)) == set(second.importance)


def test_where_stage_2_changed_nothing_there_is_no_overlap(runs):
    first, _, third = runs["k1"]
    found = selection_of([first, first, third])
    assert set(found["overlap"].values()) == {None} and found["overlap_overall"] is None
    assert found["overlap_by_chance"] > 0.5


def test_the_text_shows_the_selection(report):
    selection = report["models"]["k1"]["selection"]
    selection["overlap"]["output"] = None
    text = format_report(report)
    for group, shares in {**selection["share"], "all": selection["share_overall"]}.items():
        overlap = selection["overlap_overall"] if group == "all" else selection["overlap"][group]
        row = next(line for line in text.splitlines() if line.startswith(f"| {group} "))
        expected = [group, *("-" if value is None else f"{100 * value:.1f}" for value in [*shares, overlap])]
        assert [cell.strip() for cell in row.strip("|").split("|")] == expected
    assert f"(by chance {100 * selection['overlap_by_chance']:.0f}%)" in text


@pytest.mark.parametrize("where", ["file", "file/plots"])
def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_computed(tmp_path, where):
    (tmp_path / "file").write_text("kept")
    # There are no checkpoints either: the folder is looked at first.
    finished = run_script("-m k1.report", "--models_dir", tmp_path / "none", "--plots", tmp_path / where)
    assert_one_clear_line(finished, 2, "--plots", "is not a folder that can be written")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "plots").mkdir(mode=0o500)
    finished = run_script("-m k1.report", "--models_dir", tmp_path / "none", "--plots", tmp_path / "plots")
    assert_one_clear_line(finished, 2, "--plots", "is not a folder that can be written")
