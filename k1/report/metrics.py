"""What a continual-learning experiment is judged by: forgetting, what was learned, transfer, and means with intervals.

A matrix has a column for each dataset, a row for the model before the first stage and one for that after each stage:
accuracy (0 to 1) or loss (nats per token) on held-out text, None if it was not measured.
"""

import re
from math import sqrt
from statistics import stdev

from scipy.stats import t as student

from k1.checkpoints import Checkpoint

Matrix = list[list[float | None]]
# Forgetting of three datasets: of which one, and after which stage.
KINDS = {"dataset 1 after stage 2": (0, 2), "dataset 1 at the end": (0, 3), "dataset 2 at the end": (1, 3)}
# How a score is called in tables, its factor there, and its digits.
SHOWN = {"accuracy": ("Next-token accuracy on test text in %", 100, 1), "loss": ("Nats per token on test text", 1, 3)}


def accuracy_matrix(checkpoint: Checkpoint, score: str = "accuracy") -> Matrix:
    """The matrix of `score` on test text, `accuracy` or `loss`; row 0 is the untrained model."""
    names = [dataset["name"] for dataset in checkpoint.datasets]
    rows = [checkpoint.initial_evaluation, *checkpoint.evaluations]
    return [[row[name]["test"][score] if name in row else None for name in names] for row in rows]


def own_and_end(matrix: Matrix) -> list[tuple[float, float]]:
    """Of each dataset the score after its own stage and the one at the end."""
    return [(matrix[number + 1][number], end) for number, end in enumerate(matrix[-1])]


def own_to_end(matrices: list[Matrix], number: int, score: str) -> str:
    """The `score` of dataset `number` after its own stage -> at the end, means of runs with their intervals."""
    _, scale, digits = SHOWN[score]
    own, end = zip(*(own_and_end(matrix)[number] for matrix in matrices))
    return " -> ".join(mean_and_interval([scale * value for value in values], digits) for values in (own, end))


def forgetting_percent(accuracy: Matrix) -> list[float]:
    """Of each dataset, the share of the accuracy reached after its own stage that is lost at the end, in percent.

    Negative if later stages improved it, 0 for the last dataset. If a model learned nothing (accuracy 0) nothing can
    be forgotten: 0.
    """
    return [100 * (own - end) / own if own else 0.0 for own, end in own_and_end(accuracy)]


def average_forgetting_percent(accuracy: Matrix) -> float:
    """Mean forgetting of all datasets but the last, which nothing followed."""
    return mean(forgetting_percent(accuracy)[:-1])


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all datasets but the last of (score at the end - score after its own stage).

    Of accuracy, it is negative when later stages harm earlier datasets (gradient episodic memory, arXiv:1706.08840,
    eq. 3); of loss, it is what was forgotten, in nats per token.
    """
    return mean([end - own for own, end in own_and_end(matrix)[:-1]])


def forward_transfer(accuracy: Matrix) -> float:
    """Mean over all datasets but the first of (accuracy just before its stage - accuracy of the untrained model).

    Positive when earlier stages help with text not seen yet (gradient episodic memory, arXiv:1706.08840, eq. 4).
    """
    return mean([accuracy[i][i] - accuracy[0][i] for i in range(1, len(accuracy) - 1)])


def new_dataset_loss(loss: Matrix) -> float:
    """Mean nats per token of the second and all later datasets, each after its own stage."""
    return mean([own for own, _ in own_and_end(loss)[1:]])


def kinds_of_forgetting(loss: Matrix) -> dict[str, float]:
    """By how much the loss has risen since the dataset's own stage, in nats per token, by the names of `KINDS`."""
    return {kind: loss[stage][number] - loss[number + 1][number] for kind, (number, stage) in KINDS.items()}


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def half_interval(values: list[float]) -> float:
    """Half the width of the 95% interval of the mean of `values` (Student's t); 0 for one value, which has none."""
    if len(values) < 2:
        return 0.0
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))


def mean_and_interval(values: list[float], digits: int = 3) -> str:
    """The mean and, for several values, half the width of its 95% interval."""
    text = f"{mean(values):z.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {half_interval(values):.{digits}f}"


def distinct_2(continuations: list[str]) -> float:
    """Share of different ones among all pairs of words or punctuation marks (distinct-2, arXiv:1510.03055)."""
    words = [re.findall(r"\w+|[^\w\s]", text) for text in continuations]
    pairs = [pair for found in words for pair in zip(found, found[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
