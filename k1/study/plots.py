"""The plots of the study and of a stream, legible in black and white."""

from math import ceil
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from k1.experiment import ARMS
from k1.report.metrics import mean
from k1.report.plots import STYLES, percent, write_figure
from k1.report.tables import dataset_label
from k1.study.forgetting import ACCURACY, matrix_of, stage_labels
from k1.study.frontier import KINDS, Point, learning_and_forgetting, losses, points_of
from k1.study.methods import METHODS

matplotlib.rcParams["axes.spines.top"] = matplotlib.rcParams["axes.spines.right"] = False
# Marker and line style tell the methods apart without colour; those compared most are drawn heavy.
# The arms of the experiment: line, marker and colour.
ARM_STYLES = dict(zip(ARMS, STYLES))
EMPHASIZED = {name: (marker, line, color) for name, (line, marker, color) in ARM_STYLES.items()}
MARKERS = ["v", "^", "<", ">", "D", "p", "P", "X", "*", "h", "d", "8", "s", "H"]


def plot_frontier(runs: dict[str, dict], path: Path) -> None:
    """Plot forgetting against new-dataset loss, one line per method over its settings, as PNG.

    `runs` are the records of a study. Left: dataset 1 after stage 2 against the
    loss of dataset 2; right: the mean of datasets 1 and 2 at the end against the
    mean loss of datasets 2 and 3 after their own stage; nats per token on
    validation text, means over seeds. Of a method's settings those are drawn that
    no other of its settings beats in both. Down and left is better.
    """
    points = {name: found for name, found in points_of(runs).items() if not METHODS[name].joint}
    labels = [dataset_label(name) for name in losses(next(iter(points.values()))[0].records[0], "validation")[-1]]
    figure = Figure(figsize=(10, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    others = [name for name in points if name not in EMPHASIZED]
    for name, found in points.items():
        for axes, kinds in ((left, KINDS[:1]), (right, KINDS[1:])):
            marker, line, color = EMPHASIZED.get(name) or (MARKERS[others.index(name) % len(MARKERS)], ":", "0.45")
            heavy = name in EMPHASIZED
            axes.plot(
                *zip(*undominated([position(point, kinds) for point in found])),
                marker=marker, linestyle=line, color=color, label=METHODS[name].label,
                linewidth=2 if heavy else 1, markersize=7 if heavy else 5, zorder=3 if heavy else 2,
                markerfacecolor=color if heavy else "white",
            )  # fmt: skip
    left.set_xlabel(f"loss of {labels[1]}\nafter stage 2 (nats per token)")
    left.set_ylabel(f"forgetting of {labels[0]}\nafter stage 2 (nats per token)")
    right.set_xlabel(f"loss of {labels[1]} and {labels[2]}\nafter their own stage (nats per token)")
    right.set_ylabel(f"forgetting of {labels[0]} and {labels[1]}\nat the end (nats per token)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    write_figure(path, figure, dpi=110)


def position(point: Point, kinds: tuple[str, ...]) -> tuple[float, float]:
    """(loss on new datasets, forgetting), means over the seeds of `point` and over `kinds`, on validation text."""
    pairs = [learning_and_forgetting(record, "validation")[kind] for record in point.records for kind in kinds]
    return mean([x for x, _ in pairs]), mean([y for _, y in pairs])


def undominated(positions: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The positions that no other one beats in both coordinates, from left to right."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(positions):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def stream_figure(arms: dict[str, Point]) -> Figure:
    """Accuracy of every dataset of a stream over the stages, from its own stage on, one panel each.

    `arms` are methods of `ARM_STYLES` with their finished runs. Next-token accuracy
    on test text in %, means over seeds; all panels have the same axes.
    """
    labels = stage_labels(arms)
    count = len(labels)
    height = ceil(count / 3)
    width = ceil(count / height)
    figure = Figure(figsize=(7.5, 1.25 + 1.75 * height), layout="constrained")
    panels = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False).flatten()
    for stage, (axes, label) in enumerate(zip(panels, labels)):
        for arm, point in arms.items():
            line, marker, color = ARM_STYLES[arm]
            columns = [[row[stage] for row in matrix_of(record, ACCURACY)[stage:]] for record in point.records]
            axes.plot(
                range(stage + 1, count + 1), percent([mean(values) for values in zip(*columns)]),
                linestyle=line, marker=marker, color=color, markersize=4, clip_on=False, label=METHODS[arm].label,
            )  # fmt: skip
        axes.set_title(label if len(label) <= 30 else f"{label[:29]}…", fontsize="medium")
        # Of a row that is not full the panels above the gap are the last of their column.
        axes.tick_params(labelbottom=stage + width >= count)
    for axes in panels[count:]:
        axes.set_visible(False)
    panels[0].set_xlim(0.75, count + 0.25)
    panels[0].set_xticks(range(1, count + 1))
    figure.supxlabel("after stage", fontsize="medium")
    figure.supylabel("next-token accuracy on test text (%)", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(arms), frameon=False)
    return figure
