"""python3 -m k1.benchmark: time and memory of training on the CPU, beside other ways to train the same model.

The arms of the experiment, a bare PyTorch loop and LoRA of peft take turns in one
process, on the same text and --threads threads, and with them the parts of a later
stage and the optimizer alone. Tables go to stdout. For figures that count, nothing else
may run on the machine.

--json FILE has `threads`, `cores`, `versions` and `shapes`, a record for each shape:
  parameters, tokens_per_step
  seconds           by what takes turns, one value a round; of trainings, of 5 steps
  stage             of the second stage of "baseline" and "K-1": seconds by part, one
                    value a round, counted as often as the stage has the part; nothing
                    of `full`, which does not train
  checkpoint_bytes  by "baseline" and "K-1"
  additional_bytes  by how much sparse updates raise the peak of memory
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from k1.benchmark.contestants import (
    ADAMW,
    BASELINE,
    CONTESTANTS,
    K1,
    SHAPES,
    SPARSE,
    STEPS,
    additional_bytes,
    optimizer_steps,
    trainings,
)  # fmt: skip
from k1.errors import K1Error, command, module_parser
from k1.files import write_text
from k1.flag_types import above_zero, file_to_write
from k1.model import configure_torch, count_parameters, library_versions
from k1.report.tables import format_table, rows_of


def alternate(things: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each of `things` in each of `rounds` rounds, in which every one is called once.

    So what else slows the machine down slows all of them down. Each round begins with another of them, so that none
    is always the first. One round goes before, uncounted: it allocates the optimizers' state.
    """
    names = list(things)
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for number in range(1 + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            things[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def measure_shape(name: str, rounds: int | None, threads: int) -> dict:
    """The record of a shape, see above; in `rounds` rounds, by default those of the shape."""
    shape = SHAPES[name]
    print(f"measuring {name}", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        additional = pool.submit(additional_bytes, shape, threads).result()
    with TemporaryDirectory() as folder:
        files = {arm: Path(folder, f"{arm}.pt") for arm in (BASELINE, K1)} if shape.trains else {}
        things, parts = trainings(shape, files) if shape.trains else ({}, {})
        seconds = alternate(things | optimizer_steps(shape), rounds or shape.rounds)
        sizes = {arm: file.stat().st_size for arm, file in files.items()}
    return {
        "parameters": count_parameters(shape.model()),
        "tokens_per_step": shape.arguments("baseline").tokens_per_step,
        "seconds": seconds,
        "stage": {
            arm: {part: [count * value for value in seconds[thing]] for part, (thing, count) in found.items()}
            for arm, found in parts.items()
        },
        "checkpoint_bytes": sizes,
        "additional_bytes": additional,
    }


def with_spread(values: list[float] | np.ndarray, digits: int = 2) -> str:
    """The median of `values`, at least one, and in brackets their quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def format_benchmark(results: dict) -> str:
    """All tables of `results`, see above, as Markdown; ratios are of times of the same round."""
    sections = [f"On {results['threads']} of {results['cores']} CPU threads; medians and, in brackets, quartiles."]
    for name, found in results["shapes"].items():
        if found["stage"]:
            title = f"Shape `{name}`: {found['parameters']:,} parameters, {found['tokens_per_step']:,} tokens a step."
            sections += [title, steps_table(found), stage_table(found)]
    title = "Sparse updates in the optimizer, AdamW, alone."
    return "\n\n".join([*sections, title, optimizer_table(results["shapes"])])


def steps_table(found: dict) -> str:
    """The contestants by the time of their steps."""
    columns = {
        "Tokens/s": lambda values: f"{STEPS * found['tokens_per_step'] / np.median(values):,.0f}",
        "Step / baseline's": lambda values: with_spread(np.divide(values, found["seconds"][BASELINE])),
    }
    steps = [(name, found["seconds"][name]) for name in CONTESTANTS]
    return format_table(rows_of("Training", steps, columns.items()))


def stage_table(found: dict) -> str:
    """A later stage of the baseline and of K-1 by what its time goes into, and the size of its checkpoint."""
    sums = {arm: np.sum([*parts.values()], axis=0) for arm, parts in found["stage"].items()}
    rows = [["Later stage, seconds", *found["stage"][K1], "sum", "Sum / baseline's", "Checkpoint MB"]]
    for arm, parts in found["stage"].items():
        rows.append([
            arm, *(f"{np.median(parts[part]):.2f}" if part in parts else "" for part in found["stage"][K1]),
            f"{np.median(sums[arm]):.2f}", with_spread(sums[arm] / sums[BASELINE]) if arm == K1 else "",
            f"{found['checkpoint_bytes'][arm] / 1e6:.2f}",
        ])  # fmt: skip
    return format_table(rows)


def optimizer_table(shapes: dict) -> str:
    """Shapes by the time and memory that sparse updates take in the optimizer."""
    rows = [["Shape", "Parameters", "AdamW, ms", "Step / AdamW's", "Training step / dense one",
             "Bytes a parameter more"]]  # fmt: skip
    for name, found in shapes.items():
        adamw, sparse = (np.array(found["seconds"][optimizer]) for optimizer in (ADAMW, SPARSE))
        in_training = ""
        if found["stage"]:
            in_training = with_spread(1 + (sparse - adamw) * STEPS / np.median(found["seconds"][BASELINE]), 3)
        rows.append([
            f"`{name}`", f"{found['parameters']:,}", with_spread(1e3 * adamw, 1), with_spread(sparse / adamw),
            in_training, f"{found['additional_bytes'] / found['parameters']:.2f}",
        ])  # fmt: skip
    return format_table(rows)


@command
def main() -> None:
    parser = module_parser("k1.benchmark", __doc__)
    shapes = [name for name in SHAPES if name != "smoke"]
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=shapes, metavar="SHAPE",
                        help=f"of {', '.join(SHAPES)} (default: {' '.join(shapes)})")  # fmt: skip
    parser.add_argument("--rounds", type=above_zero, help="turns of everything (default: by shape)")
    parser.add_argument("--threads", type=above_zero, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="also write all that was measured to FILE")
    arguments = parser.parse_args()
    if find_spec("peft") is None:
        raise K1Error("the benchmark needs peft; run pip install -r requirements-dev.txt")
    configure_torch(arguments.threads)
    results = {"threads": arguments.threads, "cores": os.cpu_count(), "versions": library_versions(), "shapes": {}}
    for name in dict.fromkeys(arguments.shapes):
        results["shapes"][name] = measure_shape(name, arguments.rounds, arguments.threads)
    if arguments.json:
        write_text(arguments.json, json.dumps(results, indent=1) + "\n")
    print(format_benchmark(results))


if __name__ == "__main__":
    main()
