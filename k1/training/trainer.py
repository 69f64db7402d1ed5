"""The training of one stage, which can be stepped; the arms differ only in sparse updates and rehearsal."""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import repeat

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.errors import Diverged, Interruption, K1Error
from k1.parallel import any_process, is_main_process, process_count, require_identical
from k1.rehearsal import Rehearsal
from k1.training.event_log import EventLog
from k1.training.history import History, changed_fraction, copy_parameters
from k1.training.losses import accumulate_gradients
from k1.training.optimization import build_optimizer, warmup_and_cosine
from k1.training.resume import START_ANEW, ResumeFile, identity_of


class StageTrainer:
    """Trains `model` in place on the training text of `dataset`, for `arguments.max_steps` steps.

    `rehearsal` takes the share `arguments.rehearsal` of each batch. `attach` is called with
    the optimizer, for methods that work by its hooks. `step` takes one step, `run` those
    that are left; `done` is the number of steps taken. With `load_state_dict` a training
    resumes, and ends with the same bits as one that was never stopped.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dataset: TokenizedDataset,
        arguments: Arguments,
        rehearsal: Rehearsal | None = None,
        attach: Callable[[torch.optim.Optimizer], object] | None = None,
    ) -> None:
        self.model, self.dataset, self.arguments, self.rehearsal = model, dataset, arguments, rehearsal
        self.optimizer = build_optimizer(model, arguments)
        if attach:
            attach(self.optimizer)
        self.history = History(arguments)
        self.done = 0
        # Of before the training, whatever state is loaded afterwards.
        self._start = copy_parameters(model) if arguments.forgetting_budget is not None else {}
        is_one = process_count() == 1
        self._parallel_model = model if is_one else DistributedDataParallel(model, forward_sync_buffers=False)
        self._begin()

    def _begin(self) -> None:
        """Set the schedule and the text to what comes after the `done` steps."""
        arguments = self.arguments
        self._schedule = warmup_and_cosine(self.optimizer, arguments.warmup_steps, arguments.max_steps, self.done)
        self._text = text_of_steps(self.dataset, arguments, self.rehearsal, self.done)

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to resume: plain values and the tensors themselves, which steps change."""
        return {
            "step": self.done, "history": self.history.entries, "losses": self.history.losses,
            "divergences": self.history.divergences, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rehearsed": {"sequences": self.rehearsal.sequences} if self.rehearsal else {},
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Resume after the steps of `state`, which is copied; raises `ValueError` if it does not fit the model."""
        kinds = [
            {name: (value.shape, value.dtype) for name, value in weights.items()}
            for weights in (self.model.state_dict(), state["model"])
        ]
        if state["step"] and not state["optimizer"]["state"]:
            raise ValueError("no moments")
        if kinds[0] != kinds[1] or not all(value.isfinite().all() for value in state["model"].values()):
            raise ValueError("other weights")
        self.model.load_state_dict(state["model"])
        # Steps change moments in place, and those of `state` stay as they are.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.rehearsal:
            self.rehearsal.restore(state["rehearsed"]["sequences"])
        self.history.resume(state)
        self.done = state["step"]
        self._begin()

    def step(self) -> tuple[float, float]:
        """Take the next step; returns its losses in nats per token, on new text and on rehearsed text (0 without).

        Raises `Diverged` if a loss or the gradient is not finite; the model is then as it was.
        """
        if self.rehearsal and self.rehearsal.is_due(self.done + 1):
            self.rehearsal.rewrite(self.model, self.done + 1)
        return self.optimize()

    def optimize(self) -> tuple[float, float]:
        """Take the next step with the sequences that the rehearsal has, see `step`."""
        losses = self._accumulate_finite_gradients(self.done + 1)
        self.optimizer.step()
        self._schedule.step()
        self.optimizer.zero_grad()
        self.done += 1
        return losses

    def _accumulate_finite_gradients(self, step: int) -> tuple[float, float]:
        self.model.train()
        arguments = self.arguments
        loss, divergence = accumulate_gradients(self._parallel_model, self._text, arguments, self.rehearsal)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), arguments.max_grad_norm)
        if not math.isfinite(loss + divergence) or not torch.isfinite(norm):
            raise Diverged(
                f"training on '{self.dataset.name}' diverged at step {step} (loss {loss:.3g}, gradient norm "
                f"{norm:.3g}); no checkpoint was written; lower --learning_rate from {arguments.learning_rate:g}"
            )
        return loss, divergence

    def run(
        self, resume_file: ResumeFile | None = None, event_log: EventLog | None = None, progress: bool = True
    ) -> list[dict]:
        """Take the steps that are left; returns the history, see `k1.training.history.History`.

        It resumes from the `resume_file`, if that has a state, and saves itself there while it runs, at the end, and
        before Ctrl-C or SIGTERM end it. `event_log` gets the history. With `arguments.forgetting_budget` the model
        keeps at the end the largest share of its change that stays within it.
        """
        identity = self._resume(resume_file) if resume_file else {}
        self.history.begin(event_log, self.done)
        bar = progress_bar(self.dataset.name, self.arguments, self.done, progress)
        try:
            # Whatever ends the loop, the bar is closed first, so that an error stands on a line of its own.
            with bar, Interruption() if resume_file else nullcontext() as interruption:
                for step in bar:
                    self._run_step(bar)
                    if resume_file:
                        if step == self.arguments.max_steps:  # no later step would notice that this one diverged
                            self._accumulate_finite_gradients(step)
                            self.optimizer.zero_grad()
                        self._save_or_stop(resume_file, identity, interruption)
        except Diverged:
            if resume_file:
                resume_file.remove()
            raise
        require_identical("moments", self.optimizer.state_dict())
        if self.rehearsal and self._start:
            share = self.rehearsal.keep_within(self.model, self._start, self.arguments.forgetting_budget)
            if is_main_process():
                print(f"kept {share:.0%} of the change of the stage", file=sys.stderr)
        return self.history.entries

    def _resume(self, resume_file: ResumeFile) -> dict:
        """Load the state that the file has of this training, if any; returns what identifies the training."""
        written = {str(number): text for number, text in enumerate(self.rehearsal.written if self.rehearsal else ())}
        identity = identity_of(self.arguments, self.dataset, {"model": self.model.state_dict(), "written": written})
        if state := resume_file.take(identity):
            try:
                self.load_state_dict(state)
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise K1Error(f"{resume_file.path} does not fit the model ({error!s:.100}); {START_ANEW}")
        return identity

    def _run_step(self, bar: tqdm) -> None:
        """Take a step and enter it into the history."""
        is_logged = self.history.is_due(self.done + 1)
        learning_rate = self._schedule.get_last_lr()[0]
        before = copy_parameters(self.model) if is_logged else None
        self.history.add_step(*self.step())
        if before:
            entry = self.history.add_entry(self.done, learning_rate, changed_fraction(before, self.model))
            bar.set_postfix_str(entry, refresh=False)

    def _save_or_stop(self, resume_file: ResumeFile, identity: dict, interruption: Interruption) -> None:
        """Write the resume file if it is due; if a signal has come, write it and raise what the signal stands for."""
        max_steps = self.arguments.max_steps
        is_stopped = any_process(interruption.requested is not None)
        if is_stopped or self.done == max_steps or resume_file.is_due(self.done):
            resume_file.save(identity, **self.state_dict())
        if is_stopped:
            place = f"step {self.done} of {max_steps}"
            interruption.end(f"stopped at {place}; the same command resumes from {resume_file.path}")


def text_of_steps(
    dataset: TokenizedDataset, arguments: Arguments, rehearsal: Rehearsal | None, done: int
) -> Iterator[tuple[Tensor, list[int]]]:
    """For each forward pass after the `done` steps: new sequences as token ids, and the numbers of rehearsed ones."""
    skipped = done * arguments.gradient_accumulation_steps
    batches = batches_of_blocks(dataset.blocks["train"], arguments.new_rows, arguments.stage_seed, skipped)
    if rehearsal is None:
        return zip(batches, repeat([]))
    return zip(batches, rehearsal.batches(skipped))


def progress_bar(name: str, arguments: Arguments, done: int, is_shown: bool) -> tqdm:
    """The steps of a stage that are still to do, as a bar on stderr of the main process."""
    return tqdm(
        range(done + 1, arguments.max_steps + 1),
        desc=f"stage {arguments.stage}: {name}",
        unit="step",
        initial=done,
        total=arguments.max_steps,
        file=sys.stderr,
        mininterval=1,
        disable=not (is_shown and is_main_process() and arguments.max_steps),
    )
