"""The tables of the study as Markdown."""

import textwrap
from collections import defaultdict
from collections.abc import Iterable

from k1.report.metrics import mean
from k1.report.tables import dataset_label, format_table
from k1.study.frontier import (
    KINDS,
    REFERENCE,
    Point,
    best_point,
    learning_and_forgetting,
    least_forgetting,
    losses,
    mean_and_interval,
    points_of,
    ratios_at_equal_learning,
)
from k1.study.methods import METHODS

HEAD = ["Method", "Learning rate", "Seeds"]


def study_tables(runs: dict[str, dict]) -> str:
    """The tables of the study as Markdown; figures are of test text, choices were made on validation text."""
    points = points_of(runs)
    sequential = {name: found for name, found in points.items() if not METHODS[name].joint}
    best = {name: best_point(found) for name, found in points.items()}
    names = list(losses(next(iter(sequential.values()))[0].records[0], "test")[-1])
    labels = [dataset_label(name) for name in names]
    setting = "each method at the setting with the lowest mean loss at the end"
    sections = [
        *first_table(runs, labels[0]),
        f"Nats per token on test text, {setting}",
        stages_table(best, names, which=0, scale=1, digits=3),
        f"Next-token accuracy on test text in %, {setting}",
        stages_table(best, names, which=1, scale=100, digits=1),
        "Forgetting in nats per token on test text, at the same settings",
        forgetting_table({name: point for name, point in best.items() if name in sequential}, kinds_of(labels)),
    ]
    if len(points.get(REFERENCE, [])) > 1:
        sections += [
            "Forgetting at equal learning: as a share of what the dense model forgets at the same loss on the new "
            "datasets, each method at its best setting",
            equal_learning_table(points, labels),
        ]
    return "\n\n".join(sections)


def row_head(point: Point) -> list[str]:
    """The first cells of the row of `point`: method, setting, number of seeds."""
    return [METHODS[point.method].label, point.label, str(len(point.records))]


def stages_table(best: dict[str, Point], names: list[str], which: int, scale: float, digits: int) -> str:
    """Each dataset after its own and every later stage; `which` is 0 for nats per token, 1 for accuracy."""
    stages = [(stage, name) for index, name in enumerate(names) for stage in range(index, 3)]
    rows = [[*HEAD, *(f"{dataset_label(name)} after {stage + 1}" for stage, name in stages)]]
    for point in best.values():
        found = [record["evaluations"] for record in point.records]
        cells = []
        for stage, name in stages:
            # Joint training has no stages: one evaluation, at the end.
            row = stage - 3 + len(found[0])
            values = [scale * evaluations[row][name]["test"][which] for evaluations in found] if row >= 0 else []
            cells.append(mean_and_interval(values, digits) if values else "-")
        rows.append([*row_head(point), *cells])
    return format_table(rows)


def forgetting_table(best: dict[str, Point], kinds: list[str]) -> str:
    """The three kinds of forgetting, what was learned, the share of parameters changed, and the time it took."""
    rows = [[*HEAD, *kinds, "New-dataset loss", "Changed per step %", "Seconds"]]
    for point in best.values():
        found = [learning_and_forgetting(record, "test") for record in point.records]
        rows.append([
            *row_head(point),
            *(mean_and_interval([run[kind][1] for run in found]) for kind in KINDS),
            mean_and_interval([run[KINDS[1]][0] for run in found]),
            f"{100 * mean([record['updated_fraction'] for record in point.records]):.1f}",
            f"{mean([record['seconds'] for record in point.records]):.0f}",
        ])  # fmt: skip
    return format_table(rows)


def equal_learning_table(points: dict[str, list[Point]], labels: list[str], methods: Iterable[str] = METHODS) -> str:
    """What each of `methods` forgets over what the dense model forgets at the same loss, at its best setting.

    `points` are those of `points_of`, `labels` the datasets'; joint training, the
    dense model itself and methods without a run have no row.
    """
    rows = [[*HEAD, *kinds_of(labels)]]
    for method in methods:
        if method == REFERENCE or METHODS[method].joint or method not in points:
            continue
        point = least_forgetting(points[method], points[REFERENCE])
        cells = ["out of range"] * len(KINDS)
        if point:
            ratios = ratios_at_equal_learning(point, points[REFERENCE], "test")
            cells = ["out of range" if None in ratios[kind] else mean_and_interval(ratios[kind], 2) for kind in KINDS]
        seeds = len((point or points[method][0]).records)
        rows.append([METHODS[method].label, point.label if point else "-", str(seeds), *cells])
    return format_table(rows)


def paragraph(text: str, indent: str = "") -> str:
    """Prose wrapped as on the pages, at 100 characters, with `indent` before every line but the first."""
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def kinds_of(labels: list[str]) -> list[str]:
    """The three kinds of forgetting with the names of datasets 1 and 2."""
    return [kind.replace("dataset 1", labels[0]).replace("dataset 2", labels[1]) for kind in KINDS]


def first_table(runs: dict[str, dict], label: str) -> list[str]:
    """The learning rates tried on dataset 1, where there were several: title and table."""
    grouped = defaultdict(list)
    for record in runs.values():
        if record["method"].startswith("first-") and "failed" not in record:
            grouped[record["method"], record["learning_rate"]].append(record)
    if len(grouped) <= len({method for method, _ in grouped}):
        return []
    rows = [["Method", "Learning rate", "Seeds", "Validation loss"]]
    for (method, rate), records in sorted(grouped.items()):
        found = [losses(record, "validation")[0] for record in records]
        name = "K-1" if method == "first-k1" else METHODS[REFERENCE].label
        values = [next(iter(row.values())) for row in found]
        rows.append([name, f"{rate:g}", str(len(records)), mean_and_interval(values)])
    return [f"Dataset 1 ({label}): validation loss in nats per token", format_table(rows)]
