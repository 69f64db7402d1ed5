"""Whole training steps: contestants take turns in one process, and each shows its memory in a process of its own."""

import io
from contextlib import closing, redirect_stderr
from functools import partial

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from k1.benchmark.contestants import REFERENCE, Contestant, build
from k1.benchmark.memory import kept_bytes, resident_bytes, settled_bytes
from k1.benchmark.pacing import WARM_UP, Turnstile, alternate, ratios, spread
from k1.benchmark.setting import Setting


@torch.no_grad()
def held_out_loss(contestant: Contestant, input_ids: torch.Tensor) -> float:
    """The loss of a contestant on text that it does not train on, in nats per token."""
    return float(contestant.loss(input_ids))


def take_turn(turnstile: Turnstile, is_deterministic: bool) -> None:
    """One step of a contestant, under its own choice of algorithms."""
    torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
    turnstile.step()


def race(setting: Setting, names: list[str], rounds: int) -> dict[str, dict]:
    """Let the contestants `names`, the baseline among them, take `rounds` steps in turn.

    Returns for each `seconds` of every step, `tokens_per_second` and `time_ratio`
    (to the baseline's step in the same round), both with quartiles, `first_step`, the
    seconds of the one before all others, which may compile, `parameters`, and
    `losses`, on held-out text before and after, in nats per token.
    """
    setting.begin()
    # The progress bars of several loops at a time would overwrite each other.
    with redirect_stderr(io.StringIO()):
        contestants = {name: build(name, setting) for name in names}
        held_out = setting.held_out()
        losses = {name: [held_out_loss(contestant, held_out)] for name, contestant in contestants.items()}
        turnstiles = {name: Turnstile(contestant.loop) for name, contestant in contestants.items()}
        turns = {
            name: partial(take_turn, turnstile, contestants[name].is_deterministic)
            for name, turnstile in turnstiles.items()
        }
        first_steps = {name: values[0] for name, values in alternate(turns, rounds=1, warm_up=0).items()}
        seconds = alternate(turns, rounds, warm_up=WARM_UP - 1)
        for name, turnstile in turnstiles.items():
            turnstile.close()
            losses[name].append(held_out_loss(contestants[name], held_out))
    tokens = setting.arguments("baseline", 1).tokens_per_step
    time_ratios = ratios(seconds, REFERENCE)
    return {
        name: {
            "parameters": contestants[name].parameters,
            "tokens_per_second": spread([tokens / value for value in values]),
            "time_ratio": time_ratios[name],
            "first_step": first_steps[name],
            "losses": losses[name],
            "seconds": values,
        }
        for name, values in seconds.items()
    }


def memory(setting: Setting, name: str) -> dict:
    """What the contestant `name` needs, in a process that measures nothing else.

    `peak_bytes`: how far the memory of the process rises while the first steps are
    taken, the model included. `kept_bytes`: the tensors it keeps, see
    `k1.benchmark.memory.kept_bytes`, when the optimizer takes its last step.
    """
    setting.begin()
    setting.read()
    before, found = settled_bytes(), {}
    with redirect_stderr(io.StringIO()):
        contestant = build(name, setting)

        def look(optimizer: Optimizer, *_) -> None:
            found.update(kept_bytes(contestant.model, optimizer, contestant.teacher))

        settled_bytes()
        with register_optimizer_step_pre_hook(look), closing(Turnstile(contestant.loop)) as turnstile:
            for _ in range(WARM_UP + 1):
                turnstile.step()
            peak = resident_bytes("VmHWM") - before
    return {"peak_bytes": peak, "kept_bytes": found}
