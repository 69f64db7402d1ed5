"""Tables of results: their rows from what they show, as Markdown; and the report, which is made of them."""

from collections.abc import Callable, Iterable
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from k1.checkpoints import Checkpoint
from k1.data.sources import dataset_labels
from k1.experiment import ARMS
from k1.parallel import is_main_process
from k1.report.metrics import Matrix, mean_and_interval, own_and_end

AT_BOTH_TIMES = "after the dataset's own stage -> at the end"
# What a score of a model is in tables, its factor there, and its digits.
SHOWN = {"accuracy": ("Next-token accuracy on test text in %", 100, 1), "loss": ("Nats per token on test text", 1, 3)}
# How a score of generated text (see `k1.report.quality`) is called, what it is, its factor in tables, and its digits.
SCORES = {
    "domain": (
        "domain",
        "Domain: share of the texts that a classifier of character n-grams assigns to the dataset, in %; it is right "
        "about {right:.1f}% of real test text, by chance {chance:.0f}%", 100, 1,
    ),
    "fluency": (
        "fluency",
        "Fluency: nats per token under an n-gram model of the dataset's training text; less is better", 1, 2,
    ),
    "distinct_2": (
        "distinct-2",
        "Distinct-2: share of different ones among the word pairs of neighbouring texts, in %", 100, 1,
    ),
}  # fmt: skip
# A column of a table: its name, and the cell that it makes of what a row is about.
Column = tuple[str, Callable[[Any], str]]


class Table(NamedTuple):
    """A table with its caption: its first row is the head, its first column names the rows; as text, Markdown."""

    caption: str
    rows: list[list[str]]

    def __str__(self) -> str:
        return f"{self.caption}\n\n{format_table(self.rows)}"


def format_table(rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the head, the first column is left-aligned."""
    first, *others = (max(map(len, column)) for column in zip(*rows))
    lines = [
        " | ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others))]) for row in rows
    ]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def rows_of(corner: str, items: Iterable[tuple[str, Any]], columns: Iterable[Column]) -> list[list[str]]:
    """The rows of a table: a head, then each of the named `items` with the cell that each column makes of it."""
    names, cells = zip(*columns)
    return [[corner, *names], *([name, *(cell(item) for cell in cells)] for name, item in items)]


def mean_of(name: str, metric: Callable[[Any], float], digits: int = 3) -> Column:
    """A column with the mean of `metric` over the runs of an arm, with its interval."""
    return name, lambda runs: mean_and_interval([metric(run) for run in runs], digits)


def entry(*keys: str | int) -> Callable[[Any], Any]:
    """What stands under `keys`, one after another, in a nested dictionary or list."""
    return lambda run: reduce(getitem, keys, run)


def at_both_times(score: str, labels: list[str]) -> list[Column]:
    """A column for each dataset of a table of arms, each of them a list of runs: means with their intervals."""
    _, scale, digits = SHOWN[score]

    def column(number: int) -> Callable[[list[dict]], str]:
        def cell(runs: list[dict]) -> str:
            times = zip(*(scale * own_and_end(run[f"{score}_matrix"])[:, number] for run in runs))
            return " -> ".join(mean_and_interval(values, digits) for values in times)

        return cell

    return [(label, column(number)) for number, label in enumerate(labels)]


def print_evaluation(checkpoint: Checkpoint) -> None:
    """Print what a stage's model scores on the held-out text of all datasets so far, on stdout of the main process."""
    if not is_main_process():
        return
    arguments = checkpoint.arguments
    how = (
        f"{arguments['update_fraction']:.0%} of the parameters updated per step, {arguments['rehearsal']:.0%} of the "
        "text rehearsed"
    )
    if checkpoint.start and not checkpoint.history:
        how = f"not trained, as it is in {checkpoint.start['name']}"
    print(f"{ARMS[checkpoint.arm]} after stage {checkpoint.stage}, {how}")
    rows = [["dataset", "split", "nats per token", "perplexity", "accuracy %", "tokens"]]
    evaluation = checkpoint.evaluations[-1]
    for label, splits in zip(dataset_labels(evaluation), evaluation.values()):
        for split, scores in splits.items():
            figures = [f"{scores['loss']:.4f}", f"{scores['perplexity']:.2f}", f"{100 * scores['accuracy']:.2f}"]
            rows.append([label, split, *figures, str(scores["tokens"])])
    print(format_table(rows), flush=True)


def format_report(report: dict) -> str:
    """The report as Markdown text."""
    criteria = [
        f"{item['criterion']}: {'met' if item['met'] else 'NOT MET'} ({item['figures']})" for item in report["criteria"]
    ]
    sections = [
        *result_tables(report), about_generation(report), *generation_tables(report), "\n".join(criteria),
        "\n".join(about_datasets(report)), about_run(report),
    ]  # fmt: skip
    return "\n\n".join(map(str, sections))


def about_datasets(report: dict) -> list[str]:
    """Which text each dataset is, a line each."""
    return [
        f"{label}: {dataset['source']} text, fingerprint {dataset['fingerprint'][:12]}, "
        f"{dataset['tokens']['train']:,} training tokens"
        for label, dataset in zip(labels_of(report), report["datasets"])
    ]


def about_run(report: dict) -> str:
    """The size, seed and preset of the runs, and the pretrained model that they started from, in one line."""
    run = f"{report['parameters']:,} parameters, seed {report['seed']}, preset {report['preset']}"
    if not (start := report["start"]):
        return run
    (name,) = dataset_labels([start["name"]])
    revision = f", revision {start['revision'][:12]}" if start["revision"] else ""
    return f"{run}, started from {name}{revision}, SHA-256 {start['sha256'][:12]}"


def labels_of(report: dict) -> list[str]:
    """The datasets as they are called in tables."""
    return dataset_labels(dataset["name"] for dataset in report["datasets"])


def result_tables(report: dict) -> list[Table]:
    """Accuracy, loss, forgetting and transfer, in this order."""

    def column(name: str, key: str, form: str, scale: float = 1) -> Column:
        return name, lambda runs: format(scale * runs[0][key], form)

    labels = labels_of(report)
    columns = {
        f"{SHOWN['accuracy'][0]}: {AT_BOTH_TIMES}": [
            *at_both_times("accuracy", labels), column("Forgetting %", "average_forgetting_percent", ".1f"),
        ],
        f"{SHOWN['loss'][0]}: {AT_BOTH_TIMES}": [
            *at_both_times("loss", labels), column("Mean at the end", "mean_final_loss", ".3f"),
        ],
        "Forgetting: share of the accuracy after the dataset's own stage that is lost at the end, in %": [
            *forgetting_columns(report, len(labels)),
        ],
        "Transfer in percentage points of accuracy, and the measured share of parameters that a step changes": [
            column("Backward transfer", "backward_transfer", "+.2f", 100),
            column("Forward transfer", "forward_transfer", "+.2f", 100),
            column("Parameters changed per step %", "updated_fraction", ".2f", 100),
        ],
    }  # fmt: skip
    models = [(ARMS[arm], [result]) for arm, result in report["models"].items()]
    return [Table(caption, rows_of("Model", models, found)) for caption, found in columns.items()]


def forgetting_columns(report: dict, count: int) -> list[Column]:
    """What is forgotten of the first `count` datasets of `report`, and on average, in %."""
    names = [dataset["name"] for dataset in report["datasets"]]
    columns = [mean_of(label, entry("forgetting_percent", name), 1) for label, name in zip(labels_of(report), names)]
    return [*columns[:count], mean_of("Average", entry("average_forgetting_percent"), 1)]


def first_model(start: dict | None) -> str:
    """What the model is called that stage 1 started from; `start` describes a pretrained one."""
    return "pretrained" if start else "untrained"


def accuracy_rows(accuracy: Matrix, labels: list[str], start: dict | None) -> list[list[str]]:
    """The rows of a table with the accuracy of every dataset, in %, of the first model and after every stage."""
    head = ["Dataset", first_model(start), *(f"after stage {stage}" for stage in range(1, len(accuracy)))]
    shown = [
        ["not measured" if value is None else f"{100 * value:.1f}" for value in column] for column in zip(*accuracy)
    ]
    return [head, *([label, *cells] for label, cells in zip(labels, shown))]


def about_generation(report: dict) -> str:
    """What the tables of generated text are about."""
    return (
        f"Generated text, at least {min(report['judges']['continuations'].values())} continuations of test text a "
        f"dataset: {AT_BOTH_TIMES} (share that is kept, its 95% interval)"
    )


def generation_tables(report: dict) -> list[Table]:
    """A table for each score of generated text: of real text and of what each model generates, by dataset."""
    judges = report["judges"]
    right, chance = 100 * judges["classifier_accuracy"], 100 / len(report["datasets"])

    def rows(score: str, scale: float, digits: int) -> list[list[str]]:
        def number(value: float) -> str:
            return f"{scale * value:.{digits}f}"

        def cell(values: dict) -> str:
            kept, low, high = (f"{100 * share:.0f}" for share in (values["kept"], *values["interval"]))
            return f"{number(values['own'])} -> {number(values['final'])} ({kept}%, {low} to {high})"

        found = [["Model", *labels_of(report)]]
        found.append(["real text", *(number(scores[score]) for scores in judges["real_text"].values())])
        for arm, result in report["models"].items():
            *earlier, last = (scores[score] for scores in result["generation"].values())
            # Nothing follows the last dataset.
            found.append([ARMS[arm], *map(cell, earlier), number(last["final"])])
        return found

    return [
        Table(caption.format(right=right, chance=chance), rows(score, scale, digits))
        for score, (_, caption, scale, digits) in SCORES.items()
    ]
