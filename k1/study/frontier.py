"""Forgetting at equal learning: the tables of the study.

A method that changes less forgets less and learns less, so a method is compared
with the dense model at the same loss on the new datasets, read off the dense
model's line over its learning rates by linear interpolation.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from math import sqrt

from scipy.stats import t as student

from k1.report.metrics import mean
from k1.study.methods import METHODS

REFERENCE = "baseline"
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


def points_of(runs: dict[str, dict], methods: Collection[str] = METHODS) -> dict[str, list[Point]]:
    """The finished runs on datasets 2 and 3 by method, in the order of `methods`, seeds together."""
    grouped = defaultdict(list)
    for record in runs.values():
        if record["method"] in methods and "failed" not in record:
            key = record["method"], tuple(record["setting"].items()), record["learning_rate"]
            grouped[key].append(record)
    points = [
        Point(method, rate, setting, tuple(sorted(records, key=lambda record: record["seed"])))
        for (method, setting, rate), records in sorted(grouped.items())
    ]
    return {name: found for name in methods if (found := [point for point in points if point.method == name])}


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

    The dense line is that of the same seed, or the mean over seeds if the
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


def half_interval(values: list[float]) -> float:
    """Half the width of the 95% interval of the mean of `values` (Student's t); 0 for one value, which has none."""
    if len(values) < 2:
        return 0.0
    deviation = sqrt(sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))
    return float(student.ppf(0.975, len(values) - 1)) * deviation / sqrt(len(values))


def mean_and_interval(values: list[float], digits: int = 3) -> str:
    """The mean and, for several values, half the width of its 95% interval."""
    text = f"{mean(values):z.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {half_interval(values):.{digits}f}"


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
