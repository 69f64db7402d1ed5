"""The figures of the report, and the numbers in them."""

import copy
import io

import pytest
import torch
from matplotlib.image import imread

from k1.checkpoints import load_checkpoint
from k1.experiment import ARMS, FILES
from k1.report.plots import accuracy_figure, learning_figure, plot_report
from tests.report.markup import contrast

PICTURES = ["accuracy.png", "learning.png"]


@pytest.fixture
def report(written):
    return written.results


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
    for axes, method in ((left, "baseline"), (right, "k1")):
        matrix = report["models"][method]["accuracy_matrix"]
        assert cells(axes) == {
            (dataset, stage): f"{100 * value:.1f}"
            for stage, row in enumerate(matrix)
            for dataset, value in enumerate(row)
            if value is not None
        }
        hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
        assert hatched == [(0.5, 1.5)]  # dataset 3 after stage 1


def test_numbers_stand_out_from_their_cells(report):
    shares = torch.linspace(0, 1, 12).view(4, 3).tolist()
    report["models"]["baseline"]["accuracy_matrix"] = shares
    axes = accuracy_figure(report).axes[0]
    assert len(axes.texts) == 12
    for text in axes.texts:
        stage, dataset = text.get_position()
        ground = axes.images[0].to_rgba(100 * shares[stage][dataset])[:3]
        assert contrast({"black": (0, 0, 0), "white": (1, 1, 1)}[text.get_color()], ground) >= 4.5


def test_the_learning_curves_are_the_histories_one_stage_after_the_other(trained, report):
    axes = learning_figure(report).axes[0]
    for index, (method, files) in enumerate(FILES.items()):
        for stage, (line, file) in enumerate(zip(axes.lines[3 * index :], files)):
            history = load_checkpoint(trained.models_dir / file, method).history
            assert list(line.get_xdata()) == [20 * stage + entry["step"] for entry in history]
            assert list(line.get_ydata()) == [entry["loss"] for entry in history]
    assert [line.get_xdata()[0] for line in axes.lines[6:]] == [20, 40]
    assert [text.get_text() for text in axes.texts] == ["1: rivers.jsonl", "2: numbers.jsonl", "3: kitchen.jsonl"]


def test_unusual_runs_are_drawn_without_overlapping_labels(report, tmp_path):
    """Long names, nothing learned, one logged step in a stage."""
    for dataset in report["datasets"]:
        dataset["name"] = f"/a/folder/{dataset['name'].split('/')[-1]} and a long description of what is in the file"
    for model in report["models"].values():
        model["accuracy_matrix"] = [[value and 0.0 for value in row] for row in model["accuracy_matrix"]]
        model["history"] = [entry for entry in model["history"] if entry["stage"] < 3 or entry["step"] == 20]
    for figure in (accuracy_figure(report), learning_figure(report)):
        figure.draw_without_rendering()
        left_to_right = [[label.get_window_extent() for label in axes.get_xticklabels()] for axes in figure.axes]
        if len(figure.axes) == 1:
            left_to_right = [[text.get_window_extent() for text in figure.axes[0].texts]]
        for boxes in left_to_right:
            assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))


def test_all_four_arms_are_drawn_beside_each_other(report):
    models = report["models"]
    for arm, like in (("sparse", "baseline"), ("baseline_rehearsal", "k1")):
        models[arm] = copy.deepcopy(models[like])
        models[arm]["accuracy_matrix"][1][0] /= 2
    report["models"] = {arm: models[arm] for arm in ARMS}
    panels = accuracy_figure(report).axes[:4]
    assert [axes.get_title() for axes in panels] == [*ARMS.values()]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    assert cells(panels[1])[0, 1] == f"{100 * models['sparse']['accuracy_matrix'][1][0]:.1f}"
    axes = learning_figure(report).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*ARMS.values()]
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in axes.lines[:12]}
    assert [len(set(kind)) for kind in zip(*looks)] == [4, 4, 4]
