"""Rehearsal in the training of others: a callback for the `Trainer` of transformers."""

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from k1.errors import K1Error
from k1.rehearsal import REHEARSAL_WEIGHT, Rehearsal


class RehearsalCallback(TrainerCallback):
    """Adds to every optimizer step of a `Trainer` the gradient of the divergence on rehearsed text.

    Before a step it adds the gradient of `weight` x the mean divergence, in nats per
    token, on the step's sequences of `rehearsal`, which the model regenerates if
    that is due; the Trainer adds that of its own loss, clips both together and steps.
    They are also regenerated after each checkpoint, so that a training that resumes
    from one ends with the same bits as one that was never stopped. Raises `K1Error`
    for `fp16`, whose scaled losses it does not know; `bf16` works.
    """

    def __init__(self, rehearsal: Rehearsal, weight: float = REHEARSAL_WEIGHT) -> None:
        self.rehearsal = rehearsal
        self.weight = weight

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Begin, or go on, with sequences that the model as it is now writes."""
        if args.fp16:
            raise K1Error("RehearsalCallback does not scale losses as fp16 needs it; train with bf16=True instead")
        self.rehearsal.discard()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Start again after a checkpoint, as a training that resumes from it does."""
        self.rehearsal.discard()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **_: object,
    ) -> None:
        """Add the gradient; the Trainer has set the old one to zero."""
        model.train()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            loss = self.rehearsal.loss(model, state.global_step + 1)
        (self.weight * loss).backward()
