"""The history of a stage: its losses, its learning rates, and which parameters its steps changed."""

import time

from torch import Tensor
from transformers import PreTrainedModel

from k1.arguments import Arguments
from k1.model import count_parameters
from k1.training.event_log import EventLog

LOGGED_STEPS = 50


class History:
    """The log of a stage: about 50 `entries`, and `losses` and `divergences` of the steps since the last one.

    An entry has `step`, `loss` (of new text) and `divergence` (on rehearsed text;
    both in nats per token, mean since the last entry), `learning_rate`,
    `updated_fraction` (share of all parameters whose bits this step changed, by
    comparing them before and after) and `tokens_per_second`.
    `old` is the saved state of a training that was stopped, which the log goes on
    from. `event_log` gets every new entry.
    """

    def __init__(self, arguments: Arguments, old: dict | None, event_log: EventLog | None = None) -> None:
        self.entries: list[dict] = old["history"] if old else []
        self.losses: list[float] = old["losses"] if old else []
        self.divergences: list[float] = old["divergences"] if old else []
        self._max_steps = arguments.max_steps
        self._tokens_per_step = arguments.tokens_per_step
        self._event_log = event_log
        if event_log:
            event_log.begin(old["step"] if old else 0)
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._started, self._steps = time.perf_counter(), 0

    def is_due(self, step: int) -> bool:
        """Whether `step` gets an entry."""
        return step % max(1, self._max_steps // LOGGED_STEPS) == 0 or step == self._max_steps

    def add_step(self, loss: float, divergence: float) -> None:
        """Take in the losses of a step, in nats per token."""
        self.losses.append(loss)
        self.divergences.append(divergence)
        self._steps += 1

    def add_entry(self, step: int, learning_rate: float, updated_fraction: float) -> str:
        """Add the entry of `step`, see `changed_fraction`; returns it in short, for the progress bar."""
        entry = {
            "step": step,
            "loss": sum(self.losses) / len(self.losses),
            "divergence": sum(self.divergences) / len(self.divergences),
            "learning_rate": learning_rate,
            "updated_fraction": updated_fraction,
            "tokens_per_second": self._steps * self._tokens_per_step / (time.perf_counter() - self._started),
        }
        self.entries.append(entry)
        if self._event_log:
            self._event_log.add_entry(entry)
        self.losses, self.divergences = [], []
        self._begin_interval()
        return f"loss {entry['loss']:.3f}, {entry['tokens_per_second']:,.0f} tokens/s"


def copy_parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every parameter, to compare with later."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed_fraction(before: dict[str, Tensor], model: PreTrainedModel) -> float:
    """The share of all parameters that differ from the copies."""
    changed = sum(int((before[name] != parameter).sum()) for name, parameter in model.named_parameters())
    return changed / count_parameters(model)
