"""Tables of results: their rows from what they show, as Markdown."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from k1.checkpoints import Checkpoint
from k1.data.sources import dataset_labels
from k1.experiment import ARMS
from k1.parallel import is_main_process

# Of generated text, see `k1.report.quality`.
SCORES = {"domain": "domain", "fluency": "fluency", "distinct_2": "distinct-2"}
Item = TypeVar("Item")


class Table(NamedTuple):
    """A table with its caption: its first row is the head, its first column names the rows; as text, Markdown."""

    caption: str
    rows: list[list[str]]

    def __str__(self) -> str:
        return f"{self.caption}\n\n{format_table(self.rows)}"


def rows_of(
    corner: str, items: Iterable[tuple[str, Item]], columns: Iterable[tuple[str, Callable[[Item], str]]]
) -> list[list[str]]:
    """The rows of a table: a head, then each of the named `items` with the cell that each named column makes of it."""
    names, cells = zip(*columns)
    return [[corner, *names], *([name, *(cell(item) for cell in cells)] for name, item in items)]


def dataset_label(name: str) -> str:
    """How a dataset or model is called by itself, see `k1.data.sources.dataset_labels`."""
    return dataset_labels([name])[0]


def print_evaluation(checkpoint: Checkpoint) -> None:
    """Print what a stage's model scores on the held-out text of all datasets so far, on stdout of the main process."""
    if not is_main_process():
        return
    arguments = checkpoint.arguments
    how = (
        f"{arguments['update_fraction']:.0%} of the parameters updated per step, {arguments['rehearsal']:.0%} of the "
        "text rehearsed"
    )
    if not checkpoint.history:
        how = f"not trained, as it is in {checkpoint.start['name']}"
    print(f"{ARMS[checkpoint.arm]} after stage {checkpoint.stage}, {how}")
    rows = [["dataset", "split", "nats per token", "perplexity", "accuracy %", "tokens"]]
    evaluation = checkpoint.evaluations[-1]
    for label, splits in zip(dataset_labels(evaluation), evaluation.values()):
        for split, scores in splits.items():
            figures = [f"{scores['loss']:.4f}", f"{scores['perplexity']:.2f}", f"{100 * scores['accuracy']:.2f}"]
            rows.append([label, split, *figures, str(scores["tokens"])])
    print(format_table(rows), flush=True)


def format_table(rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the head, the first column is left-aligned."""
    first, *others = (max(map(len, column)) for column in zip(*rows))
    lines = [
        " | ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others))]) for row in rows
    ]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])
