"""The contestants: the arms of the experiment, and other ways to train the same model, one step at a time."""

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from k1.benchmark.gpt import GPT
from k1.benchmark.setting import Shape
from k1.benchmark.timing import WARM_UP, alternate, ratio, spread
from k1.data.batches import batches_of_blocks
from k1.data.loader import TokenizedDataset
from k1.experiment import ARMS
from k1.model import count_parameters
from k1.training.rehearsal import begin_rehearsal
from k1.training.trainer import StageTrainer

REFERENCE, K1 = ARMS["baseline"], ARMS["k1"]
TRAINER = "Hugging Face Trainer"
BETAS = 0.9, 0.95
LORA_RANK = 16


def stage_trainer(
    shape: Shape, arm: str, tokenizer: Tokenizer, dataset: TokenizedDataset, written: list[Tensor]
) -> StageTrainer:
    """A later stage of `arm`, which rehearses what is `written`, if it does; its `optimize` takes a step."""
    arguments, model = shape.arguments(arm), shape.model()
    rehearsal = begin_rehearsal(model, written, tokenizer, arguments)
    if rehearsal:
        rehearsal.rewrite(model, 1)
    return StageTrainer(model, dataset, arguments, rehearsal)


def bare_loop(
    shape: Shape, dataset: TokenizedDataset, model: nn.Module, loss_of: Callable[[Tensor], Tensor]
) -> Callable[[], float]:
    """A step as one writes it by hand in PyTorch: the loss, its gradients, clipping, and fused AdamW."""
    arguments = shape.arguments("baseline")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=arguments.learning_rate, betas=BETAS, weight_decay=arguments.weight_decay, fused=True
    )
    batches = batches_of_blocks(dataset.blocks["train"], arguments.batch_size, seed=0)

    def step() -> float:
        loss = loss_of(next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def other_ways(shape: Shape, dataset: TokenizedDataset) -> dict[str, Callable[[], float]]:
    """A step of each way to train the baseline's model that is not this project's, but the `Trainer`'s."""
    from peft import LoraConfig, get_peft_model

    arguments, plain = shape.arguments("baseline"), shape.model()
    adapters = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear")
    adapted = get_peft_model(shape.model(), adapters)
    gpt = GPT(
        arguments.vocabulary_size, arguments.hidden_size, arguments.layers, arguments.heads, arguments.seq_length,
        count_parameters(plain),
    )  # fmt: skip
    return {
        "bare PyTorch loop": bare_loop(shape, dataset, plain, lambda ids: plain(input_ids=ids, labels=ids).loss),
        "LoRA (peft)": bare_loop(shape, dataset, adapted, lambda ids: adapted(input_ids=ids, labels=ids).loss),
        "plain GPT": bare_loop(shape, dataset, gpt, lambda ids: gpt(ids, ids)),
    }


def trainer_seconds(
    shape: Shape, dataset: TokenizedDataset, baseline_step: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of `rounds` steps of the `Trainer` of transformers, and of a step of the baseline after each of them.

    A `Trainer` runs to its end, so that the baseline takes its turns in a callback.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    arguments, marks = shape.arguments("baseline"), []

    class Turn(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())
            baseline_step()
            marks.append(time.perf_counter())

    def collate(rows: list[dict]) -> dict:
        ids = torch.stack([row["input_ids"] for row in rows]).long()
        return {"input_ids": ids, "labels": ids}

    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=WARM_UP + rounds, per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate, weight_decay=arguments.weight_decay, adam_beta2=BETAS[1],
            max_grad_norm=arguments.max_grad_norm, optim="adamw_torch_fused", use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(
            shape.model(), settings, train_dataset=dataset.blocks["train"], data_collator=collate, callbacks=[Turn()]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    between = [after - before for before, after in pairwise(marks)]
    return between[1::2][-rounds:], between[::2][-rounds:]


def rewriting_of(stage: StageTrainer) -> Callable[[], None]:
    """What lets the model write the sequences that it rehearses until they are regenerated."""
    return partial(stage.rehearsal.rewrite, stage.model, 1)


def measure_steps(
    shape: Shape, stages: dict[str, StageTrainer], dataset: TokenizedDataset, rounds: int
) -> dict[str, dict]:
    """Steps of the `stages` by arm and of all other ways in turn; the keys are those of `steps`, see `__main__`."""
    things = {ARMS[arm]: stage.optimize for arm, stage in stages.items()} | other_ways(shape, dataset)
    seconds = alternate({**things, "rewriting": rewriting_of(stages["k1"])}, rounds)
    interval, reference = stages["k1"].arguments.rehearsal_interval, seconds[REFERENCE]
    rewriting = [value / interval for value in seconds.pop("rewriting")]
    found = {name: {"seconds": spread(values), "ratio": ratio(values, reference)} for name, values in seconds.items()}
    for arm, stage in stages.items():
        if stage.rehearsal:
            summed = [sum(both) for both in zip(seconds[ARMS[arm]], rewriting)]
            found[ARMS[arm]] |= {"rewriting": ratio(rewriting, reference), "in_sum": ratio(summed, reference)}
    theirs, ours = trainer_seconds(shape, dataset, stages["baseline"].optimize, rounds)
    return found | {TRAINER: {"seconds": spread(theirs), "ratio": ratio(theirs, ours)}}
