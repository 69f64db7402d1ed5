"""SparseAdamW: AdamW that changes only selected parameters and holds the important ones near where a stage began."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from k1.errors import K1Error
from k1.sparse.error_feedback import apply_largest
from k1.sparse.selection import (
    BY_MOMENTS, ONCE_PER_STAGE, SELECTION_POLICIES, Evidence, Tensors, budget_of, mean_element,
)  # fmt: skip
from k1.sparse.threshold import pieces

SELECTIONS = ("all", "error_feedback", *SELECTION_POLICIES)


def consolidation_strength(consolidation: float, importance: Tensors, responsibility: Tensors) -> float:
    """lambda = consolidation x sqrt(mean(rho)) / mean(Omega), for importance Omega and responsibility rho.

    So a parameter of mean importance that has moved by 1 / consolidation is
    pulled back as strongly as the new dataset's gradients pull at the start of
    its stage (root mean square), whatever the model and however many datasets
    Omega is summed over. Zero where nothing is important.
    """
    mean_importance = mean_element(importance)
    return consolidation * math.sqrt(mean_element(responsibility)) / mean_importance if mean_importance else 0.0


class SparseAdamW(torch.optim.AdamW):
    """AdamW (arXiv:1711.05101) that moves an exact share of all parameters and leaves every other one bit-identical.

    Adam's moments follow the gradients of all parameters, so that one which is
    selected later starts from up-to-date moments; the step itself, weight decay
    included, reaches only those that the policy `selection` chose. With
    `selection="all"` or `update_fraction=1` it is `torch.optim.AdamW`.

    Consolidation (EWC, arXiv:1612.00796) adds lambda x importance x (parameter -
    its value at the start) to each gradient, see `consolidation_strength`.

    Args:
        parameter_groups: as for `torch.optim.AdamW`, with names: `model.named_parameters()`,
            or dictionaries whose `params` is a list of (name, parameter).
        selection: `all`, `error_feedback` (see `k1.sparse.error_feedback`), or a key of
            `k1.sparse.selection.SELECTION_POLICIES`.
        update_fraction: share of all parameters that a step may change, in (0, 1].
        seed: of the generator handed to the policy.
        importance: Omega, parameter name -> tensor of its shape, 0 or more; None is 0 everywhere.
        responsibility: rho, likewise; what the policy `gain` and consolidation need besides Omega.
        gain_floor: kappa of the policy `gain`.
        consolidation: strength of consolidation, 0 or more.
        **options: options of `torch.optim.AdamW`.

    Raises `K1Error` for a policy that is unknown or lacks what it selects by.
    """

    def __init__(
        self,
        parameter_groups: Iterable[dict] | Iterable[tuple[str, Tensor]],
        selection: str = "all",
        update_fraction: float = 1.0,
        seed: int = 0,
        importance: dict[str, Tensor] | None = None,
        responsibility: dict[str, Tensor] | None = None,
        gain_floor: float = 0.0,
        consolidation: float = 0.0,
        **options,
    ) -> None:
        if selection not in SELECTIONS:
            raise K1Error(f"selection '{selection}' is unknown; known are: {', '.join(SELECTIONS)}")
        if not 0 < update_fraction <= 1:
            raise K1Error(f"update_fraction must be above 0 and at most 1, not {update_fraction}")
        if selection == "gain" and (importance is None or responsibility is None):
            raise K1Error("selection 'gain' needs a stage before this one, whose importance it weighs; choose another")
        parameter_groups = list(parameter_groups)
        if parameter_groups and not isinstance(parameter_groups[0], dict):
            parameter_groups = [{"params": [(name, p) for name, p in parameter_groups if p.requires_grad]}]
        parameter_groups = [dict(group) for group in parameter_groups]
        self._parameters = {name: parameter for group in parameter_groups for name, parameter in group["params"]}
        super().__init__(parameter_groups, **options)
        self._selection = "all" if update_fraction == 1 else selection
        self.evidence = Evidence(
            parameters=self._parameters,
            budget=budget_of(update_fraction, self._parameters),
            generator=torch.Generator().manual_seed(seed),
            importance=importance or {},
            # Consolidation needs its mean alone.
            responsibility=(responsibility or {}) if self._selection == "gain" else {},
            gain_floor=gain_floor,
        )
        self._pending_updates: Tensors = {}
        if self._selection == "error_feedback":
            self._pending_updates = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._masks: Tensors | None = None
        self._lambda = 0.0
        # The values at the start of the stage, where they are needed.
        self.start: Tensors = {}
        if consolidation and importance and responsibility:
            self._lambda = consolidation_strength(consolidation, importance, responsibility)
        if self._lambda or self._selection in ONCE_PER_STAGE:
            self.start = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def step(self, closure=None):
        """One AdamW step on the selected parameters; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, parameter in self._parameters.items() if self._lambda else ():
            if parameter.grad is not None:
                of_parameter = parameter.grad, self.evidence.importance[name], parameter.data, self.start[name]
                for gradient, importance, value, start in pieces(*of_parameter):
                    gradient.addcmul_(importance, value - start, value=self._lambda)
        if self._selection == "all":
            super().step()
        elif self._selection == "error_feedback":
            self._step_pending_updates()
        elif self._selection in ONCE_PER_STAGE:
            super().step()
            # What is not selected keeps the bits that it had when the stage began.
            self._keep(self.start)
        else:
            before = {name: parameter.clone() for name, parameter in self._parameters.items()}
            super().step()
            # Selecting after the dense step lets a policy see this step's moments.
            self._keep(before)
        return loss

    def _keep(self, before: Tensors) -> None:
        """Give all parameters but the selected ones the values of `before`."""
        for name, mask in self._select().items():
            parameter = self._parameters[name]
            torch.where(mask, parameter, before[name], out=parameter.data)

    def _step_pending_updates(self) -> None:
        """Let AdamW step the pending updates in place of the parameters, and the selected ones take effect."""
        pending, values = self._pending_updates, {}
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                for name, parameter in zip(group["param_names"], group["params"]):
                    # Decay is that of the parameter, not of its pending update.
                    if parameter.grad is not None and group["weight_decay"]:
                        pending[name].add_(parameter, alpha=-group["lr"] * group["weight_decay"])
                    values[name], parameter.data = parameter.data, pending[name]
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for name, value in values.items():
                self._parameters[name].data = value
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay
        apply_largest(self._parameters, pending, self.evidence.budget)

    def _select(self) -> Tensors:
        if self._masks is not None and self._selection in ONCE_PER_STAGE:
            return self._masks
        if self._selection in BY_MOMENTS:
            # A parameter that never had a gradient has none.
            self.evidence.first_moments = {
                name: self.state[parameter]["exp_avg"] if self.state[parameter] else torch.zeros_like(parameter)
                for name, parameter in self._parameters.items()
            }
        self._masks = SELECTION_POLICIES[self._selection](self.evidence)
        return self._masks

    def state_dict(self) -> dict:
        """As of `torch.optim.AdamW`, with what the selection goes on from under `selection`."""
        selection = {
            "masks": self._masks if self._selection in ONCE_PER_STAGE else None,
            "pending_updates": self._pending_updates,
            "generator": self.evidence.generator.get_state(),
        }
        return {**super().state_dict(), "selection": selection}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from `state_dict`; raises `ValueError` or `LookupError` where it is of other parameters."""
        saved = state_dict["selection"]
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        for tensors in (saved["masks"] or {}, saved["pending_updates"]):
            if tensors and {name: value.shape for name, value in tensors.items()} != shapes:
                raise ValueError("a selection of other parameters")
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        # Before its first step an optimizer has no moments yet.
        for parameter in self._parameters.values() if state_dict["state"] else ():
            if any(self.state[parameter][moment].shape != parameter.shape for moment in ("exp_avg", "exp_avg_sq")):
                raise ValueError("moments of other parameters")
        self._masks = saved["masks"] and {n: mask.to(self._parameters[n].device) for n, mask in saved["masks"].items()}
        for name, pending in self._pending_updates.items():
            pending.copy_(saved["pending_updates"][name])
        self.evidence.generator.set_state(saved["generator"].cpu())
