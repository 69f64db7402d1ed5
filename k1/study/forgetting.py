"""What the arms of a stream learned and forgot: metrics of one run, and the tables over seeds.

A stream has any number of datasets, at least two. All figures are of test text.
"""

from k1.report.metrics import average_forgetting_percent, mean
from k1.report.tables import format_table
from k1.study.frontier import REFERENCE, Point, mean_and_interval
from k1.study.methods import METHODS

NATS, ACCURACY = 0, 1
# Whose forgetting is a share of whose.
PAIRS = (("sparse", REFERENCE), ("baseline_rehearsal", REFERENCE), ("k1", REFERENCE), ("k1", "baseline_rehearsal"))


def matrix_of(record: dict, score: int) -> list[list[float | None]]:
    """`NATS` (per token) or `ACCURACY` (0 to 1) after each stage (rows) of each dataset (columns).

    None if a dataset was not learned yet.
    """
    names = list(record["evaluations"][-1])
    return [[row[name]["test"][score] if name in row else None for name in names] for row in record["evaluations"]]


def own_and_end(matrix: list[list[float | None]]) -> list[tuple[float, float]]:
    """Of each dataset the score after its own stage and the one at the end."""
    return [(row[stage], matrix[-1][stage]) for stage, row in enumerate(matrix)]


def forgotten_nats(record: dict) -> float:
    """Mean over all datasets but the last of (nats per token at the end - after the dataset's own stage)."""
    return mean([end - own for own, end in own_and_end(matrix_of(record, NATS))[:-1]])


def forgotten_percent(record: dict) -> float:
    """Mean over all datasets but the last of the accuracy that is lost, in % of that after the dataset's own stage."""
    matrix = matrix_of(record, ACCURACY)
    # Of the untrained model, the row in front, nothing is used.
    return average_forgetting_percent([[None] * len(matrix), *matrix])


def new_dataset_loss(record: dict) -> float:
    """Mean nats per token of the second and all later datasets, each after its own stage."""
    return mean([own for own, _ in own_and_end(matrix_of(record, NATS))[1:]])


def final_loss(record: dict) -> float:
    """Mean nats per token of all datasets at the end."""
    return mean(matrix_of(record, NATS)[-1])


def forgetting_shares(ours: Point, theirs: Point) -> list[float]:
    """`forgotten_nats` of one arm over that of another, seed by seed; seeds that only one of them has are left out.

    Empty if the other arm did not forget at some seed, since nothing is a share of that.
    """
    reference = {record["seed"]: forgotten_nats(record) for record in theirs.records}
    pairs = [
        (forgotten_nats(record), reference[record["seed"]]) for record in ours.records if record["seed"] in reference
    ]
    return [mine / other for mine, other in pairs] if all(other > 0 for _, other in pairs) else []


def stream_tables(arms: dict[str, Point]) -> str:
    """The tables of a stream as Markdown; `arms` are the methods with their finished runs, at least one."""
    sections = [
        "Next-token accuracy on test text in %: after the dataset's own stage -> at the end",
        datasets_table(arms, ACCURACY, scale=100, digits=1),
        "Nats per token on test text: after the dataset's own stage -> at the end",
        datasets_table(arms, NATS, scale=1, digits=3),
        "Averages: forgetting of all datasets but the last, in nats per token and in % of the accuracy after the "
        "dataset's own stage; loss of all datasets but the first after their own stage, and of all at the end, in nats "
        "per token",
        averages_table(arms),
    ]
    rows = [
        [f"{METHODS[ours].label} / {METHODS[theirs].label}", str(len(shares)), mean_and_interval(shares, 2)]
        for ours, theirs in PAIRS
        if ours in arms and theirs in arms and (shares := forgetting_shares(arms[ours], arms[theirs]))
    ]
    if rows:
        sections += [
            "Average forgetting in nats as a share of another arm's, seed by seed, mean",
            format_table([["", "Seeds", "Share"], *rows]),
        ]
    return "\n\n".join(sections)


def datasets_table(arms: dict[str, Point], score: int, scale: float, digits: int) -> str:
    """Datasets in their order by arm: `score` after the dataset's own stage -> at the end."""
    found = {arm: [own_and_end(matrix_of(record, score)) for record in point.records] for arm, point in arms.items()}
    rows = [["Dataset", *(METHODS[arm].label for arm in arms)]]
    for stage, label in enumerate(stage_labels(arms)):
        cells = [
            " -> ".join(mean_and_interval([scale * run[stage][when] for run in runs], digits) for when in (0, 1))
            for runs in found.values()
        ]
        rows.append([label, *cells])
    return format_table(rows)


def stage_labels(arms: dict[str, Point]) -> list[str]:
    """The datasets as `1: name`, numbered by stage."""
    names = next(iter(arms.values())).records[0]["evaluations"][-1]
    return [f"{stage}: {name}" for stage, name in enumerate(names, start=1)]


def averages_table(arms: dict[str, Point]) -> str:
    """What each arm forgot and learned on average."""
    columns = {
        "Forgetting": (forgotten_nats, 3), "Forgetting %": (forgotten_percent, 1),
        "New-dataset loss": (new_dataset_loss, 3), "Mean loss at the end": (final_loss, 3),
    }  # fmt: skip
    rows = [["Method", "Learning rate", "Seeds", *columns]]
    for arm, point in arms.items():
        cells = [
            mean_and_interval([metric(record) for record in point.records], digits)
            for metric, digits in columns.values()
        ]
        rows.append([METHODS[arm].label, point.label, str(len(point.records)), *cells])
    return format_table(rows)
