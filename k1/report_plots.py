"""The figures of the report: accuracy, what K-1 selects, learning curves; legible in black and white."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from k1.plots import EMPHASIZED, save_figure
from k1.tables import LABELS, dataset_label

STYLES = {"k1": EMPHASIZED["k1"], "baseline": EMPHASIZED["dense"]}


def plot_report(report: dict, folder: Path) -> None:
    """Draw accuracy.png, selection.png and learning.png from a report (see `k1.report.build_report`) into `folder`."""
    names = [dataset_label(dataset["name"]) for dataset in report["datasets"]]
    save_figure(accuracy_figure(report, names), folder / "accuracy.png")
    save_figure(selection_figure(report, names), folder / "selection.png")
    save_figure(learning_figure(report, names), folder / "learning.png")


def heat_map(axes: Axes, rows: list[list[float | None]], row_labels: list[str], column_labels: list[str], top: float):
    """Draw `rows` of percentages, 0 to `top`, as shades of grey with the numbers in the cells; None stays empty."""
    values = [[float("nan") if value is None else value for value in row] for row in rows]
    image = axes.imshow(values, cmap="Greys", vmin=0, vmax=top, aspect="auto")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            color = "white" if value is not None and value > 0.55 * top else "black"
            axes.text(j, i, "-" if value is None else f"{value:.1f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(column_labels)), column_labels)
    axes.set_yticks(range(len(row_labels)), row_labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def accuracy_figure(report: dict, names: list[str]) -> Figure:
    """Next-token accuracy on test text by dataset and stage, both models side by side."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    matrices = {method: report["models"][method]["accuracy_matrix"] for method in LABELS}
    top = 100 * max(value for matrix in matrices.values() for row in matrix for value in row if value is not None)
    for axes, (method, matrix) in zip(panels, matrices.items()):
        by_dataset = [[None if value is None else 100 * value for value in column] for column in zip(*matrix)]
        image = heat_map(axes, by_dataset, names, ["untrained", *(f"after {name}" for name in names)], top)
        axes.set_title(LABELS[method])
    figure.colorbar(image, ax=panels, label="accuracy on test text (%)")
    return figure


def selection_figure(report: dict, names: list[str]) -> Figure:
    """The share of each module group that a step of K-1 changes, and how much of stage 2's choice stage 3 repeats."""
    selection = report["models"]["k1"]["selection"]
    groups = list(selection["share"])
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(groups)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    heat_map(left, [[100 * share for share in selection["share"][group]] for group in groups], groups, names, 100)
    left.set_title("share of the group that a step changes (%)", fontsize=10)
    overlaps = [selection["overlap"][group] for group in groups]
    image = heat_map(right, [[None if share is None else 100 * share] for share in overlaps], groups, [""], 100)
    chance = 100 * selection["overlap_by_chance"]
    right.set_title(f"changed for {names[1]},\nchanged again for {names[2]} (%)", fontsize=10)
    right.set_xlabel(f"{chance:.0f}% by chance")
    figure.colorbar(image, ax=[left, right], label="parameters of the group (%)")
    return figure


def learning_figure(report: dict, names: list[str]) -> Figure:
    """Training loss over the optimizer steps of all stages, both models."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    starts = [0]
    for stage in (1, 2, 3):
        steps = [entry["step"] for entry in report["models"]["k1"]["history"] if entry["stage"] == stage]
        starts.append(starts[-1] + max(steps))
    for method, label in LABELS.items():
        history = report["models"][method]["history"]
        _, line, color = STYLES[method]
        for stage in (1, 2, 3):
            entries = [entry for entry in history if entry["stage"] == stage]
            axes.plot(
                [starts[stage - 1] + entry["step"] for entry in entries], [entry["loss"] for entry in entries],
                linestyle=line, color=color, label=label if stage == 1 else None,
            )  # fmt: skip
    for start, end, name in zip(starts, starts[1:], names):
        if start:
            axes.axvline(start, color="0.7", linewidth=1, zorder=1)
        axes.text((start + end) / 2, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    axes.set_xlim(0, starts[-1])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats per token)")
    axes.legend(frameon=False)
    return figure
