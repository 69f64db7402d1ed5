"""python3 -m k1.benchmark: time and memory of training, beside other ways to train the same model.

Contestants take turns step by step on the same text, on --threads threads: this
project's loop as the baseline and as K-1, a bare PyTorch loop, the Trainer of
transformers, LoRA of peft, and a plain GPT of as many parameters. Then the optimizer
alone, what goes on between stages, generated text, growing text, and start-up.
stdout: tables. For figures that count, nothing else may run on the machine.
"""

import json
import os
import tempfile
from pathlib import Path

from k1.benchmark.boundaries import first_stage
from k1.benchmark.contestants import contestants_at, missing_packages
from k1.benchmark.generation import generation
from k1.benchmark.growth import FACTORS, growth, starts
from k1.benchmark.memory import resident_bytes
from k1.benchmark.optimizer import ACTIVATION_TOKENS, KINDS, activation_bytes, optimizer_alone
from k1.benchmark.pacing import progress
from k1.benchmark.processes import measure
from k1.benchmark.setting import CHARACTERS_PER_EVALUATED_TOKEN, SHAPES, Setting, write_corpus
from k1.benchmark.startup import start_up
from k1.benchmark.tables import format_benchmark
from k1.benchmark.training import memory, race
from k1.errors import UsageError, command
from k1.files import write_text
from k1.flags import module_parser
from k1.model import library_versions

START_UPS = 3


def measure_training(setting: Setting, rounds: int, names: list[str]) -> dict:
    """What a shape records of whole training steps: contestants by name, and what lies between stages."""
    shape = SHAPES[setting.shape]
    progress(f"{setting.shape}: a first stage for K-1 to go on from")
    characters = shape.size.evaluation_tokens * CHARACTERS_PER_EVALUATED_TOKEN
    write_corpus(setting.folder / f"{setting.shape}.jsonl", characters)
    stages = measure(first_stage, setting)
    progress(f"{setting.shape}: {len(names)} contestants take {rounds} steps in turn")
    contestants = measure(race, setting, names, rounds)
    for name in names:
        progress(f"{setting.shape}: memory of {name}")
        contestants[name] |= measure(memory, setting, name)
    return {"contestants": contestants, "stages": stages, "rounds": rounds}


def measure_optimizer(setting: Setting, rounds: int) -> dict:
    """What a shape records of the optimizer alone, and the memory that longer text takes."""
    found = {}
    for name in KINDS:
        progress(f"{setting.shape}: the optimizer of {name}")
        found[name] = measure(optimizer_alone, setting, name, rounds)
    length = SHAPES[setting.shape].size.seq_length
    short, long = (min(tokens, length) for tokens in ACTIVATION_TOKENS)
    rise = measure(activation_bytes, setting, long) - measure(activation_bytes, setting, short)
    return {"kinds": found, "bytes_per_token": rise / (long - short), "rounds": rounds}


def measure_surroundings(setting: Setting, rounds: int) -> dict:
    """What is not training: generated text and growing text, at a shape whose stages were measured."""
    progress(f"{setting.shape}: generated text")
    found = {"shape": setting.shape, "generation": measure(generation, setting, rounds), "growth": {}}
    for factor in FACTORS:
        progress(f"{setting.shape}: {factor} times the text")
        found["growth"][str(factor)] = measure(growth, setting, factor)
    progress(f"{setting.shape}: seconds until training begins")
    return found | {"starts": starts(setting)}


def run(shapes: list[str], steps: int | None, threads: int, folder: Path) -> dict:
    """Measure all that `shapes` name, with `steps` rounds or each shape's own; files go below `folder`."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    os.environ["K1_CACHE"] = str(folder / "cache")
    os.environ["TMPDIR"] = str(folder)  # a process that is ended leaves its temporary files behind
    missing = missing_packages()
    results = {
        "threads": threads, "cores": os.cpu_count(), "versions": library_versions(), "missing": missing, "shapes": {},
    }  # fmt: skip
    for name in shapes:
        setting, shape = Setting(name, threads, folder), SHAPES[name]
        rounds = steps or shape.rounds
        found = results["shapes"][name] = {}
        if shape.trains:
            names = [contestant for contestant in contestants_at(shape) if contestant not in missing]
            found["training"] = measure_training(setting, rounds, names)
        if shape.optimizer_alone:
            found["optimizer"] = measure_optimizer(setting, rounds)
        if shape.stages and "surroundings" not in results:
            results["surroundings"] = measure_surroundings(setting, rounds)
    progress("start-up")
    return results | {"start_up": start_up(1 if steps else START_UPS, set(missing))}


@command
def main() -> None:
    parser = module_parser("k1.benchmark", __doc__)
    shapes = [name for name in SHAPES if name != "smoke"]
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=shapes, metavar="SHAPE",
                        help=f"of {', '.join(SHAPES)} (default: {' '.join(shapes)})")  # fmt: skip
    parser.add_argument("--steps", type=int,
                        help="turns of each contestant; commands then start once (default: by shape)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured to FILE")
    arguments = parser.parse_args()
    for name in ("steps", "threads"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")
    if arguments.json and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        raise UsageError(f"--json {arguments.json} is not a file in an existing folder")
    resident_bytes()  # ends here where memory cannot be measured
    with tempfile.TemporaryDirectory(prefix="k1-benchmark-") as folder:
        results = run(list(dict.fromkeys(arguments.shapes)), arguments.steps, arguments.threads, Path(folder))
    if arguments.json:
        write_text(arguments.json, json.dumps(results, indent=1) + "\n")
    print(format_benchmark(results))


if __name__ == "__main__":
    main()
