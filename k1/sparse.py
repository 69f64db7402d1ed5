"""Sparse updates: at each step of an optimizer an exact share of the parameters may change, all others keep their bits.

`sparse_updates(optimizer)` attaches them to any `torch.optim.Optimizer` by its step
hooks. Which parameters may change is up to a policy, one small function of `POLICIES`:
a generator that yields once, and the optimizer steps while it waits there.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from k1.errors import K1Error

UPDATE_FRACTION = 0.51
# In the first parameter group, so that the state of every optimizer, and every copy of it, has it.
COUNTER = "sparse_step"
# Keeps the random numbers of one seed apart from those of another.
STEPS_PER_SEED = 1_000_003


@dataclass(frozen=True)
class Step:
    """What a policy may look at, and change, before and after one step of `optimizer`.

    `parameters` are those that require a gradient and have at least one element;
    `budget` single parameters of them may change, which is the share `fraction`.
    `number` counts the steps from 0.
    """

    optimizer: torch.optim.Optimizer
    parameters: list[Tensor]
    budget: int
    fraction: float
    seed: int
    number: int

    def copies(self) -> list[Tensor]:
        """A copy of every parameter."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def gradients(self) -> list[Tensor]:
        """The gradient of every parameter, zeros if it has none."""
        return [p.grad.to_dense() if p.grad is not None else torch.zeros_like(p) for p in self.parameters]

    def put_back(self, before: list[Tensor], masks: list[Tensor]) -> None:
        """Give all parameters outside the boolean `masks`, of their shapes, the values of `before`."""
        for parameter, old, mask in zip(self.parameters, before, masks):
            parameter.data.copy_(torch.where(mask, parameter.detach(), old))


class SparseUpdates:
    """Let each step of `optimizer` change `round(fraction * parameters)` single parameters, at least 1, and no other.

    All others keep their bits, weight decay included; moments follow all gradients.
    Which ones may change is up to `policy`, a key of `POLICIES`; `windows`, the
    default, draws others at each step, `seed` and the number of the step alone decide,
    and takes their change times 1/fraction. The number of the step is in
    `optimizer.state_dict()`. A copy of an optimizer has no hooks, as torch has it:
    attach again, and it resumes with the same bits; `remove` detaches. Raises `K1Error` for a fraction
    outside (0, 1], an unknown policy, an optimizer that has sparse updates already, and FSDP.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        fraction: float = UPDATE_FRACTION,
        seed: int = 0,
        policy: str = "windows",
    ) -> None:
        # accelerate wraps an optimizer in another one.
        inner: Any = getattr(optimizer, "optimizer", optimizer)
        check_settings(fraction, policy)
        require_whole(parameter for group in inner.param_groups for parameter in group["params"])
        if getattr(inner, "sparse_updates", None) is not None:
            raise K1Error("this optimizer has sparse updates already; remove() those first")
        if hasattr(inner, "eval") or hasattr(inner, "optimizer_dict"):
            raise K1Error("this optimizer has weights of its own, or steps in the backward pass; choose another")
        if any(group.get("lr") is None for group in inner.param_groups):
            raise K1Error("this optimizer sets its learning rate itself; give it one (lr)")
        self.optimizer, self.fraction, self.seed, self.policy = inner, fraction, seed, policy
        self._waiting: Generator[None, None, None] | None = None
        inner.param_groups[0].setdefault(COUNTER, 0)
        inner.sparse_updates = self
        self._hooks = [inner.register_step_pre_hook(self._before), inner.register_step_post_hook(self._after)]

    def remove(self) -> None:
        """Detach from the optimizer, whose steps then change every parameter again."""
        for hook in self._hooks:
            hook.remove()
        self._close()
        self.optimizer.sparse_updates = None

    def _close(self) -> None:
        """End a step that raised an error, whose learning rates are put back."""
        if self._waiting is not None:
            self._waiting.close()
        self._waiting = None

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._close()
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad and p.numel()]
        total = sum(parameter.numel() for parameter in trained)
        budget = max(1, round(self.fraction * total))
        number = optimizer.param_groups[0].setdefault(COUNTER, 0)
        if budget < total:
            step = Step(optimizer, trained, budget, self.fraction, self.seed, number)
            self._waiting = POLICIES[self.policy](step)
            next(self._waiting)

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._waiting is not None:
            next(self._waiting, None)
            self._waiting = None
        optimizer.param_groups[0][COUNTER] += 1


# To attach them is to make one.
sparse_updates = SparseUpdates


def check_settings(fraction: float, policy: str) -> None:
    """Raise `K1Error` for a `fraction` outside (0, 1] and a `policy` that there is not."""
    if not 0 < fraction <= 1:
        raise K1Error(f"fraction must be above 0 and at most 1, not {fraction}")
    if policy not in POLICIES:
        raise K1Error(f"policy '{policy}' is unknown; known are: {', '.join(POLICIES)}")


def require_whole(parameters: Iterable[Tensor]) -> None:
    """Raise `K1Error` if one of `parameters` is in pieces in several processes, as FSDP has them."""
    if any(hasattr(parameter, "placements") for parameter in parameters):
        raise K1Error("k1 needs whole parameters in each process: train with DistributedDataParallel, not FSDP")


def flat(parameter: Tensor) -> Tensor:
    """A view of `parameter`, of one dimension, in the order of its memory."""
    if parameter.is_contiguous():
        return parameter.detach().view(-1)
    order = sorted(range(parameter.dim()), key=lambda side: -parameter.stride()[side])
    return parameter.detach().permute(order).view(-1)


def windows_to_keep(step: Step, number: int) -> list[tuple[Tensor, slice]]:
    """Draw of each parameter a window that must not change, so that in all exactly `step.budget` elements may.

    A window is a stretch of the flattened parameter that begins anywhere and goes on at
    the front if it reaches the end. Of every parameter it is the same share but for
    rounding, which is drawn too: a parameter of one element is in it now and then.
    Returns the parameters and stretches, one or two for each window. `number` is that of the random numbers.
    """
    sizes = [parameter.numel() for parameter in step.parameters]
    total = sum(sizes)
    kept = total - step.budget
    # On the CPU, so that every device and process draws the same.
    generator = torch.Generator().manual_seed((STEPS_PER_SEED * step.seed + number) % 2**63)
    phase = int(torch.randint(total, (), generator=generator))
    starts = torch.rand(len(sizes), generator=generator, dtype=torch.float64).tolist()
    windows, seen, done = [], 0, 0
    for parameter, size, place in zip(step.parameters, sizes, starts):
        seen += size
        length = (seen * kept + phase) // total - done
        done += length
        start = int(place * size)
        windows.append((parameter, slice(start, start + length)))
        if start + length > size:
            windows.append((parameter, slice(start + length - size)))
    return windows


def keep_windows(step: Step, number: int) -> Generator[None, None, None]:
    """Copy the windows of the random numbers `number` and put them back after the step."""
    windows = windows_to_keep(step, number)
    copies = [flat(parameter)[window].clone() for parameter, window in windows]
    yield
    # No view of before: some optimizers give a parameter other memory.
    for (parameter, window), copy in zip(windows, copies):
        flat(parameter)[window].copy_(copy)


def random_windows(step: Step) -> Generator[None, None, None]:
    """What is outside a window of each parameter, another one at each step; its change is taken times 1/fraction.

    So what changes in many steps is on average what a dense optimizer would change
    (SkipUpdate, arXiv:2602.15322). The change, decay included, is proportional to the
    learning rate, which is what is multiplied. Windows lie in one piece of memory: rows
    drawn one by one learn as well and take longer.
    """
    groups = step.optimizer.param_groups
    rates = [group["lr"] for group in groups]
    for group, rate in zip(groups, rates):
        group["lr"] = rate * (1 / step.fraction)
    try:
        yield from keep_windows(step, step.number)
    finally:
        for group, rate in zip(groups, rates):
            group["lr"] = rate


def windows_for_all_steps(step: Step) -> Generator[None, None, None]:
    """The same windows at every step, so that they keep their bits for good (half fine-tuning, arXiv:2404.18466)."""
    yield from keep_windows(step, 0)


def largest(scores: list[Tensor], budget: int) -> list[Tensor]:
    """Boolean masks of the `budget` largest elements of all `scores` together; of equal ones the first."""
    values = torch.cat([score.flatten() for score in scores])
    threshold = values.kthvalue(len(values) - budget + 1).values
    mask = values > threshold
    ties = (values == threshold).nonzero().flatten()
    mask[ties[: budget - int(mask.sum())]] = True
    return [part.view(score.shape) for part, score in zip(mask.split([s.numel() for s in scores]), scores)]


def largest_gradients(step: Step) -> Generator[None, None, None]:
    """The parameters with the largest |gradient| of this step."""
    before, masks = step.copies(), largest([gradient.abs() for gradient in step.gradients()], step.budget)
    yield
    step.put_back(before, masks)


def largest_momenta(step: Step) -> Generator[None, None, None]:
    """The parameters with the largest |first moment|, this step's gradient included (MoFO, arXiv:2407.20999).

    Raises `K1Error` for an optimizer that has none.
    """
    before = step.copies()
    yield
    states = [step.optimizer.state.get(parameter, {}) for parameter in step.parameters]
    moments = [state.get("exp_avg", state.get("momentum_buffer")) for state in states]
    if all(moment is None for moment in moments):
        raise K1Error("policy 'momentum' needs an optimizer with first moments, such as AdamW; choose another")
    sizes = [torch.zeros_like(p) if m is None else m.abs().view_as(p) for m, p in zip(moments, step.parameters)]
    step.put_back(before, largest(sizes, step.budget))


def whole_tensors(step: Step) -> Generator[None, None, None]:
    """Whole tensors in order of the norm of their gradient for each single parameter, until the budget is full.

    The last one gives the elements with its largest |gradient|.
    """
    sizes = [gradient.abs() for gradient in step.gradients()]
    masks = [torch.zeros_like(size, dtype=torch.bool) for size in sizes]
    left = step.budget
    for index in sorted(range(len(sizes)), key=lambda index: -float(sizes[index].square().mean())):
        taken = min(left, sizes[index].numel())
        if taken:
            (masks[index],) = largest([sizes[index]], taken)
        left -= taken
    before = step.copies()
    yield
    step.put_back(before, masks)


def error_feedback(step: Step) -> Generator[None, None, None]:
    """The largest of what the optimizer has asked for since a parameter last changed (arXiv:1809.07599).

    What is not carried out stays pending, in the state of the optimizer: nothing is
    lost, only delayed.
    """
    before = step.copies()
    yield
    states = [step.optimizer.state[parameter] for parameter in step.parameters]
    pending = [
        parameter.detach() - old + state.get("pending", 0)
        for parameter, old, state in zip(step.parameters, before, states)
    ]
    masks = largest([update.abs() for update in pending], step.budget)
    for parameter, old, update, mask, state in zip(step.parameters, before, pending, masks, states):
        parameter.data.copy_(torch.where(mask, old + update, old))
        # A state of its own would keep an optimizer from making its state at the first gradient.
        if state or parameter.grad is not None:
            state["pending"] = update.masked_fill_(mask, 0)


POLICIES: dict[str, Callable[[Step], Generator[None, None, None]]] = {
    "windows": random_windows,
    "stage": windows_for_all_steps,
    "gradient": largest_gradients,
    "momentum": largest_momenta,
    "groups": whole_tensors,
    "error_feedback": error_feedback,
}
