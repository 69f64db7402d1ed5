"""Batches of text to measure on or to go on from: as K-1's scripts make them, and as other data loaders give them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from k1.errors import K1Error
from k1.parallel import process_count, process_rank

# Token ids, (batch, length), or the arguments of a causal language model's forward pass by name.
Batch = Tensor | Mapping[str, Tensor]
IGNORED = -100  # the label of a position that no loss is worked out for, as transformers has it


def named(batch: Batch) -> Mapping[str, Tensor]:
    """The arguments of the forward pass in `batch`, by name."""
    return batch if isinstance(batch, Mapping) else {"input_ids": batch}


def inputs_of(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """The arguments of the forward pass of `model` for `batch`, on its device, with labels for the loss.

    Where a batch names no `labels`, they are its `input_ids`, but for what `attention_mask` leaves out.
    """
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in named(batch).items()}
    if "labels" not in inputs:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        inputs["labels"] = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    return inputs


def losses(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """The loss of `model` on each batch, in nats per token; of several processes each gets its share of the batches.

    Raises `K1Error` where there is no batch, as in an iterator that was read before.
    """
    number = -1
    for number, batch in enumerate(batches):
        if number % process_count() == process_rank():
            yield model(**inputs_of(batch, model)).loss
    if number < 0:
        raise K1Error("there is no batch to measure on; give a list or data loader, no iterator that was read before")


def beginnings(batches: Iterable[Batch], given: int, every: int) -> Tensor:
    """The first `given` tokens of each `every` tokens of text in `batches`, without padding: (beginnings, given).

    Raises `K1Error` where no sequence is that long.
    """
    found = []
    for batch in batches:
        inputs = named(batch)
        ids = inputs["input_ids"].cpu()
        mask = inputs.get("attention_mask", torch.ones_like(ids)).cpu()
        texts = [row[kept != 0] for row, kept in zip(ids, mask)]
        found += [text[start : start + given] for text in texts for start in range(0, len(text) - given + 1, every)]
    if not found:
        raise K1Error(
            f"there is no batch with {given} tokens in a row to go on from; give longer sequences or a smaller length, "
            "and no iterator that was read before"
        )
    return torch.stack(found)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is as in evaluation, without dropout; afterwards it is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
