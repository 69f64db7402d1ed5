"""What a continual-learning experiment is judged by: forgetting, what was learned, transfer, and means with intervals.

A matrix has a column for each dataset, a row for the model before the first stage and one for that after each stage:
accuracy (0 to 1) or loss (nats per token) on held-out text, None if it was not measured.
"""

import re
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from k1.checkpoints import Checkpoint, Evaluation

Matrix = Sequence[Sequence[float | None]] | np.ndarray
MIN_QUALITY_KEPT = 0.90


def accuracy_matrix(checkpoint: Checkpoint, score: str = "accuracy") -> list[list[float | None]]:
    """The matrix of `score` on test text, `accuracy` or `loss`; row 0 is the untrained model."""
    return matrix_of([checkpoint.initial_evaluation, *checkpoint.evaluations], score)


def matrix_of(rows: Sequence[Evaluation], score: str, split: str = "test") -> list[list[float | None]]:
    """The matrix of `score` on text of `split`; the last of `rows` has all datasets."""
    return [[row[name][split][score] if name in row else None for name in rows[-1]] for row in rows]


def mean_matrix(matrices: Sequence[Matrix]) -> np.ndarray:
    """The mean of several matrices, NaN if one of them has None there."""
    return np.array(matrices, dtype=float).mean(0)


def own_and_end(matrix: Matrix) -> np.ndarray:
    """The score of each dataset after its own stage and the one at the end, (2, datasets)."""
    scores = mean_matrix([matrix])
    return np.stack([scores.diagonal(-1), scores[-1]])


def forgetting_percent(accuracy: Matrix) -> np.ndarray:
    """Of each dataset, the share of the accuracy reached after its own stage that is lost at the end, in percent.

    Negative if later stages improved it, 0 for the last dataset. If a model learned nothing (accuracy 0) nothing can
    be forgotten: 0.
    """
    own, end = own_and_end(accuracy)
    return np.divide(100 * (own - end), own, out=np.zeros_like(own), where=own > 0)


def average_forgetting_percent(accuracy: Matrix) -> float:
    """Mean forgetting of all datasets but the last, which nothing followed."""
    return mean(forgetting_percent(accuracy)[:-1])


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all datasets but the last of (score at the end - score after its own stage).

    Of accuracy, it is negative when later stages harm earlier datasets (gradient episodic memory, arXiv:1706.08840,
    eq. 3); of loss, it is what was forgotten, in nats per token.
    """
    own, end = own_and_end(matrix)
    return mean((end - own)[:-1])


def forward_transfer(accuracy: Matrix) -> float:
    """Mean over all datasets but the first of (accuracy just before its stage - accuracy of the untrained model).

    Positive when earlier stages help with text not seen yet (gradient episodic memory, arXiv:1706.08840, eq. 4).
    """
    scores = mean_matrix([accuracy])
    return mean((scores.diagonal() - scores[0])[1:])


def new_dataset_loss(loss: Matrix) -> float:
    """Mean nats per token of the second and all later datasets, each after its own stage."""
    return mean(own_and_end(loss)[0, 1:])


def final_loss(loss: Matrix) -> float:
    """Mean nats per token of all datasets at the end."""
    return mean(own_and_end(loss)[1])


def keeps_quality(generation: dict[str, dict]) -> bool:
    """Whether of each score of each dataset but the last `MIN_QUALITY_KEPT` is kept, by the lower end of its interval.

    `generation` is of one model, dataset -> score -> what `k1.report.quality.quality_kept` returns.
    """
    *earlier, _ = generation.values()
    return all(values["interval"][0] >= MIN_QUALITY_KEPT for scores in earlier for values in scores.values())


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Arithmetic mean."""
    return float(sum(values) / len(values))


def half_interval(values: Sequence[float] | np.ndarray) -> float:
    """Half the width of the 95% interval of the mean of `values` (Student's t); 0 for one value, which has none."""
    if len(values) < 2:
        return 0.0
    # scipy.stats has the same, and takes a second to import.
    return float(stdtrit(len(values) - 1, 0.975) * (np.std(values, ddof=1) / np.sqrt(len(values))))


def mean_and_interval(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """The mean and, for several values, half the width of its 95% interval."""
    text = f"{mean(values):z.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {half_interval(values):.{digits}f}"


def distinct_2(continuations: list[str]) -> float:
    """Share of different ones among all pairs of words or punctuation marks (distinct-2, arXiv:1510.03055)."""
    words = [re.findall(r"\w+|[^\w\s]", text) for text in continuations]
    pairs = [pair for found in words for pair in zip(found, found[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
