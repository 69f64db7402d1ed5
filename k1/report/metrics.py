"""What a continual-learning experiment is judged by: forgetting, transfer, generated text."""

import re

from k1.checkpoints.contents import Checkpoint


def accuracy_matrix(checkpoint: Checkpoint, split: str = "test", score: str = "accuracy") -> list[list[float | None]]:
    """Next-token accuracy after each stage (rows) on each dataset (columns), None if it was not measured.

    Row 0 is the untrained model, row i the model after stage i. `score` may also
    be `loss` (nats per token) or `perplexity`.
    """
    names = [dataset["name"] for dataset in checkpoint.datasets]
    rows = [checkpoint.initial_evaluation, *checkpoint.evaluations]
    return [[row[name][split][score] if name in row else None for name in names] for row in rows]


def forgetting_percent(matrix: list[list[float | None]]) -> list[float]:
    """Of each dataset, the share of the accuracy reached after its own stage that is lost at the end, in percent.

    100 (accuracy after its own stage - accuracy at the end) / accuracy after its
    own stage; negative if later stages improved it, 0 for the last dataset.
    Where a model learned nothing (accuracy 0) nothing can be forgotten: 0.
    """
    own = [matrix[stage][stage - 1] for stage in range(1, len(matrix))]
    return [100 * (before - after) / before if before else 0.0 for before, after in zip(own, matrix[-1])]


def average_forgetting_percent(matrix: list[list[float | None]]) -> float:
    """Mean forgetting of all datasets but the last, which nothing followed."""
    return mean(forgetting_percent(matrix)[:-1])


def backward_transfer(matrix: list[list[float | None]]) -> float:
    """Mean over all datasets but the last of (accuracy at the end - accuracy after its own stage).

    In accuracy, between -1 and 1; negative when later stages harm earlier
    datasets (gradient episodic memory, arXiv:1706.08840, eq. 3).
    """
    return mean([matrix[-1][i] - matrix[i + 1][i] for i in range(len(matrix) - 2)])


def forward_transfer(matrix: list[list[float | None]]) -> float:
    """Mean over all datasets but the first of (accuracy just before its stage - accuracy of the untrained model).

    In accuracy, between -1 and 1; positive when earlier stages help with text
    not seen yet (gradient episodic memory, arXiv:1706.08840, eq. 4).
    """
    return mean([matrix[i][i] - matrix[0][i] for i in range(1, len(matrix) - 1)])


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def words(text: str) -> list[str]:
    """Words and single punctuation marks, in order."""
    return re.findall(r"\w+|[^\w\s]", text)


def distinct_2(continuations: list[str]) -> float:
    """Share of different ones among all word pairs of the continuations (distinct-2, arXiv:1510.03055)."""
    pairs = [pair for text in continuations for pair in zip(words(text), words(text)[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
