"""The optimizer alone: AdamW with sparse updates in turn with AdamW, at sizes too large to train here too."""

import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from k1.benchmark.setting import Shape
from k1.benchmark.timing import alternate, ratio, spread
from k1.errors import K1Error
from k1.model import configure_torch, count_parameters
from k1.sparse import sparse_updates
from k1.training.trainer import build_optimizer

MEMORY_STEPS = 10  # each copies other rows, which may not fit into the memory of those before


def measure_optimizer(shape: Shape, rounds: int, threads: int) -> dict:
    """Time and memory of sparse updates; the keys are those of `optimizer`, see `__main__`, but `step_ratio`."""
    # In a new process: what this one has freed would be used again and seem to be no memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        additional = pool.submit(additional_bytes, shape, threads).result()
    model = shape.model()
    arms = {arm: build_optimizer(model, shape.arguments(arm)) for arm in ("baseline", "sparse")}
    steps = {arm: optimizer.step for arm, optimizer in arms.items()}
    seconds = alternate(steps, rounds, prepare=lambda: draw_gradients(model))
    return {
        "adamw_seconds": spread(seconds["baseline"]),
        "extra_seconds": spread([sparse - adamw for sparse, adamw in zip(seconds["sparse"], seconds["baseline"])]),
        "ratio": ratio(seconds["sparse"], seconds["baseline"]),
        "bytes_per_parameter": additional / count_parameters(model),
    }


def draw_gradients(model: torch.nn.Module) -> None:
    """Give every parameter a new random gradient."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def additional_bytes(shape: Shape, threads: int) -> int:
    """How far the peak of this process's memory rises when AdamW on the model of `shape` gets sparse updates."""
    configure_torch(threads)
    # With the first, tiny model the code is loaded, which is not to count.
    for model in (torch.nn.Linear(8, 8), shape.model()):
        draw_gradients(model)
        optimizer = build_optimizer(model, shape.arguments("baseline"))
        peaks = []
        for attach in (lambda _: None, sparse_updates):
            attach(optimizer)
            for _ in range(MEMORY_STEPS):
                optimizer.step()
            peaks.append(peak_bytes())
    return peaks[1] - peaks[0]


def peak_bytes() -> int:
    """The peak of this process's memory so far; raises `K1Error` on systems other than Linux."""
    # getrusage begins with the peak of the process that started this one.
    try:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    except OSError as error:
        raise K1Error("memory can be measured on Linux only") from error
