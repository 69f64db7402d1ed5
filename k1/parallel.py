"""Several processes of one training: which one this is, sums over all of them, proof that they agree; and a pool.

They are those of torchrun, or those that a Trainer, accelerate or a loop of one's own has connected.
In a script that was started by itself there is one process, and nothing here but `process_pool` does anything.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from k1.errors import K1Error
from k1.files import content_digest

Items = TypeVar("Items", Sequence, Tensor)


def is_connected() -> bool:
    """Whether torch has connected this process with others."""
    return dist.is_available() and dist.is_initialized()


def process_count() -> int:
    """Number of processes of this training."""
    return dist.get_world_size() if is_connected() else 1


def process_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_connected() else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and results, number 0."""
    return process_rank() == 0


def join_processes() -> None:
    """Connect the processes that torchrun has started; does nothing the second time, or without it."""
    if dist.is_torchelastic_launched() and not is_connected():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl")
        else:
            dist.init_process_group("gloo")


def share_of(items: Items) -> Items:
    """The items, or rows of a tensor, that this process works on: every n-th of n processes."""
    return items[process_rank() :: process_count()]


def sum_over_processes(tensor: Tensor) -> None:
    """Replace `tensor`, in place, by its sum over all processes; all then hold the same bits."""
    if process_count() > 1:
        dist.all_reduce(tensor)


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in at least one process."""
    total = torch.tensor(float(flag))
    sum_over_processes(total)
    return bool(total)


def copy_from_main_process(tensor: Tensor) -> None:
    """Replace `tensor`, in place, by that of process 0."""
    if is_connected():
        shared = tensor.contiguous()
        dist.broadcast(shared, src=0)
        tensor.copy_(shared)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let process 0 run the block before the others do, so that they find in the cache what it stored there."""
    if not is_main_process():
        dist.barrier()
    yield
    if process_count() > 1 and is_main_process():
        dist.barrier()


def require_identical(what: str, content: dict) -> None:
    """Raise `K1Error` unless `content` (see `content_digest`) has the same SHA-256 in every process."""
    if process_count() > 1:
        digests = [None] * process_count()
        dist.all_gather_object(digests, content_digest(content))
        if len(set(digests)) > 1:
            raise K1Error(f"the processes do not hold the same {what}; give them the same machine type and libraries")


def process_pool(count: int, module: str) -> ProcessPoolExecutor:
    """Processes beside this one, for functions of `module`, which on Linux is imported once for all."""
    # A plain fork would inherit the threads of this process; elsewhere libraries do not bear any fork.
    context = get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload([module])
    return ProcessPoolExecutor(count, mp_context=context)
