"""Blocks of tokens in batches: shuffled for training, in order for evaluation."""

from collections.abc import Iterator
from itertools import count

import torch
from datasets import Dataset

BATCH_TOKENS = 4_096


def batches_of_blocks(blocks: Dataset, batch_size: int, seed: int, skip: int = 0) -> Iterator[torch.Tensor]:
    """Token ids, (batch_size, seq_length), without end, of the blocks in `shuffled` order."""
    for rows in shuffled(len(blocks), batch_size, seed, skip):
        yield blocks[rows]["input_ids"].long()


def shuffled(size: int, batch_size: int, seed: int, skip: int = 0) -> Iterator[list[int]]:
    """Batches of the numbers below `size`, without end: a new seeded permutation of them each epoch.

    A batch may reach into the next epoch, so `size` may be smaller than one
    batch. The first `skip` batches are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for number in count():
        while len(order) < batch_size:
            order += torch.randperm(size, generator=generator).tolist()
        if number >= skip:
            yield order[:batch_size]
        del order[:batch_size]


def batches_in_order(blocks: Dataset, seq_length: int, max_tokens: int) -> Iterator[torch.Tensor]:
    """Token ids, (batch, length): whole blocks together, then the shorter last one by itself."""
    count = min(len(blocks), max(1, max_tokens // seq_length))
    last_is_short = len(blocks[count - 1]["input_ids"]) < seq_length
    whole = count - 1 if last_is_short else count
    batch_size = max(1, BATCH_TOKENS // seq_length)
    for start in range(0, whole, batch_size):
        yield blocks[start : min(start + batch_size, whole)]["input_ids"].long()
    if last_is_short:
        yield blocks[count - 1]["input_ids"].long().unsqueeze(0)
