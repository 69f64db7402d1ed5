"""Which parameters may change: each policy is one small function that returns update masks.

A policy reads what it needs from `Evidence` and returns one boolean mask for each
parameter, of its shape; together the masks hold exactly `evidence.budget` True
elements. Ties go to the parameter that comes first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from k1.sparse.threshold import kth_largest, zero_last

Tensors = dict[str, Tensor]


@dataclass
class Evidence:
    """What a policy may look at; every dictionary has the names and shapes of `parameters`.

    `parameters` carry their gradients in `.grad`. `first_moments` are Adam's
    running means of the gradients. `importance` is the Fisher information of all
    finished datasets, `responsibility` that of the new one (both see
    `k1.sparse.importance`), `gain_floor` the constant kappa of `select_gain`.
    """

    parameters: Tensors
    budget: int
    generator: torch.Generator
    first_moments: Tensors = field(default_factory=dict)
    importance: Tensors = field(default_factory=dict)
    responsibility: Tensors = field(default_factory=dict)
    gain_floor: float = 0.0


def budget_of(fraction: float, parameters: Tensors) -> int:
    """How many single parameters `fraction` of them all is (at least one)."""
    return max(1, round(fraction * sum(parameter.numel() for parameter in parameters.values())))


def mean_element(tensors: Tensors) -> float:
    """Mean over all elements of all tensors."""
    return sum(float(value.cpu().double().sum()) for value in tensors.values()) / sum(
        v.numel() for v in tensors.values()
    )


def largest(scores: Tensors, budget: int, by_size: bool = False) -> Tensors:
    """Masks of the `budget` largest elements over all `scores` taken together; `by_size` of the largest |element|.

    The threshold is exact (the budget-th largest value, not an estimate), and of
    the elements equal to it just as many are taken as are needed.
    """
    threshold, surplus = kth_largest(scores.values(), budget, by_size)
    masks = {name: (score.abs() if by_size else score) >= threshold for name, score in scores.items()}
    # The last ones first, until none is too much.
    for name in reversed(scores) if surplus else ():
        score = scores[name].abs() if by_size else scores[name]
        surplus -= zero_last(masks[name], score == threshold, surplus)
    return masks


def gradient_size(parameters: Tensors) -> Tensors:
    """|gradient| of each parameter, zero where the loss does not depend on it."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.abs()
        for name, parameter in parameters.items()
    }


def select_gain(evidence: Evidence) -> Tensors:
    """The parameters that help the new dataset most for what changing them costs the old ones.

    The score is rho / (Omega + kappa mean(rho)), with responsibility rho,
    importance Omega and `gain_floor` kappa.
    """
    rho, omega = evidence.responsibility, evidence.importance
    # Where the new text gives no gradient at all, a floor of zero would divide zero by zero.
    floor = max(evidence.gain_floor * mean_element(rho), torch.finfo(torch.float32).tiny)
    return largest({name: rho[name] / (omega[name] + floor) for name in rho}, evidence.budget)


def select_gradient(evidence: Evidence) -> Tensors:
    """The parameters with the largest |gradient| at this step."""
    return largest(gradient_size(evidence.parameters), evidence.budget)


def select_momentum(evidence: Evidence) -> Tensors:
    """The parameters with the largest |first moment| (MoFO, arXiv:2407.20999)."""
    return largest(evidence.first_moments, evidence.budget, by_size=True)


def select_random(evidence: Evidence) -> Tensors:
    """Parameters drawn at random (half fine-tuning, arXiv:2404.18466, parameter by parameter)."""
    scores = {
        # Drawn on the CPU, so that every device selects the same parameters.
        name: torch.rand(parameter.shape, generator=evidence.generator).to(parameter.device)
        for name, parameter in evidence.parameters.items()
    }
    return largest(scores, evidence.budget)


def select_groups(evidence: Evidence) -> Tensors:
    """Whole module groups in order of gradient norm until the budget is full.

    The group that no longer fits gives the parameters with its largest |gradient|,
    so that the budget is met exactly. Parameters that have neither a gradient nor
    a first moment, such as the embeddings of tokens that have not come yet, stay
    where they are if selected; they come last, and only where the others are too few.
    """
    sizes = gradient_size(evidence.parameters)
    moves = {name: (size > 0) | (evidence.first_moments.get(name, size) != 0) for name, size in sizes.items()}
    groups: dict[str, list[str]] = {}
    for name in sizes:
        groups.setdefault(module_group(name), []).append(name)
    norms = {group: sum(float(sizes[name].norm()) ** 2 for name in members) for group, members in groups.items()}
    masks = {name: torch.zeros_like(size, dtype=torch.bool) for name, size in sizes.items()}
    left = evidence.budget
    in_order = sorted(groups, key=lambda group: -norms[group])
    for moving, group in [(moving, group) for moving in (True, False) for group in in_order]:
        # A size is never negative, so those of the other kind come after all of this one.
        members = {name: sizes[name].masked_fill(moves[name] != moving, -1.0) for name in groups[group]}
        taken = min(left, sum(int((size >= 0).sum()) for size in members.values()))
        if taken:
            for name, mask in largest(members, taken).items():
                masks[name] |= mask
        left -= taken
    return masks


# Names of attention modules, and of the normalisations before them, in Llama, GPT-2 and their kin.
ATTENTION_PARTS = {
    "self_attn", "attn", "attention", "self_attention", "input_layernorm", "ln_1", "self_attn_layer_norm",
}  # fmt: skip


def module_group(name: str) -> str:
    """The group of a parameter of a causal LM: `embedding`, `attention i`, `feed-forward i` or `output`.

    A normalisation belongs to the module that reads its output.
    """
    parts = name.split(".")
    layer = next((part for part in parts if part.isdigit()), None)
    if layer is not None:
        is_attention = not ATTENTION_PARTS.isdisjoint(parts)
        return f"attention {layer}" if is_attention else f"feed-forward {layer}"
    return "embedding" if any(part.startswith("embed") or part in ("wte", "wpe") for part in parts) else "output"


SELECTION_POLICIES: dict[str, Callable[[Evidence], Tensors]] = {
    "gain": select_gain,
    "gradient": select_gradient,
    "momentum": select_momentum,
    "random": select_random,
    "groups": select_groups,
}
# Policies that choose once, at the first step, and keep their masks for the whole stage.
ONCE_PER_STAGE = {"random", "gain"}
# Policies that look at first moments.
BY_MOMENTS = {"momentum", "groups"}
