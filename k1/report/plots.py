"""The figures of the report, and how any figure is written; legible in black and white."""

import base64
import io
import textwrap
from itertools import accumulate
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from k1.experiment import ARMS
from k1.files import write_atomically
from k1.report.metrics import mean_matrix
from k1.report.tables import first_model, labels_of

matplotlib.rcParams["axes.spines.top"] = matplotlib.rcParams["axes.spines.right"] = False
# Line, marker and colour of each arm: any one of them tells the arms apart.
STYLES = dict(zip(ARMS, (("-", "o", "#0b559f"), ("--", "s", "#b3540a"), (":", "^", "#2f7d32"), ("-.", "D", "#7a3b8f"))))
PANELS_ACROSS = 2
# On a darker grey than this, white is easier to read than black (contrast after WCAG).
DARK = 0.46


def stage_labels(report: dict, width: int) -> list[str]:
    """The datasets as `1: name`, numbered by stage, in up to three lines of about `width` characters."""
    names = [f"{stage}: {label}" for stage, label in enumerate(labels_of(report), start=1)]
    # A pair of unescaped dollar signs would be read as a formula.
    return [textwrap.fill(name, width, max_lines=3, placeholder="…").replace("$", r"\$") for name in names]


def heat_map(axes: Axes, rows: np.ndarray, labels: list[str], top: float) -> AxesImage:
    """Draw `rows` of percentages as greys, white for 0 and black for `top`, numbers in the cells, NaN hatched."""
    image = axes.imshow(rows, cmap="Greys", vmin=0, vmax=top, aspect="auto")
    greys = image.to_rgba(rows)[..., 0]
    for (i, j), value in np.ndenumerate(rows):
        hatch = "////" if np.isnan(value) else None
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="0.75", linewidth=0.8, hatch=hatch))
        if not hatch:
            color = "white" if greys[i, j] < DARK else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels) + 1), map(str, range(len(labels) + 1)), fontsize=9)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def accuracy_figure(report: dict) -> Figure:
    """Next-token accuracy on test text in %, dataset by stage, all models side by side on one scale."""
    by_arm = {arm: 100 * mean_matrix([model["accuracy_matrix"]]).T for arm, model in report["models"].items()}
    # A scale from 0 to 0 would have no colours.
    top = np.nanmax(list(by_arm.values())) or 1
    across = min(PANELS_ACROSS, len(by_arm))
    down = -(-len(by_arm) // across)
    figure = Figure(figsize=(7.5, 0.5 + 2.5 * down), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, (arm, rows) in zip(panels.flat, by_arm.items()):
        image = heat_map(axes, rows, stage_labels(report, 20), top)
        axes.set_title(ARMS[arm], fontsize="medium")
    for axes in panels.flat[len(by_arm) :]:
        axes.remove()
    figure.supxlabel(f"after stage (0: {first_model(report['start'])}; hatched: not measured)", fontsize="medium")
    figure.colorbar(image, ax=figure.axes, label="next-token accuracy\non test text (%)")
    return figure


def learning_figure(report: dict) -> Figure:
    """Training loss over the optimizer steps of all stages, all models."""
    stages = range(1, len(report["datasets"]) + 1)
    histories = {
        arm: [[entry for entry in model["history"] if entry["stage"] == stage] for stage in stages]
        for arm, model in report["models"].items()
    }
    starts = list(accumulate((entries[-1]["step"] if entries else 0 for entries in histories["k1"]), initial=0))
    figure = Figure(figsize=(7.5, 3.75), layout="constrained")
    axes = figure.subplots()
    for (arm, history), (line, marker, color) in zip(histories.items(), STYLES.values()):
        for number, (start, entries) in enumerate(zip(starts, history)):
            axes.plot(
                [start + entry["step"] for entry in entries], [entry["loss"] for entry in entries],
                linestyle=line, color=color, marker=marker, markevery=[0], markersize=5, clip_on=False,
                label=None if number else ARMS[arm],
            )  # fmt: skip
    for start, end, name in zip(starts, starts[1:], stage_labels(report, 18)):
        if start:
            axes.axvline(start, color="0.6", linewidth=1, zorder=1)
        # A pretrained model may have no steps in stage 1.
        if end > start:
            axes.text((start + end) / 2, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    axes.set_xlim(0, starts[-1])
    axes.set_xlabel("optimizer step (all stages)")
    axes.set_ylabel("training loss (nats per token)")
    axes.legend(frameon=False)
    return figure


FIGURES = {"accuracy": accuracy_figure, "learning": learning_figure}


def write_figure(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Write a matplotlib `figure` to `path` as PNG, atomically; the same figure gives the same bytes."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, metadata={"Software": None})
    write_atomically(path, lambda file: file.write(picture.getvalue()))


def picture_address(figure: Figure) -> str:
    """A matplotlib `figure` as an SVG image in a `data:` URL; the same figure gives the same text."""
    picture = io.BytesIO()
    # Without a salt the names inside the picture are drawn at random.
    with matplotlib.rc_context({"svg.hashsalt": "k1"}):
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"
