"""The training of one stage, which can be stepped; the arms differ only in sparse updates and rehearsal."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from itertools import repeat

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import PreTrainedModel, get_cosine_with_min_lr_schedule_with_warmup

from k1.checkpoints import ResumeFile, identity_of
from k1.config import Arguments
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.errors import Diverged, Interruption, K1Error
from k1.files import content_digest
from k1.model import count_parameters
from k1.parallel import any_process, is_main_process, process_count, require_identical, share_of, sum_over_processes
from k1.rehearsal import Rehearsal, divergence_from
from k1.sparse import sparse_updates
from k1.training.event_log import EventLog

LOGGED_STEPS = 50
# Near zero, float32 rounds most updates away, and a step would change far fewer parameters than were chosen.
FINAL_LEARNING_RATE_SHARE = 0.1
IGNORED = -100  # the label of a position without a loss, as transformers has it


class StageTrainer:
    """Trains `model` in place on the training text of `dataset`, for `arguments.max_steps` steps.

    `rehearsal` takes the share `arguments.rehearsal` of each batch. `attach` is called with
    the optimizer, for methods that work by its hooks. `step` takes one step, `run` those
    that are left; `done` is the number of steps taken. With `load_state_dict` a training
    resumes, and ends with the same bits as one that was never stopped.

    `history` has an entry for about 50 of the steps that `run` takes: `step`, `loss` (of new
    text) and `divergence` (on rehearsed text; both in nats per token, mean since the last
    entry), `learning_rate`, `updated_fraction` (share of all parameters whose bits this step
    changed, by comparing them before and after) and `tokens_per_second`; `losses` has both
    losses of each step since the last entry.
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
        self.history: list[dict] = []
        self.losses: list[tuple[float, float]] = []
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
        passes = self.done * arguments.gradient_accumulation_steps
        new = batches_of_blocks(self.dataset.blocks["train"], arguments.new_rows, arguments.stage_seed, passes)
        self._text = zip(new, self.rehearsal.batches(passes) if self.rehearsal else repeat([]))

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to resume: plain values and the tensors themselves, which steps change."""
        return {
            "step": self.done, "history": self.history, "losses": self.losses, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rehearsed": self.rehearsal.sequences if self.rehearsal else None,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Resume after the steps of `state`, which is copied."""
        self.model.load_state_dict(state["model"])
        # Steps change moments in place, and those of `state` stay as they are.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.rehearsal:
            self.rehearsal.restore(state["rehearsed"])
        self.history, self.losses, self.done = [*state["history"]], [*state["losses"]], state["step"]
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
        """Take the steps that are left; returns the `history`.

        It resumes from the `resume_file`, if that has a state, and saves itself there while it runs, at the end, and
        before Ctrl-C or SIGTERM end it. `event_log` gets the history. With `arguments.forgetting_budget` the model
        keeps at the end the largest share of its change that stays within it.
        """
        arguments, last = self.arguments, self.arguments.max_steps
        if resume_file:
            # What must be the same to resume: the stage, its processes, and what it starts from.
            start = {"model": self.model.state_dict(), "written": self.rehearsal.written if self.rehearsal else []}
            own = {"processes": process_count(), "starting state": content_digest(start)}
            if state := resume_file.take(identity_of(arguments, self.dataset) | own):
                self.load_state_dict(state)
        if event_log:
            event_log.begin(self.done)
        bar = tqdm(
            range(self.done + 1, last + 1), desc=f"stage {arguments.stage}: {self.dataset.name}", unit="step",
            initial=self.done, total=last, file=sys.stderr, mininterval=1,
            disable=not (progress and is_main_process() and last),
        )  # fmt: skip
        first, started = self.done, time.perf_counter()
        try:
            # Whatever ends the loop, the bar is closed first, so that an error stands on a line of its own.
            with bar, Interruption() if resume_file else nullcontext() as interruption:
                for step in bar:
                    is_logged = step % max(1, last // LOGGED_STEPS) == 0 or step == last
                    before = copy_parameters(self.model) if is_logged else {}
                    learning_rate = self._schedule.get_last_lr()[0]
                    self.losses.append(self.step())
                    if is_logged:
                        speed = (step - first) * arguments.tokens_per_step / (time.perf_counter() - started)
                        loss, divergence = (sum(values) / len(values) for values in zip(*self.losses))
                        entry = {
                            "step": step, "loss": loss, "divergence": divergence, "learning_rate": learning_rate,
                            "updated_fraction": changed_fraction(before, self.model), "tokens_per_second": speed,
                        }  # fmt: skip
                        self.losses = []
                        self.history.append(entry)
                        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
                        if event_log:
                            event_log.add_entry(entry)
                        first, started = step, time.perf_counter()
                    if resume_file and interruption:
                        self._save_or_stop(resume_file, interruption)
        except Diverged:
            if resume_file:
                resume_file.remove(arguments)
            raise
        require_identical("moments", self.optimizer.state_dict())
        if self.rehearsal and arguments.forgetting_budget is not None:
            share = self.rehearsal.keep_within(self.model, self._start, arguments.forgetting_budget)
            if is_main_process():
                print(f"kept {share:.0%} of the change of the stage", file=sys.stderr)
        return self.history

    def _save_or_stop(self, resume_file: ResumeFile, interruption: Interruption) -> None:
        """Write the resume file if it is due; if a signal has come, write it and raise what the signal stands for."""
        last = self.arguments.max_steps
        if self.done == last:  # no later step would notice that this one diverged
            self._accumulate_finite_gradients(last)
            self.optimizer.zero_grad()
        is_stopped = any_process(interruption.requested is not None)
        if is_stopped or self.done == last or resume_file.is_due(self.done):
            resume_file.save(self.state_dict())
        if is_stopped:
            place = f"step {self.done} of {last}"
            interruption.end(f"stopped at {place}; the same command resumes from {resume_file.path}")


def build_optimizer(model: PreTrainedModel, arguments: Arguments) -> torch.optim.AdamW:
    """AdamW over all parameters, with the sparse updates of `arguments`; weight decay acts on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, others = ([item for item in trained if (item.dim() >= 2) == is_matrix] for is_matrix in (True, False))
    groups = [
        {"params": parameters, "weight_decay": weight_decay}
        for parameters, weight_decay in ((matrices, arguments.weight_decay), (others, 0.0))
        if parameters
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95), fused=True)
    if arguments.update_fraction < 1:
        sparse_updates(optimizer, arguments.update_fraction, arguments.stage_seed, arguments.policy)
    return optimizer


def warmup_and_cosine(optimizer: torch.optim.Optimizer, warmup_steps: int, max_steps: int, done: int = 0):
    """Linear warm-up, then cosine decay to a tenth of the peak, over `max_steps` steps of which some are `done`."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    # transformers' schedule begins with a step at zero; starting at its second point skips that.
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup_steps + 1, max_steps + 1, last_epoch=done, min_lr_rate=FINAL_LEARNING_RATE_SHARE
    )


def accumulate_gradients(
    model: torch.nn.Module,
    text: Iterator[tuple[Tensor, list[int]]],
    arguments: Arguments,
    rehearsal: Rehearsal | None = None,
) -> tuple[float, float]:
    """Add the gradients of one optimizer step's forward passes; returns their mean losses in nats per token.

    The first is that of the new text, the second the divergence on the rehearsed
    sequences, 0 without. Of each forward pass `text` has the new sequences as token ids, and the
    numbers of the rehearsed ones. Of several processes each takes its rows of every batch, and
    all end with the gradients of the whole batch.
    """
    totals, passes = torch.zeros(2, dtype=torch.float64), arguments.gradient_accumulation_steps
    summed_losses_of = compiled_losses if arguments.compile else summed_losses
    for number in range(1, passes + 1):
        new, old = next(text)
        mine, mine_old = share_of(new.to(arguments.device)), share_of(old)
        tokens = mine if rehearsal is None else torch.cat([mine, rehearsal.sequences[mine_old]])
        # Gradients are exchanged once a step, not with every batch.
        with model.no_sync() if isinstance(model, DistributedDataParallel) and number < passes else nullcontext():
            teacher = rehearsal.teacher if rehearsal else None
            loss, divergence = summed_losses_of(model, teacher, tokens, len(mine), arguments.precision)
            # DistributedDataParallel takes the mean over processes, of which each has the sums of its own rows.
            share, positions = process_count() / passes, tokens.shape[1] - 1
            loss = loss * share / (len(new) * positions)
            divergence = divergence * share / (max(1, len(old)) * positions)
            (loss + arguments.rehearsal_weight * divergence).backward()
        totals += torch.stack([loss, divergence]).detach().cpu()
    sum_over_processes(totals)
    loss, divergence = (totals / process_count()).tolist()
    return loss, divergence


def summed_losses(
    model: torch.nn.Module, teacher: PreTrainedModel | None, tokens: Tensor, new: int, precision: str
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of `model` on the first `new` rows of `tokens`, and its divergence from `teacher` on the rest.

    `tokens` are ids, (rows, length); both are sums over rows and positions, in nats, the second 0 without a teacher.
    """
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(input_ids=tokens).logits.float()
        divergence = divergence_from(teacher, tokens[new:], logits[new:]) if teacher else logits.new_zeros(())
    return next_token_loss(logits[:new], tokens[:new]), divergence


def next_token_loss(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Summed cross-entropy in nats of `logits`, (rows, length, vocabulary), on the token after each of `input_ids`."""
    # The last position has nothing to predict; to slice it off would copy all logits, and their gradient.
    targets = functional.pad(input_ids[:, 1:], (0, 1), value=IGNORED)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED)


@cache
def compiled() -> Callable:
    """`summed_losses` as torch.compile makes it for every kind of model and shape of batch."""
    # Anything that cannot be compiled is an error: half of it left as it was would be other bits.
    return torch.compile(summed_losses, fullgraph=True, dynamic=False)


def compiled_losses(*inputs: object) -> tuple[Tensor, Tensor]:
    """As `summed_losses`, compiled; raises `K1Error` if that cannot be."""
    try:
        return compiled()(*inputs)
    except TorchDynamoException as error:
        reason = next(iter(str(error).splitlines()), "")
        raise K1Error(f"--compile does not work here ({reason:.200}); it needs a C++ compiler (g++); leave it out")


def copy_parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every parameter, to compare with later."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed_fraction(before: dict[str, Tensor], model: PreTrainedModel) -> float:
    """The share of all parameters that differ from the copies."""
    changed = sum(int((before[name] != parameter).sum()) for name, parameter in model.named_parameters())
    return changed / count_parameters(model)
