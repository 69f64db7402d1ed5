"""SparseAdamW: AdamW that changes only selected parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor

from k1.errors import K1Error
from k1.selection import ONCE_PER_STAGE, SELECTION_POLICIES, budget_of


class SparseAdamW(torch.optim.AdamW):
    """AdamW (arXiv:1711.05101) that moves an exact share of all parameters and leaves every other one bit-identical.

    Adam's moments follow the gradients of all parameters, so that one which is
    selected later starts from up-to-date moments; the step itself, weight decay
    included, reaches only those that the policy `selection` chose. With
    `selection="all"` or `update_fraction=1` it is `torch.optim.AdamW`.

    Args:
        parameter_groups: as for `torch.optim.AdamW`, with names: each group's
            `params` is a list of (name, parameter).
        selection: `all`, or a key of `k1.selection.SELECTION_POLICIES`.
        update_fraction: share of all parameters that a step may change, in (0, 1].
        seed: of the generator handed to the policy.
        **options: options of `torch.optim.AdamW`.
    """

    def __init__(
        self,
        parameter_groups: Iterable[dict],
        selection: str = "all",
        update_fraction: float = 1.0,
        seed: int = 0,
        **options,
    ) -> None:
        if selection != "all" and selection not in SELECTION_POLICIES:
            raise K1Error(f"selection '{selection}' is unknown; known are: all, {', '.join(SELECTION_POLICIES)}")
        if not 0 < update_fraction <= 1:
            raise K1Error(f"update_fraction must be above 0 and at most 1, not {update_fraction}")
        parameter_groups = [dict(group) for group in parameter_groups]
        self._parameters = {name: parameter for group in parameter_groups for name, parameter in group["params"]}
        super().__init__(parameter_groups, **options)
        self._budget = budget_of(update_fraction, self._parameters)
        self._selection = "all" if update_fraction == 1 else selection
        self._generator = torch.Generator().manual_seed(seed)
        self._masks: dict[str, Tensor] | None = None

    @torch.no_grad()
    def step(self, closure=None):
        """One AdamW step on the selected parameters; returns what `closure` returns."""
        if self._selection == "all":
            return super().step(closure)
        before = {name: parameter.clone() for name, parameter in self._parameters.items()}
        loss = super().step(closure)
        # Selecting after the dense step lets a policy see this step's first moments.
        for name, mask in self._select().items():
            parameter = self._parameters[name]
            torch.where(mask, parameter, before[name], out=parameter.data)
        return loss

    def _select(self) -> dict[str, Tensor]:
        if self._masks is not None and self._selection in ONCE_PER_STAGE:
            return self._masks
        moments = {
            name: self.state[parameter].get("exp_avg", torch.zeros_like(parameter))
            for name, parameter in self._parameters.items()
        }
        self._masks = SELECTION_POLICIES[self._selection](self._parameters, moments, self._budget, self._generator)
        return self._masks
