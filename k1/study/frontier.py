"""What a study recorded, as tables and a picture: what each method learned and forgot.

A method that changes less forgets less and learns less. So a method is compared with its reference, the baseline,
at the same loss on the new datasets, read off the reference's line over its learning rates by linear interpolation.
"""

from collections import defaultdict
from collections.abc import Callable

from matplotlib.figure import Figure

from k1.experiment import ARMS
from k1.report.metrics import (
    average_forgetting_percent,
    backward_transfer,
    final_loss,
    half_interval,
    mean,
    mean_and_interval,
    mean_matrix,
    new_dataset_loss,
)
from k1.report.plots import STYLES
from k1.report.tables import AT_BOTH_TIMES, SHOWN, Column, Table, at_both_times, entry, mean_of, rows_of
from k1.study.methods import METHODS

# A setting of a method: the records of its runs, one a seed.
Point = list[dict]
Line = list[tuple[float, float]]
# Of what is no arm of the experiment, which are drawn heavier and in colour.
OTHER_MARKERS = "v^<>DpPX*hd8sH"
TEST, VALIDATION = "loss_matrix", "validation_loss_matrix"
# Forgetting, in nats per token, that is not divided by: a share of noise says nothing.
LEAST_FORGETTING = 0.05
# The first columns of a table of points, behind the method.
SETTING: list[Column] = [
    ("Rehearsal %", lambda point: f"{100 * METHODS[point[0]['method']].rehearsal:g}"),
    ("Setting", lambda point: ", ".join(
        [f"{point[0]['learning_rate']:g}", *(f"{name} {value:g}" for name, value in point[0]["setting"].items())]
    )),
    ("Seeds", lambda point: str(len(point))),
]  # fmt: skip
# Of a run, in nats per token on test text.
NATS: dict[str, Callable[[dict], float]] = {
    "Forgetting": lambda run: backward_transfer(run[TEST]),
    "New-dataset loss": lambda run: new_dataset_loss(run[TEST]),
    "Loss at the end": lambda run: final_loss(run[TEST]),
}


def points_of(records: list[dict]) -> dict[str, list[Point]]:
    """The settings of each method, in the order of `METHODS`."""
    found: dict[str, dict[tuple, Point]] = {method: defaultdict(list) for method in METHODS}
    for record in sorted(records, key=entry("seed")):
        found[record["method"]][tuple(record["setting"].items()), record["learning_rate"]].append(record)
    return {method: [point for _, point in sorted(points.items())] for method, points in found.items() if points}


def best_point(points: list[Point]) -> Point:
    """The one with the lowest mean loss over all datasets at the end, on validation text."""
    return min(points, key=lambda point: mean([final_loss(record[VALIDATION]) for record in point]))


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


def position(point: Point, text: str) -> tuple[float, float]:
    """(loss on new datasets, forgetting), means over seeds, in nats per token, of `TEST` or `VALIDATION` text."""
    losses = [record[text] for record in point]
    return mean([*map(new_dataset_loss, losses)]), mean([*map(backward_transfer, losses)])


def at_equal_learning(point: Point, reference: list[Point], text: str) -> Line:
    """Forgetting of each run, and that of the `reference` of its seed at the same new-dataset loss, in nats per token.

    Empty if one of them is out of its range.
    """
    found = []
    for record in point:
        line = [position([run], text) for other in reference for run in other if run["seed"] == record["seed"]]
        learned, forgotten = position([record], text)
        if (level := interpolated(line, learned)) is None:
            return []
        found.append((forgotten, level))
    return found


def equal_learning_table(points: dict[str, list[Point]]) -> Table:
    """Of each method the point that forgets least at equal learning, on validation text, beside it on test text."""
    found = []
    for name, settings in points.items():
        reference = points.get(METHODS[name].reference, [])
        compared = [(at_equal_learning(point, reference, VALIDATION), point) for point in settings]
        if settings is not reference and any(pairs for pairs, _ in compared):
            _, point = min((pair for pair in compared if pair[0]), key=lambda pair: mean([a - b for a, b in pair[0]]))
            found.append((METHODS[name].label, (point, at_equal_learning(point, reference, TEST))))

    def of_pairs(cell: Callable[[Line], str]) -> Callable[[tuple[Point, Line]], str]:
        return lambda row: cell(row[1]) if row[1] else "out of range"

    columns: list[Column] = [
        *((name, lambda row, cell=cell: cell(row[0])) for name, cell in SETTING),
        ("Forgetting", of_pairs(lambda pairs: mean_and_interval([ours for ours, _ in pairs]))),
        ("- reference's", of_pairs(lambda pairs: mean_and_interval([ours - theirs for ours, theirs in pairs]))),
        ("/ reference's", of_pairs(share_of_reference)),
    ]
    caption = (
        "Forgetting at equal learning, in nats per token: the same less what the reference forgets at the same loss on "
        "the new datasets, and as a share of it, unless that is next to nothing; each method at its best setting, "
        "without those that learn more or less than any reference"
    )
    return Table(caption, rows_of("Method", found, columns))


def share_of_reference(pairs: Line) -> str:
    """The first of each pair as a share of the second, mean and interval; - if one is below `LEAST_FORGETTING`."""
    if min(theirs for _, theirs in pairs) < LEAST_FORGETTING:
        return "-"
    return mean_and_interval([ours / theirs for ours, theirs in pairs], 2)


def averages_table(best: dict[str, Point]) -> Table:
    """What each method forgot and learned on average, and that less what its reference did."""

    def less(metric: Callable[[dict], float]) -> Callable[[Point], str]:
        def cell(point: Point) -> str:
            reference = best.get(METHODS[point[0]["method"]].reference, [])
            theirs = {record["seed"]: metric(record) for record in reference if reference is not point}
            values = [metric(record) - theirs[record["seed"]] for record in point if record["seed"] in theirs]
            return mean_and_interval(values) if values else "-"

        return cell

    columns = [
        *SETTING,
        *(mean_of(name, metric) for name, metric in NATS.items()),
        *((f"{name} - reference's", less(metric)) for name, metric in NATS.items()),
        mean_of("Forgetting %", lambda record: average_forgetting_percent(record["accuracy_matrix"]), 1),
        ("Changed per step %", lambda point: f"{100 * mean([run['updated_fraction'] for run in point]):.1f}"),
        ("Seconds", lambda point: f"{mean([run['seconds'] for run in point]):.0f}"),
    ]
    caption = (
        "Averages on test text: forgetting of all datasets but the last, loss of all but the first after their own "
        "stage, and of all at the end, in nats per token; the same less the reference's, seed by seed: of the "
        "baseline, or of 100% with the same rehearsal; forgetting in % of the accuracy after the dataset's own stage"
    )
    return Table(caption, rows_of("Method", [(METHODS[name].label, point) for name, point in best.items()], columns))


def study_tables(records: list[dict]) -> str:
    """The tables of the study as Markdown: each method at its best setting on validation text, then equal learning."""
    points = points_of(records)
    best = {name: best_point(found) for name, found in points.items()}
    rows = [(METHODS[name].label, point) for name, point in best.items()]
    tables = [
        Table(
            f"{title}: {AT_BOTH_TIMES}",
            rows_of("Method", rows, [*SETTING, *at_both_times(score, records[0]["datasets"])]),
        )
        for score, (title, _, _) in SHOWN.items()
    ]
    tables += [averages_table(best), equal_learning_table(points)]
    return "\n\n".join(str(table) for table in tables if len(table.rows) > 1)


def study_figure(records: list[dict]) -> Figure:
    """Forgetting against the loss on new datasets, a panel a share of rehearsal; down and left is better.

    Nats per token on test text, means over seeds with intervals: of every method the settings that no other one of it
    beats in both, on validation text.
    """
    points = points_of(records)
    labels = list(dict.fromkeys(METHODS[name].label for name in points))
    # 100% is how the map calls the baseline's way to update.
    styles = {"100%": STYLES["baseline"], **{ARMS[arm]: style for arm, style in STYLES.items()}}
    shares = sorted({METHODS[name].rehearsal for name in points})
    figure = Figure(figsize=(max(7.5, 1 + 3 * len(shares)), 5), layout="constrained")
    panels = dict(zip(shares, figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False)[0]))
    for share, axes in panels.items():
        axes.set_title(f"{share:.4g} of the text rehearsed" if share else "no rehearsal", fontsize="medium")
    for name, found in points.items():
        method, places = METHODS[name], {position(point, VALIDATION): point for point in found}
        kept = [places[place] for place in undominated(list(places))]
        other = ":", OTHER_MARKERS[labels.index(method.label) % len(OTHER_MARKERS)], "0.45"
        line, marker, color = styles.get(method.label, other)
        x, y = zip(*(position(point, TEST) for point in kept))
        panels[method.rehearsal].errorbar(
            x, y, yerr=[half_interval([backward_transfer(record[TEST]) for record in point]) for point in kept],
            marker=marker, linestyle=line, color=color, label=method.label, capsize=3,
            linewidth=2 if method.label in styles else 1,
            markerfacecolor=color if method.label in styles else "white",
        )  # fmt: skip
    figure.supxlabel("loss on new datasets (nats per token)", fontsize="medium")
    figure.supylabel("forgetting (nats per token)", fontsize="medium")
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def accuracies(records: list[dict]) -> dict:
    """The arms among the methods, each at its best setting, as `k1.report.plots.accuracy_figure` takes them."""
    models = {
        arm: {"accuracy_matrix": mean_matrix([record["accuracy_matrix"] for record in best_point(found)])}
        for arm, found in points_of(records).items()
        if arm in ARMS
    }
    return {"models": models, "datasets": [{"name": label} for label in records[0]["datasets"]], "start": None}
