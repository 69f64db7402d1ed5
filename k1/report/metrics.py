"""What a continual-learning experiment is judged by: forgetting, transfer, what was selected, generated text."""

import re
from collections import Counter

from k1.checkpoints.contents import Checkpoint
from k1.model import empty_model
from k1.sparse.selection import module_group


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
    """Which module groups a run changed: shares of the parameters, 0 to 1, groups in the order of the model.

    `share[group]` is, stage by stage, the share of the group's parameters that a
    step changes (mean over the history, None for a stage without steps), `share_overall` the same of all
    parameters. `overlap[group]` is, of the group's parameters that stage 2
    changed, the share that stage 3 changed too, read off the bits of the three
    checkpoints (None where stage 2 changed nothing), `overlap_overall` the same
    of all parameters. `overlap_by_chance`, the share of all parameters that stage
    3 changed, is what the overlap would be if stage 3 chose regardless of stage 2.
    """
    histories = [checkpoint.history for checkpoint in run]
    in_second, in_both = Counter(), Counter()
    in_third = total = 0
    for name in parameter_names(run[-1]):
        first, second, third = (checkpoint.model[name] for checkpoint in run)
        before, after = first != second, second != third
        in_second[module_group(name)] += int(before.sum())
        in_both[module_group(name)] += int((before & after).sum())
        in_third += int(after.sum())
        total += after.numel()
    return {
        "share": {
            group: [mean_or_none([entry["updated_by_group"][group] for entry in history]) for history in histories]
            for group in histories[-1][0]["updated_by_group"]
        },
        "share_overall": [mean_or_none([entry["updated_fraction"] for entry in history]) for history in histories],
        "overlap": {group: in_both[group] / changed if changed else None for group, changed in in_second.items()},
        "overlap_overall": in_both.total() / in_second.total() if in_second.total() else None,
        "overlap_by_chance": in_third / total,
    }


def parameter_names(checkpoint: Checkpoint) -> list[str]:
    """The names of a checkpoint's tensors that training may change: neither masks nor the bases of K-1."""
    # A weight that two layers share is one parameter, of a parametrized one only `original` is.
    plain = empty_model(checkpoint.model_config, len(checkpoint.model))
    shared = plain.state_dict().keys() - dict(plain.named_parameters()).keys()
    return [
        name
        for name, tensor in checkpoint.model.items()
        if tensor.is_floating_point()
        and name not in shared
        and (".parametrizations." not in name or name.endswith(".original"))
    ]


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def mean_or_none(values: list[float]) -> float | None:
    """Arithmetic mean; None of no values."""
    return mean(values) if values else None


def words(text: str) -> list[str]:
    """Words and single punctuation marks, in order."""
    return re.findall(r"\w+|[^\w\s]", text)


def distinct_2(continuations: list[str]) -> float:
    """Share of different ones among all word pairs of the continuations (distinct-2, arXiv:1510.03055)."""
    pairs = [pair for text in continuations for pair in zip(words(text), words(text)[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
