"""What a study recorded, seeds together: the points of each method, what their runs learned and forgot, and tables.

A record has [nats per token, accuracy] by stage, dataset and split; figures are of test text if not said otherwise.
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from k1.report import metrics
from k1.report.metrics import SHOWN, Matrix, mean, mean_and_interval, own_to_end
from k1.report.tables import Table, rows_of
from k1.report.text import AT_BOTH_TIMES
from k1.study.methods import METHODS

Metric = Callable[[dict], float]


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
        return ", ".join([f"{self.learning_rate:g}", *(f"{name} {value:g}" for name, value in self.setting)])

    def values(self, metric: Metric) -> list[float]:
        """`metric` of each seed's record."""
        return [metric(record) for record in self.records]

    def shown(self, metric: Metric, digits: int = 3) -> str:
        """The mean of `metric` over the seeds, with its interval."""
        return mean_and_interval(self.values(metric), digits)

    def less(self, other: "Point | None", metric: Metric) -> str:
        """`metric` less that of another point, seed by seed of those that both have: the mean, with its interval."""
        theirs = {record["seed"]: metric(record) for record in other.records} if other and other is not self else {}
        values = [metric(record) - theirs[record["seed"]] for record in self.records if record["seed"] in theirs]
        return mean_and_interval(values) if values else "-"


def points_of(records: dict[str, dict], methods: Collection[str] = METHODS) -> dict[str, list[Point]]:
    """The runs on later datasets by method, in the order of `methods`, seeds together."""
    grouped = defaultdict(list)
    for record in sorted(records.values(), key=lambda record: record["seed"]):
        grouped[record["method"], tuple(record["setting"].items()), record["learning_rate"]].append(record)
    points = [Point(method, rate, setting, tuple(found)) for (method, setting, rate), found in sorted(grouped.items())]
    return {name: found for name in methods if (found := [point for point in points if point.method == name])}


def matrix_of(record: dict, score: str, split: str = "test") -> Matrix:
    """The matrix of `score`, `loss` or `accuracy`, see `k1.report.metrics`; nothing was measured before stage 1."""
    names, which = list(record["evaluations"][-1]), ("loss", "accuracy").index(score)
    rows = [[row[name][split][which] if name in row else None for name in names] for row in record["evaluations"]]
    return [[None] * len(names), *rows]


def forgotten_nats(record: dict, split: str = "test") -> float:
    """Mean over all datasets but the last of (nats per token at the end - after the dataset's own stage)."""
    return metrics.backward_transfer(matrix_of(record, "loss", split))


def new_dataset_loss(record: dict, split: str = "test") -> float:
    """Mean nats per token of the second and all later datasets, each after its own stage."""
    return metrics.new_dataset_loss(matrix_of(record, "loss", split))


def final_loss(record: dict, split: str = "test") -> float:
    """Mean nats per token of all datasets at the end."""
    return mean(matrix_of(record, "loss", split)[-1])


def best_point(points: list[Point]) -> Point:
    """The point with the lowest mean loss over all datasets at the end, on validation text."""
    return min(points, key=lambda point: mean(point.values(lambda record: final_loss(record, "validation"))))


# The first columns of a table of points, behind the method.
SETTING = [("Setting", lambda point: point.label), ("Seeds", lambda point: str(len(point.records)))]


def dataset_tables(rows: list[tuple[str, Point]]) -> list[Table]:
    """Accuracy and loss of every dataset after its own stage and at the end, of named points."""
    datasets = list(enumerate(rows[0][1].records[0]["evaluations"][-1]))

    def column(number: int, score: str) -> Callable[[Point], str]:
        return lambda point: own_to_end([matrix_of(record, score) for record in point.records], number, score)

    return [
        Table(
            f"{title}: {AT_BOTH_TIMES}",
            rows_of("Method", rows, [*SETTING, *((name, column(number, score)) for number, name in datasets)]),
        )
        for score, (title, _, _) in SHOWN.items()
    ]


def averages_table(rows: list[tuple[str, Point]], reference: Callable[[Point], Point | None], against: str) -> Table:
    """What named points forgot and learned on average, and that less what the `reference` of each did."""
    nats = {"Forgetting": forgotten_nats, "New-dataset loss": new_dataset_loss, "Loss at the end": final_loss}

    def forgotten_percent(record: dict) -> float:
        return metrics.average_forgetting_percent(matrix_of(record, "accuracy"))

    columns = [
        *SETTING,
        *((name, lambda point, metric=metric: point.shown(metric)) for name, metric in nats.items()),
        *((f"{name} - {against}'s", lambda point, metric=metric: point.less(reference(point), metric))
          for name, metric in nats.items()),
        ("Forgetting %", lambda point: point.shown(forgotten_percent, 1)),
        ("Changed per step %", lambda point: f"{100 * mean(point.values(lambda run: run['updated_fraction'])):.1f}"),
        ("Seconds", lambda point: f"{mean(point.values(lambda run: run['seconds'])):.0f}"),
    ]  # fmt: skip
    caption = (
        "Averages on test text: forgetting of all datasets but the last, loss of all but the first after their own "
        f"stage, and of all at the end, in nats per token; the same less {against}'s, seed by seed; forgetting in % of "
        "the accuracy after the dataset's own stage"
    )
    return Table(caption, rows_of("Method", rows, columns))
