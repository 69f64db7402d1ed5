"""The losses of an optimizer step, on new and on rehearsed text, and their gradients."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.errors import K1Error
from k1.parallel import process_count, share_of, sum_over_processes
from k1.rehearsal import Rehearsal, divergence_from

IGNORED = -100  # the label of a position without a loss, as transformers has it


def accumulate_gradients(
    model: torch.nn.Module,
    text: Iterator[tuple[Tensor, list[int]]],
    arguments: Arguments,
    rehearsal: Rehearsal | None = None,
) -> tuple[float, float]:
    """Add the gradients of one optimizer step's forward passes; returns their mean losses in nats per token.

    The first is that of the new text, the second the divergence on the rehearsed
    sequences, 0 without. `text` is that of `text_of_steps`. Of several processes each
    takes its rows of every batch, and all end with the gradients of the whole batch.
    """
    totals = torch.zeros(2, dtype=torch.float64)
    for number in range(1, arguments.gradient_accumulation_steps + 1):
        rows, old = next(text)
        is_last = number == arguments.gradient_accumulation_steps
        # Gradients are exchanged once a step, not with every batch.
        with nullcontext() if is_last or process_count() == 1 else model.no_sync():
            losses = mean_losses(model, rows.to(arguments.device), arguments, rehearsal, old)
            (losses[0] + arguments.rehearsal_weight * losses[1]).backward()
        totals += losses.detach().cpu()
    sum_over_processes(totals)
    loss, drift = (totals / process_count()).tolist()
    return loss, drift


def mean_losses(
    model: torch.nn.Module, rows: Tensor, arguments: Arguments, rehearsal: Rehearsal | None, old: list[int]
) -> Tensor:
    """What a batch adds to the two mean losses of an optimizer step, see `accumulate_gradients`.

    Of several processes each computes the part of its own rows, times the number of processes.
    """
    mine, mine_old = share_of(rows), share_of(old)
    tokens = mine if rehearsal is None else torch.cat([mine, rehearsal.sequences[mine_old]])
    share = process_count() / arguments.gradient_accumulation_steps
    summed = compiled_losses if arguments.compile else summed_losses
    new, drift = summed(model, rehearsal and rehearsal.teacher, tokens, len(mine), arguments.precision)
    positions = tokens.shape[1] - 1
    return torch.stack([new * share / (len(rows) * positions), drift * share / (max(1, len(old)) * positions)])


def summed_losses(
    model: torch.nn.Module, teacher: PreTrainedModel | None, tokens: Tensor, new: int, precision: str
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of `model` on the first `new` rows of `tokens`, and its divergence from `teacher` on the rest.

    `tokens` are ids, (rows, length); both are sums over rows and positions, in nats, the second 0 without a teacher.
    """
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(input_ids=tokens).logits.float()
        drift = divergence_from(teacher, tokens[new:], logits[new:]) if teacher else logits.new_zeros(())
    return next_token_loss(logits[:new], tokens[:new]), drift


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
