"""What a continual-learning experiment is judged by: forgetting, transfer, what was selected, generated text."""

import re
from collections.abc import Iterable

from k1.checkpoint import Checkpoint
from k1.selection import module_group

# The success criteria's thresholds; `k1.report` names the criteria.
MAX_FORGETTING_PERCENT = 25.0
MIN_QUALITY_KEPT = 0.90


def accuracy_matrix(checkpoint: Checkpoint, split: str = "test", score: str = "accuracy") -> list[list[float | None]]:
    """Next-token accuracy after each stage (rows) on each dataset (columns), None where it was not measured.

    Row 0 is the untrained model, row i the model after stage i. `score` may also
    be `loss` (nats per token) or `perplexity`.
    """
    names = [dataset["name"] for dataset in checkpoint.datasets]
    rows = [checkpoint.initial_evaluation, *checkpoint.evaluations]
    return [[row[name][split][score] if name in row else None for name in names] for row in rows]


def forgetting_percent(matrix: list[list[float | None]]) -> list[float]:
    """Of each dataset, the share of the accuracy reached after its own stage that is lost at the end, in percent.

    100 (accuracy after its own stage - accuracy at the end) / accuracy after its
    own stage; negative where later stages improved it, 0 for the last dataset.
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


def selection_of(run: list[Checkpoint]) -> dict:
    """Which module groups a run changed: shares of each group's parameters, 0 to 1.

    `share[group]` is, stage by stage, the share that a step changes (mean over
    the history). `overlap[group]` is, of the parameters that stage 2 changed, the
    share that stage 3 changed too, read off the bits of the three checkpoints;
    `overlap_by_chance` is the share of all parameters that stage 3 changed.
    """
    groups = list(run[0].history[0]["updated_by_group"])
    names = [name for name in run[-1].importance or run[-1].model if run[-1].model[name].is_floating_point()]
    counts = {group: [0, 0] for group in groups}
    last, total = 0, 0
    for name in names:
        first, second, third = (checkpoint.model[name] for checkpoint in run)
        in_second, in_third = first != second, second != third
        count = counts[module_group(name)]
        count[0] += int(in_second.sum())
        count[1] += int((in_second & in_third).sum())
        last, total = last + int(in_third.sum()), total + in_third.numel()
    return {
        "share": {
            group: [mean([entry["updated_by_group"][group] for entry in checkpoint.history]) for checkpoint in run]
            for group in groups
        },
        "overlap": {group: both / changed if changed else None for group, (changed, both) in counts.items()},
        "overlap_by_chance": last / total,
    }


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def words(text: str) -> list[str]:
    """Words and single punctuation marks, in order."""
    return re.findall(r"\w+|[^\w\s]", text)


def trigrams(text: str) -> list[tuple[str, str, str]]:
    """Every three successive words of `text`."""
    sequence = words(text)
    return list(zip(sequence, sequence[1:], sequence[2:]))


def trigram_shares(groups: list[list[str]], training_text: Iterable[str]) -> list[float]:
    """For each group of continuations, the share of their word trigrams that occur in the training text.

    Repetitions count. The first and the last trigram of a continuation are left
    out, since the continuation may begin or end inside a word. The training text
    is read once, document by document, for all groups.
    """
    generated = [[trigram for text in group for trigram in trigrams(text)[1:-1]] for group in groups]
    missing = {trigram for group in generated for trigram in group}
    for document in training_text:
        missing.difference_update(trigrams(document))
    return [mean([trigram not in missing for trigram in group]) if group else 0.0 for group in generated]


def distinct_2(continuations: list[str]) -> float:
    """Share of different ones among all word pairs of the continuations (distinct-2, arXiv:1510.03055)."""
    pairs = [pair for text in continuations for pair in zip(words(text), words(text)[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
