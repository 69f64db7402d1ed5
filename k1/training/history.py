"""The history of a stage: its losses, its learning rates, and which parameters its steps changed."""

import time

from torch import Tensor
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.model import count_parameters
from k1.training.event_log import EventLog

LOGGED_STEPS = 50


class History:
    """The log of a stage: about 50 `entries`, and `losses` and `divergences` of the steps since the last one.

    An entry has `step`, `loss` (of new text) and `divergence` (on rehearsed text;
    both in nats per token, mean since the last entry), `learning_rate`,
    `updated_fraction` (share of all parameters whose bits this step changed, by
    comparing them before and after) and `tokens_per_second`.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.entries: list[dict] = []
        self.losses: list[float] = []
        self.divergences: list[float] = []
        self._max_steps = arguments.max_steps
        self._tokens_per_step = arguments.tokens_per_step
        self._event_log: EventLog | None = None
        self._begin_interval()

    def resume(self, state: dict) -> None:
        """Continue the log of a training that was stopped, see `StageTrainer.state_dict`."""
        self.entries, self.losses, self.divergences = [*state["history"]], [*state["losses"]], [*state["divergences"]]

    def begin(self, event_log: EventLog | None, done: int) -> None:
        """From now on give every new entry to `event_log`, after the `done` steps that it may have already."""
        self._event_log = event_log
        if event_log:
            event_log.begin(done)
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
