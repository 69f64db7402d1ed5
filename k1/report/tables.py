"""Tables of results, as text."""

from pathlib import Path
from typing import NamedTuple

from k1.checkpoints.contents import Checkpoint
from k1.experiment import ARMS
from k1.parallel import is_main_process

# Of generated text, see `k1.report.quality`.
SCORES = {"domain": "domain", "fluency": "fluency", "distinct_2": "distinct-2"}


class Table(NamedTuple):
    """A table of the report: its first row is the head, its first column names the rows."""

    caption: str
    rows: list[list[str]]


def dataset_label(name: str) -> str:
    """How a dataset or model is called in tables: a local one by its file name, without the folders.

    A file name may hold line breaks and what no text may; the replacement character stands for them.
    """
    label = Path(name).name if Path(name).is_absolute() else name
    return "".join(character if character.isprintable() else "\ufffd" for character in label)


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
    for name, splits in checkpoint.evaluations[-1].items():
        for split, scores in splits.items():
            figures = [f"{scores['loss']:.4f}", f"{scores['perplexity']:.2f}", f"{100 * scores['accuracy']:.2f}"]
            rows.append([dataset_label(name), split, *figures, str(scores["tokens"])])
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
