"""The figures of the report, and the numbers in them."""

import copy

import pytest
import torch

from k1.checkpoints import load_checkpoint
from k1.experiment import ARMS, FILES
from k1.report.plots import FIGURES, accuracy_figure, learning_figure, write_figure


@pytest.fixture
def report(written):
    """The report of all four arms, two of them like the others but for one number."""
    report = written.results
    for arm, like in (("sparse", "baseline"), ("baseline_rehearsal", "k1")):
        report["models"][arm] = copy.deepcopy(report["models"][like])
        report["models"][arm]["accuracy_matrix"][1][0] /= 2
    report["models"] = {arm: report["models"][arm] for arm in ARMS}
    return report


def test_the_pictures_are_the_same_each_time(written, tmp_path):
    folder = written.folder / "new" / "plots"
    assert sorted(path.name for path in folder.iterdir()) == ["accuracy.png", "learning.png"]
    for name, figure in FIGURES.items():
        write_figure(tmp_path / "again.png", figure(written.results))
        content = (folder / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and b"Software" not in content
        assert (tmp_path / "again.png").read_bytes() == content


def test_the_accuracy_map_shows_every_measured_cell_on_one_scale(report):
    panels = accuracy_figure(report).axes[:4]
    assert [axes.get_title() for axes in panels] == [*ARMS.values()]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    for axes, model in zip(panels, report["models"].values()):
        assert {text.get_position()[::-1]: text.get_text() for text in axes.texts} == {
            (dataset, stage): f"{100 * value:.1f}"
            for stage, row in enumerate(model["accuracy_matrix"])
            for dataset, value in enumerate(row)
            if value is not None
        }
        hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
        assert hatched == [(0.5, 1.5)]  # dataset 3 after stage 1


def test_numbers_stand_out_from_their_cells(report):
    """Their contrast to the grey behind them, after WCAG 2, is at least 4.5."""
    shares = torch.linspace(0, 1, 12).view(4, 3).tolist()
    report["models"]["baseline"]["accuracy_matrix"] = shares
    axes = accuracy_figure(report).axes[0]
    assert len(axes.texts) == 12
    for text in axes.texts:
        stage, dataset = text.get_position()
        grey = axes.images[0].to_rgba(100 * shares[stage][dataset])[0]
        luminance = ((grey + 0.055) / 1.055) ** 2.4 if grey > 0.04045 else grey / 12.92
        contrast = (luminance + 0.05) / 0.05 if text.get_color() == "black" else 1.05 / (luminance + 0.05)
        assert contrast >= 4.5


def test_the_learning_curves_are_the_histories_one_stage_after_the_other(trained, report):
    axes = learning_figure(report).axes[0]
    for arm, lines in zip(ARMS, (axes.lines[start : start + 3] for start in (0, 3, 6, 9))):
        method = {"sparse": "baseline", "baseline_rehearsal": "k1"}.get(arm, arm)
        for stage, (line, file) in enumerate(zip(lines, FILES[method])):
            history = load_checkpoint(trained.models_dir / file, method).history
            assert list(line.get_xdata()) == [20 * stage + entry["step"] for entry in history]
            assert list(line.get_ydata()) == [entry["loss"] for entry in history]
    assert [line.get_xdata()[0] for line in axes.lines[12:]] == [20, 40]
    assert [text.get_text() for text in axes.texts] == ["1: rivers.jsonl", "2: numbers.jsonl", "3: kitchen.jsonl"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*ARMS.values()]
    looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in axes.lines[:12]}
    assert [len(set(kind)) for kind in zip(*looks)] == [4, 4, 4]


def test_a_stage_without_steps_has_no_name_and_no_second_line_in_the_legend(report):
    for model in report["models"].values():
        model["history"] = [entry for entry in model["history"] if entry["stage"] > 1]
    axes = learning_figure(report).axes[0]
    assert [text.get_text() for text in axes.texts] == ["2: numbers.jsonl", "3: kitchen.jsonl"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*ARMS.values()]


def test_unusual_runs_are_drawn_without_overlapping_labels(report):
    """Long names, nothing learned, one logged step in a stage."""
    for dataset in report["datasets"]:
        dataset["name"] = f"/a/folder/{dataset['name'].split('/')[-1]} and a long description of what is in the file"
    for model in report["models"].values():
        model["accuracy_matrix"] = [[value and 0.0 for value in row] for row in model["accuracy_matrix"]]
        model["history"] = [entry for entry in model["history"] if entry["stage"] < 3 or entry["step"] == 20]
    accuracy, learning = accuracy_figure(report), learning_figure(report)
    accuracy.draw_without_rendering()
    learning.draw_without_rendering()
    for labels in (*(axes.get_xticklabels() for axes in accuracy.axes), learning.axes[0].texts):
        boxes = [label.get_window_extent() for label in labels]
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
