"""What takes turns: training steps of the arms and of other ways to train, parts of a later stage, the optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from k1.checkpoints import save_checkpoint, stage_checkpoint
from k1.config import Arguments, settings_of
from k1.data.batches import batches_of_blocks
from k1.data.loader import DataLoader, TokenizedDataset
from k1.data.tokenizer import train_tokenizer
from k1.errors import K1Error
from k1.experiment import ARMS
from k1.model import build_model, configure_torch, model_config
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


def trainings(shape: Shape, files: dict[str, Path]) -> tuple[dict[str, Callable[[], object]], dict[str, dict]]:
    """What takes turns at a shape that trains: `STEPS` steps of each contestant, and the parts of a later stage.

    With it, for the arms in `files`, where their checkpoints are written: of what the second stage of the arm consists,
    as part -> (what takes turns, how often the stage has it).
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
    rehearsal = begin_rehearsal(model, written, tokenizer, arguments)
    assert rehearsal
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
        save_checkpoint(files[arm], checkpoint)

    contestants = {name: stage.optimize for name, stage in stages.items()} | other_ways(shape, dataset)
    once: dict[str, Callable[[], object]] = {
        "teacher": partial(begin_rehearsal, model, written, tokenizer, arguments),
        "writing": partial(write_rehearsal, model, dataset, tokenizer, arguments),
        "predicted forgetting": partial(rehearsal.predicted_forgetting, model),
    }
    things: dict[str, Callable[[], object]] = {
        **{name: partial(steps, step) for name, step in contestants.items()},
        **{f"checkpoint of {arm}": partial(save, arm) for arm in files},
        "evaluation": evaluate_one,
        "rewriting": partial(rehearsal.rewrite, model, 1),
        **once,
    }
    parts: dict[str, dict] = {
        arm: {
            "training": (arm, arguments.max_steps / STEPS),
            "checkpoint": (f"checkpoint of {arm}", 1),
            "evaluation": ("evaluation", DATASETS),
        }
        for arm in files
    }
    rewritings = sum(map(rehearsal.is_due, range(1, arguments.max_steps + 1)))
    parts[K1] |= {"rewriting": ("rewriting", rewritings), **{part: (part, 1) for part in once}}
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
