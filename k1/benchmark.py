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
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from k1.checkpoints import save_checkpoint, stage_checkpoint
from k1.config import Arguments, settings_of
from k1.data.batches import batches_of_blocks
from k1.data.loader import DataLoader, TokenizedDataset
from k1.data.tokenizer import train_tokenizer
from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS
from k1.files import write_text
from k1.flag_types import above_zero, file_to_write
from k1.model import build_model, configure_torch, count_parameters, library_versions, model_config
from k1.report.tables import format_table, rows_of
from k1.sparse import sparse_updates
from k1.training.evaluation import evaluate
from k1.training.rehearsal import begin_rehearsal, write_rehearsal
from k1.training.trainer import StageTrainer, build_optimizer

BASELINE, K1 = ARMS["baseline"], ARMS["k1"]
ADAMW, SPARSE = "AdamW", "AdamW with sparse updates"
STEPS = 5  # timed together, so that little depends on a single one
DATASETS = 2  # learned at the end of the second stage, which is the one measured
OTHER_WAYS = "bare PyTorch loop", "LoRA (peft)"
CONTESTANTS = (*ARMS.values(), *OTHER_WAYS)
LORA_RANK = 16
MEMORY_STEPS = 10  # each copies other windows, which may not fit into the memory of those before


@dataclass(frozen=True)
class Shape:
    """A size of the model: `preset` with all widths times `width`, measured in `rounds`.

    If it does not train, the optimizer alone is measured.
    """

    preset: str
    rounds: int
    width: int = 1
    trains: bool = True

    def arguments(self, arm: str) -> Arguments:
        """The settings of a later stage of `arm`."""
        arguments = settings_of(arm, self.preset, stage=2, device="cpu", data_source="bundled")
        widths = ("hidden_size", "intermediate_size", "heads")
        return replace(arguments, **{name: self.width * getattr(arguments, name) for name in widths})

    def model(self) -> PreTrainedModel:
        """A model with fresh weights, the same each time; no time depends on what a model has learned."""
        arguments = self.arguments("baseline")
        return build_model(model_config(arguments, arguments.vocabulary_size), seed=0)


SHAPES = {
    "smoke": Shape("smoke", rounds=3),
    "quick": Shape("quick", rounds=9),
    "wide": Shape("quick", rounds=5, width=4),
    "full": Shape("full", rounds=9, trains=False),
}


def optimizer_steps(shape: Shape) -> dict[str, Callable[[], object]]:
    """A step of the optimizer alone, without and with sparse updates, on random gradients."""
    model = shape.model()
    draw_gradients(model)
    arms = {ADAMW: "baseline", SPARSE: "sparse"}
    return {name: build_optimizer(model, shape.arguments(arm)).step for name, arm in arms.items()}


def draw_gradients(model: nn.Module) -> None:
    """Give every parameter a random gradient."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def by_hand(shape: Shape, dataset: TokenizedDataset, model: nn.Module) -> Callable[[], Tensor]:
    """A step as one writes it in PyTorch: the loss, which it returns, its gradients, clipping, and fused AdamW."""
    arguments = shape.arguments("baseline")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=arguments.weight_decay, fused=True
    )
    batches = batches_of_blocks(dataset.blocks["train"], arguments.batch_size, seed=0)

    def step() -> Tensor:
        ids = next(batches)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def other_ways(shape: Shape, dataset: TokenizedDataset) -> dict[str, Callable[[], Tensor]]:
    """A step of ways to train the baseline's model that are not this project's."""
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear")
    models = shape.model(), get_peft_model(shape.model(), adapters)
    return {name: by_hand(shape, dataset, model) for name, model in zip(OTHER_WAYS, models)}


def trainings(shape: Shape, folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, dict]]:
    """What takes turns at a shape that trains: `STEPS` steps of each contestant, and the parts of a later stage.

    With it, for the baseline and K-1, whose checkpoints are written into `folder`: of what the second stage of the arm
    consists, as part -> (what takes turns, how often the stage has it).
    """
    arguments = shape.arguments("k1")
    text = DataLoader("wikitext", arguments)
    tokenizer = train_tokenizer(text.text("train"), arguments.vocabulary_size)
    dataset = text.tokenize(tokenizer)
    model = shape.model()
    written = write_rehearsal(model, dataset, tokenizer, arguments)
    stages = {}
    for arm, label in ARMS.items():
        learner = shape.model()
        rehearsal = begin_rehearsal(learner, written, tokenizer, shape.arguments(arm))
        stages[label] = StageTrainer(learner, dataset, shape.arguments(arm), rehearsal)
        if rehearsal:
            rehearsal.rewrite(learner, 1)
    assert rehearsal  # that of K-1, the last of the arms
    scores = evaluate(model, [dataset], arguments)

    def steps(step: Callable[[], object]) -> None:
        for _ in range(STEPS):
            step()

    def evaluate_one() -> None:
        # Both datasets after the stage; before it test text alone, of the new one, by this and by the initial model.
        evaluate(model, [dataset], arguments)
        evaluate(model, [dataset], arguments, ("test",))

    def save(arm: str) -> None:
        stage = stages[arm]
        checkpoint = stage_checkpoint(
            stage.model, tokenizer, dataset, stage.arguments, untrained=scores, before=scores, after=scores,
            history=[], written=DATASETS * written if stage.rehearsal else [],
        )  # fmt: skip
        save_checkpoint(folder / f"{arm}.pt", checkpoint)

    contestants = {name: stage.optimize for name, stage in stages.items()} | other_ways(shape, dataset)
    # Of a stage that rehearses alone.
    rehearsing: dict[str, Callable[[], object]] = {
        "rewriting": partial(rehearsal.rewrite, model, 1),
        "teacher": partial(begin_rehearsal, model, written, tokenizer, arguments),
        "writing": partial(write_rehearsal, model, dataset, tokenizer, arguments),
        "predicted forgetting": partial(rehearsal.predicted_forgetting, model),
    }
    things: dict[str, Callable[[], object]] = {
        **{name: partial(steps, step) for name, step in contestants.items()},
        **{f"checkpoint of {arm}": partial(save, arm) for arm in (BASELINE, K1)},
        "evaluation": evaluate_one,
        **rehearsing,
    }
    parts: dict[str, dict] = {
        arm: {
            "training": (arm, arguments.max_steps / STEPS),
            "checkpoint": (f"checkpoint of {arm}", 1),
            "evaluation": ("evaluation", DATASETS),
        }
        for arm in (BASELINE, K1)
    }
    rewritings = sum(map(rehearsal.is_due, range(1, arguments.max_steps + 1)))
    parts[K1] |= {part: (part, 1) for part in rehearsing} | {"rewriting": ("rewriting", rewritings)}
    return things, parts


def additional_bytes(shape: Shape, threads: int) -> int:
    """How far the peak of this process's memory rises when AdamW on the model of `shape` gets sparse updates.

    For a new process: what this one has freed would be used again and seem to be no memory.
    """
    configure_torch(threads)
    # With it the code is loaded, which is not to count.
    tiny: Any = nn.Linear(8, 8)
    for model in (tiny, shape.model()):
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
    status = Path("/proc/self/status")
    if not status.exists():
        raise K1Error("memory can be measured on Linux only")
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])


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
        things, parts = trainings(shape, Path(folder)) if shape.trains else ({}, {})
        seconds = alternate(things | optimizer_steps(shape), rounds or shape.rounds)
        sizes = {file.stem: file.stat().st_size for file in Path(folder).iterdir()}
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
