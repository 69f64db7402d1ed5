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

from k1.benchmark.contestants import BASELINE, K1, SHAPES, additional_bytes, optimizer_steps, trainings
from k1.benchmark.summary import format_benchmark
from k1.errors import K1Error, command, module_parser
from k1.files import write_text
from k1.flag_types import above_zero, file_to_write
from k1.model import configure_torch, count_parameters, library_versions


def alternate(things: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each of `things` in each of `rounds` rounds, in which every one is called once.

    So what else slows the machine down slows all of them down. Each round begins with another of them, so that none
    is always the first. One round goes before, uncounted: it allocates the optimizers' state.
    """
    names, seconds = list(things), {name: [] for name in things}
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
