"""Tables of results, as text."""

from typing import NamedTuple

from k1.checkpoints.contents import Checkpoint
from k1.data.sources import dataset_labels
from k1.parallel import is_main_process
from k1.presets import ARMS

# Of generated text, see `k1.report.quality`.
SCORES = {"domain": "domain", "fluency": "fluency", "distinct_2": "distinct-2"}


class Table(NamedTuple):
    """A table of the report: its first row is the head, its first column names the rows."""

    caption: str
    rows: list[list[str]]


def dataset_label(name: str) -> str:
    """How a dataset or model is called by itself, see `k1.data.sources.dataset_labels`."""
    return dataset_labels([name])[0]


def first_model(report: dict) -> str:
    """What the model is called that stage 1 started from; recorded reports may be older than pretrained starts."""
    return "pretrained" if report.get("start") else "untrained"


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        + " |"
        for row in rows
    ]  # fmt: skip
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
