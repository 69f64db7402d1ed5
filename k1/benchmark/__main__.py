"""python3 -m k1.benchmark: time and memory of training on the CPU, beside other ways to train the same model.

The arms of the experiment, a bare PyTorch loop, the Trainer of transformers, LoRA of
peft and a plain GPT of as many parameters take turns step by step, on the same text
and --threads threads; then the parts of a later stage, and the optimizer alone. Tables
go to stdout. For figures that count, nothing else may run on the machine.

--json FILE has `threads`, `cores`, `versions` and `shapes`, a record for each shape.
A spread is {"median", "low", "high"}: median and quartiles over the rounds. A record:
  parameters       of the model
  tokens_per_step
  optimizer        adamw_seconds, extra_seconds: of a step of AdamW, and how much more
                   it takes with sparse updates in the same round (spreads)
                   ratio: a step with sparse updates over one without (spread)
                   step_ratio: the same of a whole training step: 1 + extra_seconds
                   over the baseline's (spread; not of `full`, which does not train)
                   bytes_per_parameter: by how much the peak of memory is higher
  steps            by contestant, not of `full`:
                   seconds, ratio: of a step, and over the baseline's (spreads)
                   rewriting, in_sum: rewriting the rehearsed text, divided by its
                   interval, over the baseline's step, and this with the step's own
                   ratio (spreads; only of those that rehearse)
  stage            of the second stage, not of `full`:
                   seconds: by "baseline" and "K-1" the parts and "sum" (spreads)
                   ratio: K-1's sum over the baseline's (spread)
                   checkpoint_bytes: by "baseline" and "K-1"
"""

import json
import os
from importlib.util import find_spec

from k1.benchmark.contestants import REFERENCE, measure_steps, stage_trainer
from k1.benchmark.optimizer import measure_optimizer
from k1.benchmark.parts import measure_stage
from k1.benchmark.setting import SHAPES
from k1.benchmark.summary import format_benchmark
from k1.benchmark.timing import progress
from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS
from k1.files import write_text
from k1.flag_types import above_zero, file_to_write
from k1.model import configure_torch, count_parameters, library_versions
from k1.training.rehearsal import write_rehearsal


def measure_shape(name: str, rounds: int | None, threads: int) -> dict:
    """The record of a shape, see above; all in `rounds` rounds, by default those of the shape."""
    shape = SHAPES[name]
    progress(f"{name}: the optimizer alone")
    found = {
        "parameters": count_parameters(shape.model()),
        "tokens_per_step": shape.arguments("baseline").tokens_per_step,
        "optimizer": measure_optimizer(shape, rounds or shape.rounds, threads),
    }
    if not shape.stage_rounds:
        return found
    progress(f"{name}: text to train on and to rehearse")
    tokenizer, dataset = shape.read()
    written = write_rehearsal(shape.model(), dataset, tokenizer, shape.arguments("k1"))
    stages = {arm: stage_trainer(shape, arm, tokenizer, dataset, written) for arm in ARMS}
    progress(f"{name}: steps in turn")
    found["steps"] = measure_steps(shape, stages, dataset, rounds or shape.rounds)
    progress(f"{name}: the parts of a stage in turn")
    found["stage"] = measure_stage(
        stages["k1"], stages["baseline"], tokenizer, dataset, written, rounds or shape.stage_rounds
    )
    dense, extra = found["steps"][REFERENCE]["seconds"]["median"], found["optimizer"]["extra_seconds"]
    found["optimizer"]["step_ratio"] = {which: 1 + value / dense for which, value in extra.items()}
    return found


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
    if missing := [package for package in ("accelerate", "peft") if find_spec(package) is None]:
        raise K1Error(f"the benchmark needs {' and '.join(missing)}; run pip install -r requirements-dev.txt")
    configure_torch(arguments.threads)
    results = {"threads": arguments.threads, "cores": os.cpu_count(), "versions": library_versions(), "shapes": {}}
    for name in dict.fromkeys(arguments.shapes):
        results["shapes"][name] = measure_shape(name, arguments.rounds, arguments.threads)
    if arguments.json:
        write_text(arguments.json, json.dumps(results, indent=1) + "\n")
    print(format_benchmark(results))


if __name__ == "__main__":
    main()
