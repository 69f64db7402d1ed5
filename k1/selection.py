"""Which parameters may change: each policy is one small function that returns update masks.

A policy takes the parameters by name, with their gradients in `.grad`, the first
moments of Adam (the running means of the gradients) under the same names, the
budget and a seeded generator. It returns one boolean mask for each parameter, of
its shape; together the masks hold exactly `budget` True elements. Ties go to the
parameter that comes first.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def budget_of(fraction: float, parameters: Tensors) -> int:
    """How many single parameters `fraction` of them all is (at least one)."""
    return max(1, round(fraction * sum(parameter.numel() for parameter in parameters.values())))


def largest(scores: Tensors, budget: int) -> Tensors:
    """Masks of the `budget` largest elements over all `scores` taken together.

    The threshold is exact (the budget-th largest value, not an estimate), and of
    the elements equal to it just as many are taken as are needed.
    """
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    if budget >= flat.numel():
        chosen = torch.ones_like(flat, dtype=torch.bool)
    else:
        threshold = flat.kthvalue(flat.numel() - budget + 1).values
        chosen = flat > threshold
        ties = (flat == threshold).nonzero().squeeze(1)
        chosen[ties[: budget - int(chosen.sum())]] = True
    pieces = chosen.split([score.numel() for score in scores.values()])
    return {name: piece.view_as(score) for (name, score), piece in zip(scores.items(), pieces)}


def gradient_size(parameters: Tensors) -> Tensors:
    """|gradient| of each parameter, zero where the loss does not depend on it."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.abs()
        for name, parameter in parameters.items()
    }


def select_gradient(parameters: Tensors, moments: Tensors, budget: int, generator: torch.Generator) -> Tensors:
    """The parameters with the largest |gradient| at this step."""
    return largest(gradient_size(parameters), budget)


def select_momentum(parameters: Tensors, moments: Tensors, budget: int, generator: torch.Generator) -> Tensors:
    """The parameters with the largest |first moment| (MoFO, arXiv:2407.20999)."""
    return largest({name: moments[name].abs() for name in parameters}, budget)


def select_random(parameters: Tensors, moments: Tensors, budget: int, generator: torch.Generator) -> Tensors:
    """Parameters drawn at random (half fine-tuning, arXiv:2404.18466, parameter by parameter)."""
    scores = {
        # Drawn on the CPU, so that every device selects the same parameters.
        name: torch.rand(parameter.shape, generator=generator).to(parameter.device)
        for name, parameter in parameters.items()
    }
    return largest(scores, budget)


def select_groups(parameters: Tensors, moments: Tensors, budget: int, generator: torch.Generator) -> Tensors:
    """Whole module groups in order of gradient norm until the budget is full.

    The group that no longer fits gives the parameters with its largest |gradient|,
    so that the budget is met exactly.
    """
    sizes = gradient_size(parameters)
    groups: dict[str, list[str]] = {}
    for name in parameters:
        groups.setdefault(module_group(name), []).append(name)
    norms = {group: sum(float(sizes[name].norm()) ** 2 for name in members) for group, members in groups.items()}
    masks = {name: torch.zeros_like(size, dtype=torch.bool) for name, size in sizes.items()}
    for group in sorted(groups, key=lambda group: -norms[group]):
        members = {name: sizes[name] for name in groups[group]}
        taken = min(budget, sum(size.numel() for size in members.values()))
        if taken:
            masks.update(largest(members, taken))
        budget -= taken
    return masks


# Names of attention modules, and of the normalisations before them, in Llama, GPT-2 and their kin.
ATTENTION_PARTS = {"self_attn", "attn", "attention", "self_attention", "input_layernorm", "ln_1"}


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


Policy = Callable[[Tensors, Tensors, int, torch.Generator], Tensors]

SELECTION_POLICIES: dict[str, Policy] = {
    "gradient": select_gradient,
    "momentum": select_momentum,
    "random": select_random,
    "groups": select_groups,
}

# Policies that choose once, at the first step, and keep their masks for the whole stage.
ONCE_PER_STAGE = {"random"}
