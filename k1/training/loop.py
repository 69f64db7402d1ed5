"""The training loop of one stage; the arms differ only in sparse updates and rehearsal."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import repeat
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import PreTrainedModel

from k1.arguments import Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.errors import Interruption, K1Error
from k1.parallel import any_process, is_main_process, process_count, require_identical
from k1.rehearsal import Rehearsal
from k1.training.event_log import EventLog
from k1.training.history import History, changed_fraction, copy_parameters
from k1.training.losses import accumulate_gradients
from k1.training.optimization import build_optimizer, warmup_and_cosine
from k1.training.resume import START_ANEW, ResumeFile, identity_of


def train(
    model: PreTrainedModel,
    dataset: TokenizedDataset,
    arguments: Arguments,
    rehearsal: Rehearsal | None = None,
    resume_file: ResumeFile | None = None,
    event_log: EventLog | None = None,
    attach: Callable[[torch.optim.Optimizer], object] | None = None,
) -> list[dict]:
    """Train `model` in place on the training text of `dataset` for `arguments.max_steps` steps.

    `rehearsal` takes the share `arguments.rehearsal` of each batch. With
    `arguments.forgetting_budget` the model keeps at the end the largest share of its change that stays within it.

    With a `resume_file` the training goes on from it, saves itself there while it runs, at the end and before Ctrl-C
    or SIGTERM end it, and comes out with the same bits as one that was never stopped. `event_log` gets the history.
    `attach` is called with the optimizer, for methods that work by its hooks.

    Returns the history (`k1.training.history.History`); raises `K1Error` when loss or gradient is no longer finite.
    """
    model.train()
    optimizer = build_optimizer(model, arguments)
    if attach:
        attach(optimizer)
    start = copy_parameters(model) if arguments.forgetting_budget is not None else {}
    identity, old = begin_or_resume(resume_file, arguments, dataset, model, rehearsal)
    if old:
        restore(model, optimizer, rehearsal, old, resume_file)
    done = old["step"] if old else 0
    history = History(arguments, old, event_log)
    schedule = warmup_and_cosine(optimizer, arguments.warmup_steps, arguments.max_steps, done)
    parallel_model = DistributedDataParallel(model, forward_sync_buffers=False) if process_count() > 1 else model
    text = text_of_steps(dataset, arguments, rehearsal, done)
    gradients = partial(finite_gradients, parallel_model, text, dataset.name, arguments, rehearsal, resume_file)
    progress = progress_bar(dataset.name, arguments, done)
    # Whatever ends the loop, the bar is closed first, so that an error stands on a line of its own.
    with progress, Interruption() if resume_file else nullcontext() as interruption:
        for step in progress:
            if rehearsal and rehearsal.is_due(step):
                rehearsal.rewrite(model, step)
            loss, drift = gradients(step)
            learning_rate = schedule.get_last_lr()[0]
            before = copy_parameters(model) if history.is_due(step) else None
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            history.add_step(loss, drift)
            if before:
                entry = history.add_entry(step, learning_rate, changed_fraction(before, model))
                progress.set_postfix_str(entry, refresh=False)
            if resume_file:
                if step == arguments.max_steps:  # no later step would notice that this one diverged
                    gradients(step)
                    optimizer.zero_grad()
                save_or_stop(resume_file, identity, step, history, model, optimizer, rehearsal, interruption)
    require_identical("moments", optimizer.state_dict())
    if rehearsal and start:
        share = rehearsal.keep_within(model, start, arguments.forgetting_budget)
        if is_main_process():
            print(f"kept {share:.0%} of the change of the stage", file=sys.stderr)
    return history.entries


def begin_or_resume(
    resume_file: ResumeFile | None,
    arguments: Arguments,
    dataset: TokenizedDataset,
    model: PreTrainedModel,
    rehearsal: Rehearsal | None,
) -> tuple[dict, dict | None]:
    """What identifies the training, and the saved state that it goes on from, None where it begins anew."""
    if resume_file is None:
        return {}, None
    written = {str(number): text for number, text in enumerate(rehearsal.written if rehearsal else ())}
    identity = identity_of(arguments, dataset, {"model": model.state_dict(), "written": written})
    return identity, resume_file.take(identity)


def text_of_steps(
    dataset: TokenizedDataset, arguments: Arguments, rehearsal: Rehearsal | None, done: int
) -> Iterator[tuple[Tensor, list[int]]]:
    """For each forward pass after the `done` steps: new sequences as token ids, and the numbers of rehearsed ones."""
    skipped = done * arguments.gradient_accumulation_steps
    batches = batches_of_blocks(dataset.blocks["train"], arguments.new_rows, arguments.stage_seed, skipped)
    if rehearsal is None:
        return zip(batches, repeat([]))
    return zip(batches, rehearsal.batches(skipped))


def finite_gradients(
    model: torch.nn.Module,
    text: Iterator[tuple[Tensor, list[int]]],
    name: str,
    arguments: Arguments,
    rehearsal: Rehearsal | None,
    resume_file: ResumeFile | None,
    step: int,
) -> tuple[float, float]:
    """Add the clipped gradients of a step and return its two losses; gives up where they are not finite."""
    loss, drift = accumulate_gradients(model, text, arguments, rehearsal)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
    if not math.isfinite(loss + drift) or not torch.isfinite(norm):
        give_up(step, loss, float(norm), name, arguments, resume_file)
    return loss, drift


def give_up(
    step: int, loss: float, norm: float, name: str, arguments: Arguments, resume_file: ResumeFile | None
) -> NoReturn:
    """Remove the resume file and raise `K1Error`: the loss or the norm of the gradient is no longer finite."""
    if resume_file:
        resume_file.remove()
    raise K1Error(
        f"training on '{name}' diverged at step {step} (loss {loss:.3g}, gradient norm "
        f"{norm:.3g}); no checkpoint was written; lower --learning_rate from {arguments.learning_rate:g}"
    )


def progress_bar(name: str, arguments: Arguments, done: int) -> tqdm:
    """The steps of a stage that are still to do, as a bar on stderr of the main process."""
    return tqdm(
        range(done + 1, arguments.max_steps + 1),
        desc=f"stage {arguments.stage}: {name}",
        unit="step",
        initial=done,
        total=arguments.max_steps,
        file=sys.stderr,
        mininterval=1,
        disable=not is_main_process() or not arguments.max_steps,
    )


def save_or_stop(
    resume_file: ResumeFile,
    identity: dict,
    step: int,
    history: History,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rehearsal: Rehearsal | None,
    interruption: Interruption,
) -> None:
    """Write the resume file where it is due; where a signal has come, write it and raise what the signal stands for."""
    max_steps = identity["arguments"]["max_steps"]
    is_stopped = any_process(interruption.requested is not None)
    if is_stopped or step == max_steps or resume_file.is_due(step):
        resume_file.save(
            identity, step=step, history=history.entries, losses=history.losses, divergences=history.divergences,
            model=model.state_dict(), optimizer=optimizer.state_dict(),
            rehearsed={"sequences": rehearsal.sequences} if rehearsal else {},
        )  # fmt: skip
    if is_stopped:
        place = f"step {step} of {max_steps}"
        interruption.end(f"stopped at {place}; the same command goes on from {resume_file.path}")


def restore(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rehearsal: Rehearsal | None,
    old: dict,
    resume_file: ResumeFile,
) -> None:
    """Put the state of a training that was stopped back; raises `K1Error` where it does not fit."""
    try:
        kinds = [
            {name: (value.shape, value.dtype) for name, value in state.items()}
            for state in (model.state_dict(), old["model"])
        ]
        if not old["optimizer"]["state"]:
            raise ValueError("no moments")
        if kinds[0] != kinds[1] or not all(value.isfinite().all() for value in old["model"].values()):
            raise ValueError("other weights")
        model.load_state_dict(old["model"])
        optimizer.load_state_dict(old["optimizer"])
        if rehearsal:
            rehearsal.restore(old["rehearsed"]["sequences"])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise K1Error(f"{resume_file.path} does not fit the model ({error!s:.100}); {START_ANEW}")
