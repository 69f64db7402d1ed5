"""K-1 in the training of others: a callback for the `Trainer` of transformers, and those that are built on it."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from k1.errors import K1Error
from k1.known import texts_of
from k1.parallel import is_main_process
from k1.rehearsal import REHEARSAL_WEIGHT, Rehearsal
from k1.sparse import UPDATE_FRACTION, SparseUpdates, check_settings, require_whole, sparse_updates
from k1.teacher import in_mode

REHEARSED_SHARE = 4  # one rehearsed sequence for so many new ones
SAMPLE = 32  # sequences of each text that the report measures
INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "labels")
# What `accelerate launch` tells its processes, and the Trainer's arguments do not say.
PRECISION = "ACCELERATE_MIXED_PRECISION"
UNFIT = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_DEEPSPEED": "true", PRECISION: "fp16"}
WRITTEN_FILE, SETTINGS_FILE = "written.safetensors", "settings.json"


class K1Callback(TrainerCallback):
    """Sparse updates and rehearsal in a `Trainer`, so that its model keeps what it knows while it learns.

    As the Trainer is made, the model writes what it will rehearse (see `Rehearsal` for
    `known`, `written` and the settings that are not named here), and its teacher is kept.
    Before an optimizer step the gradient of `weight` x the mean divergence, in nats per
    token, on `rows` rehearsed sequences is added; by default that is a quarter of what a
    step reads, in each process. That is done in one step of `every`. The Trainer adds its
    own loss, clips both together and steps, and `fraction` of the parameters may change, by
    `policy` (see `sparse_updates`; 1 leaves them out). At the end the model keeps the
    largest share of its change whose predicted forgetting is at most `forgetting_budget`,
    in nats per token. Seeds are the Trainer's.

    The log has the `divergence`, and at the end `predicted_forgetting` and seconds.
    A training that resumes from a checkpoint, in a Trainer made as the first, ends with the
    same bits as one that was never stopped. Raises `K1Error` for settings that cannot be
    or do nothing, and for fp16, FSDP and DeepSpeed.
    """

    def __init__(
        self,
        known: Iterable | None = None,
        written: Sequence[Tensor] = (),
        *,
        fraction: float = UPDATE_FRACTION,
        policy: str | None = None,
        weight: float = REHEARSAL_WEIGHT,
        sequences: int = 128,
        length: int | None = None,
        rows: int | None = None,
        interval: int = 50,
        every: int = 1,
        forgetting_budget: float | None = None,
        teacher_dtype: torch.dtype | None = None,
        teacher_device: torch.device | str | None = None,
    ) -> None:
        check_settings(fraction, policy or "windows")
        if policy and fraction == 1:
            raise K1Error(f"policy '{policy}' does nothing with fraction 1; leave one of them out")
        if not weight > 0:
            raise K1Error(f"weight must be above 0, not {weight}; k1.sparse_updates(optimizer) works without rehearsal")
        if every < 1:
            raise K1Error(f"every must be at least 1 step, not {every}")
        if forgetting_budget is not None and not forgetting_budget >= 0:
            raise K1Error(f"forgetting_budget must be at least 0 nats per token, not {forgetting_budget}")
        self.known, self.written = known, written
        self.fraction, self.policy, self.weight, self.budget = fraction, policy, weight, forgetting_budget
        self.every = every
        self.settings: dict[str, Any] = {"sequences": sequences, "length": length, "rows": rows, "interval": interval}
        self.teacher: dict[str, Any] = {"teacher_dtype": teacher_dtype, "teacher_device": teacher_device}
        self.results: dict | None = None
        self._rehearsal: Rehearsal | None = None
        self._sparse: SparseUpdates | None = None
        self._divergences: list[float] = []

    @property
    def rehearsal(self) -> Rehearsal:
        """What is rehearsed; raises `K1Error` before the callback is given to a Trainer."""
        if self._rehearsal is None:
            raise K1Error("there is nothing to rehearse or to save before the callback is given to a Trainer")
        return self._rehearsal

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Let the model as it is now, before any checkpoint is loaded, write what it will rehearse."""
        model: PreTrainedModel = others["model"]
        is_unfit = any(os.environ.get(name, "").lower() == value for name, value in UNFIT.items())
        if args.fp16 or args.fsdp or args.deepspeed or is_unfit:
            raise K1Error("K1Callback fits no fp16, FSDP and DeepSpeed; train with bf16=True, in one process or DDP")
        started = time.perf_counter()
        quarter = max(1, args.train_batch_size * args.gradient_accumulation_steps // REHEARSED_SHARE)
        settings = {**self.settings, **self.teacher}
        if settings["rows"] is None:
            settings["rows"] = quarter
        # A rehearsal counts the steps that rehearse alone.
        settings["interval"] = math.ceil(settings["interval"] / self.every)
        known, self._sample = self.known, []
        if known is not None:
            texts = texts_of(known, others.get("processing_class"), args.seed)
            self._sample = list(islice(texts, SAMPLE))
            known = chain(self._sample, texts)
        with autocast(args, model):
            self._rehearsal = Rehearsal(model, known, self.written, seed=args.seed, **settings)
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        self._start = {} if self.budget is None else {name: value.detach().clone() for name, value in trained}
        self._seconds = {"writing": time.perf_counter() - started, "rehearsing": 0.0}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Begin, or resume, with sequences that the model as it is now writes."""
        if self._rehearsal is None:
            if state.global_step:
                raise K1Error(
                    "to resume, give the callback to the Trainer as it is made: Trainer(..., callbacks=[...])"
                )
            self.on_init_end(args, state, control, **others)
        require_whole(others["model"].parameters())
        self._divergences.clear()
        # The Trainer calls its own reporters first, which would not see what `on_log` adds to the log.
        self._handler = sys._getframe(1).f_locals.get("self")
        if isinstance(self._handler, CallbackHandler):
            self._handler.callbacks.sort(key=lambda callback: callback is not self)
        self.rehearsal.discard()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Attach the sparse updates to the optimizer, for this step alone: a training may be stopped after any."""
        self._detach()
        if self.fraction < 1:
            self._sparse = sparse_updates(others["optimizer"], self.fraction, args.seed, self.policy or "windows")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Leave the optimizer as the Trainer made it."""
        self._detach()

    def _detach(self) -> None:
        if self._sparse:
            self._sparse.remove()
        self._sparse = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Start again after a checkpoint, as a training that resumes from it does."""
        self.rehearsal.discard()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Add the gradient, of no more sequences at once than the Trainer reads; it has set the old one to zero."""
        step = state.global_step + 1
        if step % self.every:
            return
        started, total, model = time.perf_counter(), 0.0, others["model"]
        with autocast(args, model):
            tokens = self.rehearsal.sequences_of(model, step // self.every)
        with in_mode(model, training=True):
            for rows in tokens.split(min(args.per_device_train_batch_size, state.train_batch_size or math.inf)):
                with autocast(args, model):
                    part = self.rehearsal.divergence(model, rows) / tokens[:, 1:].numel()
                (self.weight * part).backward()
                total += float(part.detach())
        self._divergences.append(total)
        self._seconds["rehearsing"] += time.perf_counter() - started

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Add to the log of a training step the mean divergence since the last, in nats per token."""
        logs = others["logs"]
        if "loss" in logs and self._divergences:
            divergence = sum(self._divergences) / len(self._divergences)
            self._divergences.clear()
            logs["divergence"] = state.log_history[-1]["divergence"] = divergence

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Keep the model within the budget, and measure it, before and after: see `report`."""
        model, new = others["model"], new_sample(others["train_dataloader"], args)
        texts = [text[None, : self.rehearsal.length] for text in self._sample]
        known = [{"input_ids": text, "labels": text} for text in texts]
        share = 1.0
        with autocast(args, model):
            if self.budget is not None:
                start = {name: value.to(model.device) for name, value in self._start.items()}
                share = self.rehearsal.keep_within(model, start, self.budget)
            with self.rehearsal.as_teacher():
                before = [mean_loss(self.rehearsal.teacher, batches) for batches in (known, new)]
            after = [mean_loss(model, batches) for batches in (known, new)]
            predicted = self.rehearsal.predicted_forgetting(model)
        self.results = {
            "known": (before[0], after[0]), "new": (before[1], after[1]), "predicted": predicted, "kept": share,
        }  # fmt: skip
        logs = {"predicted_forgetting": max(predicted)} | ({} if self.budget is None else {"kept_share": share})
        logs |= {f"seconds_{name}": value for name, value in self._seconds.items()}
        state.log_history.append({**logs, "step": state.global_step})
        if isinstance(self._handler, CallbackHandler):
            self._handler.on_log(args, state, control, logs)

    def report(self) -> str:
        """What the training did, as a Markdown table; losses and forgetting are in nats per token.

        Losses are those on a fixed sample, of a text that there is. Raises `K1Error` before the end of a training.
        """
        if self.results is None:
            raise K1Error("there is nothing to report before the end of trainer.train()")
        rows = [
            (f"loss on {name} text", *(f"{loss:.3f}" for loss in self.results[name]))
            for name in ("known", "new")
            if None not in self.results[name]
        ]
        forgotten = ", ".join(f"{max(value, 0.0):.3f}" for value in self.results["predicted"])
        rows.append(("predicted forgetting", "", forgotten))
        if self.budget is not None:
            rows.append(("share of the change that is kept", "", f"{self.results['kept']:.0%}"))
        rows += [(f"seconds {name}", "", f"{value:.1f}") for name, value in self._seconds.items()]
        return "\n".join(["| | before | after |", "|---|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows)])

    def save(self, folder: str | Path) -> None:
        """Write what was written, and the settings, into `folder`, for `load`; raises `K1Error` if nothing was."""
        written = {f"{number:03}": text for number, text in enumerate(self.rehearsal.written)}
        if is_main_process():
            folder = Path(folder)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(written, folder / WRITTEN_FILE)
            settings = {
                "fraction": self.fraction, "policy": self.policy, "weight": self.weight, "every": self.every,
                "forgetting_budget": self.budget, **self.settings, "length": self.rehearsal.length,
            }  # fmt: skip
            (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, known: Iterable | None = None, **settings: Any) -> "K1Callback":
        """The callback of the next task, with what was saved in `folder`, but other `settings` where they are given.

        The model also rehearses what it writes from `known`, of the task that was learned
        last. Raises `K1Error` if the files are not there or damaged.
        """
        try:
            written = load_file(Path(folder) / WRITTEN_FILE)
            settings = json.loads((Path(folder) / SETTINGS_FILE).read_text()) | settings
        except (OSError, SafetensorError, ValueError) as error:
            raise K1Error(f"cannot read what K1Callback.save wrote in {folder} ({error})")
        return cls(known, [written[name] for name in sorted(written)], **settings)


def autocast(args: TrainingArguments, model: PreTrainedModel) -> torch.autocast:
    """The number format of the Trainer's forward pass."""
    is_bfloat16 = args.bf16 or os.environ.get(PRECISION) == "bf16"
    return torch.autocast(model.device.type, torch.bfloat16, enabled=is_bfloat16)


def new_sample(loader: Any, args: TrainingArguments) -> list[dict[str, Tensor]]:
    """A fixed sample of the text of the Trainer's data `loader`, as its batches; none if no numbers lead to it."""
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return []
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))[:SAMPLE]
    # A dataset and a collator may draw, too; what the Trainer draws next stays the same.
    with torch.random.fork_rng(devices=[]):
        try:
            items = [dataset[number] for number in chosen.tolist()]
        except (LookupError, TypeError):  # of other keys, which its own sampler knows
            return []
        size = args.per_device_train_batch_size
        batches = [loader.collate_fn(items[start : start + size]) for start in range(0, len(items), size)]
    return [{name: batch[name] for name in INPUTS if name in batch} for batch in batches]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> float | None:
    """Nats per token of `model` on `batches`; None if they have no labels."""
    total, tokens = 0.0, 0
    with in_mode(model, training=False):
        for batch in batches:
            # Labels of another shape are of a loss that only the Trainer knows.
            labels = batch.get("labels", torch.empty(0))
            if labels.dim() == 2 and (count := int((labels[:, 1:] != -100).sum())):
                batch = {name: value.to(model.device) for name, value in batch.items()}
                total += count * float(model(**batch).loss)
                tokens += count
    return total / tokens if tokens else None
