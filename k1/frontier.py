"""Forgetting at equal learning: the tables of the study.

A method that changes less forgets less and learns less, so a method is compared
with the dense model at the same loss on the new datasets, read off the dense
model's line over its learning rates by linear interpolation.
"""

from collections import defaultdict
from dataclasses import dataclass
from math import sqrt

from scipy.stats import t as student

from k1.methods import METHODS
from k1.metrics import mean
from k1.tables import dataset_label, format_table

REFERENCE = "dense"
KINDS = ("dataset 1 after stage 2", "dataset 1 at the end", "dataset 2 at the end")


@dataclass(frozen=True)
class Point:
    """One setting of a method, with the records of its seeds."""

    method: str
    learning_rate: float
    setting: tuple[tuple[str, float], ...]
    records: tuple[dict, ...]

    @property
    def label(self) -> str:
        """The setting as text: learning rate first."""
        dial = "".join(f", {name} {value:g}" for name, value in self.setting)
        return f"{self.learning_rate:g}{dial}"


def points_of(runs: dict[str, dict]) -> dict[str, list[Point]]:
    """The finished runs on datasets 2 and 3 by method, in the order of `METHODS`, seeds together."""
    grouped = defaultdict(list)
    for record in runs.values():
        if record["method"] in METHODS and "failed" not in record:
            key = record["method"], tuple(record["setting"].items()), record["learning_rate"]
            grouped[key].append(record)
    points = [
        Point(method, rate, setting, tuple(sorted(records, key=lambda record: record["seed"])))
        for (method, setting, rate), records in sorted(grouped.items())
    ]
    return {name: found for name in METHODS if (found := [point for point in points if point.method == name])}


def losses(record: dict, split: str) -> list[dict[str, float]]:
    """Nats per token after each stage, by dataset."""
    return [{name: splits[split][0] for name, splits in row.items()} for row in record["evaluations"]]


def learning_and_forgetting(record: dict, split: str) -> dict[str, tuple[float, float]]:
    """What a run learned and forgot, as (loss on new datasets, forgetting), both in nats per token.

    Three pairs: dataset 1 after stage 2 against the loss of dataset 2; datasets 1
    and 2 at the end against the mean loss of datasets 2 and 3 after their own stage.
    """
    first, second, last = losses(record, split)
    one, two, three = last
    new = mean([second[two], last[three]])
    return {
        "dataset 1 after stage 2": (second[two], second[one] - first[one]),
        "dataset 1 at the end": (new, last[one] - first[one]),
        "dataset 2 at the end": (new, last[two] - second[two]),
    }


def interpolated(line: list[tuple[float, float]], x: float) -> float | None:
    """The height of the piecewise linear `line` at `x`, None outside its range."""
    line = sorted(line)
    for (x0, y0), (x1, y1) in zip(line, line[1:]):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def ratios_at_equal_learning(point: Point, dense: list[Point], split: str) -> dict[str, list[float | None]]:
    """Forgetting of each run of `point` over the dense model's at the same new-dataset loss; None out of range.

    The dense line is that of the same seed, or the mean over seeds where the
    dense model has fewer than two learning rates at that seed.
    """
    ratios = defaultdict(list)
    for record in point.records:
        runs = [[run for run in other.records if run["seed"] == record["seed"]] for other in dense]
        if sum(map(bool, runs)) < 2:
            runs = [list(other.records) for other in dense]
        lines = defaultdict(list)
        for same in filter(None, runs):
            for name in learning_and_forgetting(record, split):
                pairs = [learning_and_forgetting(run, split)[name] for run in same]
                lines[name].append((mean([x for x, _ in pairs]), mean([y for _, y in pairs])))
        for name, (x, y) in learning_and_forgetting(record, split).items():
            reference = interpolated(lines[name], x)
            ratios[name].append(None if reference is None else y / reference)
    return dict(ratios)


def mean_and_interval(values: list[float], digits: int = 3) -> str:
    """The mean and, for several values, half the width of its 95% interval (Student's t)."""
    text = f"{mean(values):.{digits}f}"
    if len(values) < 2:
        return text
    deviation = sqrt(sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))
    return f"{text} ± {student.ppf(0.975, len(values) - 1) * deviation / sqrt(len(values)):.{digits}f}"


def best_point(points: list[Point]) -> Point:
    """The point with the lowest mean loss over all datasets at the end, on validation text."""
    return min(
        points,
        key=lambda point: mean([mean(list(losses(record, "validation")[-1].values())) for record in point.records]),
    )


def least_forgetting(points: list[Point], dense: list[Point]) -> Point | None:
    """Of the points that learn as much as some dense run, the one that forgets least at equal learning.

    The mean ratio of the three kinds of forgetting, on validation text; None when no point is in range.
    """
    scored = []
    for point in points:
        ratios = [value for values in ratios_at_equal_learning(point, dense, "validation").values() for value in values]
        if None not in ratios:
            scored.append((mean(ratios), point))
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def study_tables(runs: dict[str, dict]) -> str:
    """The tables of the study as Markdown; figures are of test text, choices were made on validation text."""
    points = points_of(runs)
    sequential = {name: found for name, found in points.items() if not METHODS[name].joint}
    best = {name: best_point(found) for name, found in points.items()}
    names = list(losses(next(iter(sequential.values()))[0].records[0], "test")[-1])
    labels = [dataset_label(name) for name in names]
    sections = [*first_table(runs, labels[0])]

    stages = [(stage, name) for index, name in enumerate(names) for stage in range(index, 3)]
    head = ["Method", "Learning rate", "Seeds"]
    for title, which, scale, digits in (
        ("Nats per token on test text", 0, 1, 3),
        ("Next-token accuracy on test text in %", 1, 100, 1),
    ):
        rows = [[*head, *(f"{labels[names.index(name)]} after {stage + 1}" for stage, name in stages)]]
        for method, point in best.items():
            cells = []
            for stage, name in stages:
                found = [record["evaluations"] for record in point.records]
                # Joint training has no stages: one evaluation, at the end.
                row = stage - 3 + len(found[0])
                cells.append(
                    mean_and_interval([scale * rows_[row][name]["test"][which] for rows_ in found], digits)
                    if row >= 0 else "-"
                )  # fmt: skip
            rows.append([METHODS[method].label, point.label, str(len(point.records)), *cells])
        sections += [f"{title}, each method at the setting with the lowest mean loss at the end", format_table(rows)]

    kinds = [kind.replace("dataset 1", labels[0]).replace("dataset 2", labels[1]) for kind in KINDS]
    rows = [[*head, *kinds, "New-dataset loss", "Changed per step %", "Seconds"]]
    for method, point in best.items():
        if method not in sequential:
            continue
        found = [learning_and_forgetting(record, "test") for record in point.records]
        rows.append([
            METHODS[method].label, point.label, str(len(point.records)),
            *(mean_and_interval([run[kind][1] for run in found]) for kind in KINDS),
            mean_and_interval([run[KINDS[1]][0] for run in found]),
            f"{100 * mean([record['updated_fraction'] for record in point.records]):.1f}",
            f"{mean([record['seconds'] for record in point.records]):.0f}",
        ])  # fmt: skip
    sections += ["Forgetting in nats per token on test text, at the same settings", format_table(rows)]

    if len(points.get(REFERENCE, [])) > 1:
        rows = [[*head, *kinds]]
        for method, found in sequential.items():
            if method == REFERENCE:
                continue
            point = least_forgetting(found, points[REFERENCE])
            cells = ["out of range"] * len(KINDS)
            if point:
                ratios = ratios_at_equal_learning(point, points[REFERENCE], "test")
                cells = [
                    "out of range" if None in ratios[kind] else mean_and_interval(ratios[kind], 2) for kind in KINDS
                ]
            rows.append([
                METHODS[method].label, point.label if point else "-", str(len((point or found[0]).records)), *cells
            ])  # fmt: skip
        sections += [
            "Forgetting at equal learning: as a share of what the dense model forgets at the same loss on the new "
            "datasets, each method at its best setting",
            format_table(rows),
        ]
    return "\n\n".join(sections)


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
