"""Forgetting at equal learning: a method that changes less forgets less and learns less.

So a method is compared with the dense model at the same loss on the new datasets, read
off the dense model's line over its learning rates by linear interpolation.
"""

from matplotlib.figure import Figure

from k1.experiment import ARMS
from k1.report.metrics import half_interval, mean, mean_and_interval
from k1.report.plots import STYLES
from k1.report.tables import Table
from k1.study.methods import METHODS
from k1.study.points import (
    SETTING,
    Point,
    averages_table,
    best_point,
    dataset_tables,
    forgotten_nats,
    new_dataset_loss,
    points_of,
)

REFERENCE = "baseline"
# Of what is no arm of the experiment, which are drawn heavier and in colour.
OTHER_MARKERS = "v^<>DpPX*hd8sH"
Line = list[tuple[float, float]]


def interpolated(line: Line, x: float) -> float | None:
    """The height of the piecewise linear `line` at `x`, None outside its range."""
    line = sorted(line)
    for (x0, y0), (x1, y1) in zip(line, line[1:]):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def undominated(positions: Line) -> Line:
    """The positions that no other one beats in both coordinates, from left to right."""
    kept: Line = []
    for x, y in sorted(positions):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def position(records: list[dict], split: str) -> tuple[float, float]:
    """(loss on new datasets, forgetting), means over `records`, in nats per token."""
    return tuple(mean([metric(record, split) for record in records]) for metric in (new_dataset_loss, forgotten_nats))


def ratios_at_equal_learning(point: Point, dense: list[Point], split: str) -> list[float | None]:
    """Forgetting of each run of `point` over that of the dense model of its seed at the same new-dataset loss.

    None if that is out of its range.
    """
    ratios = []
    for record in point.records:
        line = [position([run], split) for other in dense for run in other.records if run["seed"] == record["seed"]]
        learned, forgotten = position([record], split)
        reference = interpolated(line, learned)
        ratios.append(None if reference is None else forgotten / reference)
    return ratios


def equal_learning_table(points: dict[str, list[Point]]) -> Table:
    """Of each method the point that forgets least at equal learning, on validation text, and its share on test text."""
    rows = [["Method", *(name for name, _ in SETTING), "Share"]]
    for method in (method for method in points if method != REFERENCE):
        ratios = [(ratios_at_equal_learning(point, points[REFERENCE], "validation"), point) for point in points[method]]
        in_range = [(mean(found), point) for found, point in ratios if None not in found]
        if not in_range:
            continue
        _, point = min(in_range, key=lambda pair: pair[0])
        shares = ratios_at_equal_learning(point, points[REFERENCE], "test")
        share = "out of range" if None in shares else mean_and_interval(shares, 2)
        rows.append([METHODS[method].label, *(cell(point) for _, cell in SETTING), share])
    caption = (
        "Forgetting at equal learning, as a share of what the baseline forgets at the same loss on the new datasets; "
        "each method at its best setting, without those that learn more or less than any baseline"
    )
    return Table(caption, rows)


def study_tables(records: dict[str, dict]) -> str:
    """The tables of the study as Markdown: each method at its best setting on validation text, then equal learning."""
    points = points_of(records)
    best = {name: best_point(found) for name, found in points.items()}
    rows = [(METHODS[name].label, point) for name, point in best.items()]
    tables = [*dataset_tables(rows), averages_table(rows, lambda _: best.get(REFERENCE), "the baseline")]
    if len(points.get(REFERENCE, [])) > 1:
        tables.append(equal_learning_table(points))
    return "\n\n".join(map(str, tables))


def frontier_figure(panels: dict[str, dict[str, list[Point]]]) -> Figure:
    """Forgetting against the loss on new datasets, means over seeds with intervals; down and left is better.

    Nats per token on test text. `panels` are lines of points by title and label.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    # 100% is how the map calls the baseline's way to update.
    styles = {"100%": STYLES[REFERENCE], **{ARMS[arm]: style for arm, style in STYLES.items()}}
    figure = Figure(figsize=(max(7.5, 1 + 3 * len(panels)), 5), layout="constrained")
    columns = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, lines) in zip(columns, panels.items()):
        for label, points in lines.items():
            other = ":", OTHER_MARKERS[labels.index(label) % len(OTHER_MARKERS)], "0.45"
            line, marker, color = styles.get(label, other)
            x, y = zip(*(position(point.records, "test") for point in points))
            intervals = [half_interval(point.values(forgotten_nats)) for point in points]
            axes.errorbar(
                x, y, yerr=intervals, marker=marker, linestyle=line, color=color, label=label, capsize=3,
                linewidth=2 if label in styles else 1, markerfacecolor=color if label in styles else "white",
            )  # fmt: skip
        axes.set_title(title, fontsize="medium")
    figure.supxlabel("loss on new datasets (nats per token)", fontsize="medium")
    figure.supylabel("forgetting (nats per token)", fontsize="medium")
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def study_figure(records: dict[str, dict]) -> Figure:
    """The frontier of every method: those of its settings that no other one of it beats in both, on validation text."""
    lines = {}
    for name, points in points_of(records).items():
        places = {position(point.records, "validation"): point for point in points}
        lines[METHODS[name].label] = [places[place] for place in undominated(list(places))]
    return frontier_figure({"": lines})
