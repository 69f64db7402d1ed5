"""The contestants: this project's training loop in all its forms, and other ways to train the same model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from k1.arguments import Arguments
from k1.benchmark.gpt import GPT
from k1.benchmark.setting import Setting, Shape
from k1.data.batches import shuffled
from k1.model import count_parameters
from k1.sparse.eigenbasis import restore_eigenbasis
from k1.sparse.rehearsal import begin_rehearsal, write_rehearsal
from k1.training.loop import train

Wait = Callable[[], None]
BETAS = 0.9, 0.95
LORA_RANK = 16
FEW_SEQUENCES = 32
COMPILE = "--compile"
REFERENCE, STAGE_1, LATER = "baseline", "K-1, stage 1", "K-1, later stages"


@dataclass
class Contestant:
    """A model and the loop that trains it, see `k1.benchmark.pacing.Turnstile`.

    `parameters` is the number of the model's parameters, without adapters;
    `teacher` the model whose predictions it rehearses; `loss` works out a batch's loss in
    nats per token. Where `is_deterministic`, torch's deterministic algorithms are on, as in
    the scripts; others use what torch does by default.
    """

    model: nn.Module
    loop: Callable[[Wait], object]
    parameters: int
    loss: Callable[[Tensor], Tensor]
    teacher: nn.Module | None = None
    is_deterministic: bool = False


@dataclass(frozen=True)
class WaitingBlocks:
    """The blocks of a dataset, which call `wait` before a batch is taken."""

    blocks: object
    wait: Wait

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, rows: list[int]) -> dict:
        self.wait()
        return self.blocks[rows]


def library_loss(model: nn.Module, input_ids: Tensor) -> Tensor:
    """The loss as a model of transformers works it out."""
    return model(input_ids=input_ids, labels=input_ids).loss


def own_loop(setting: Setting, method: str, stage: int, *flags: str) -> Contestant:
    """`k1.training.loop.train` as the scripts call it: from fresh weights, or from K-1's first stage."""
    arguments = setting.arguments(method, stage, *flags)
    model = setting.fresh_model()
    first = {"importance": None, "responsibility": None}
    if stage > 1:
        first = torch.load(setting.first_stage, weights_only=True)
        restore_eigenbasis(model, first["model"])
        model.load_state_dict(first.pop("model"))
    # Text is written once after a stage; what is read of it at each step does not depend on how much it is.
    few = replace(arguments, rehearsal_sequences=FEW_SEQUENCES)
    written = write_rehearsal(model, setting.dataset, setting.tokenizer, few) if arguments.rehearsal else None
    rehearsal = begin_rehearsal(model, written, setting.tokenizer, arguments)

    def loop(wait: Wait) -> None:
        blocks = {**setting.dataset.blocks, "train": WaitingBlocks(setting.dataset.blocks["train"], wait)}
        # As in the scripts, nobody else keeps what the training may forget.
        train(
            model, replace(setting.dataset, blocks=blocks), arguments, importance=first.pop("importance"),
            responsibility=first.pop("responsibility"), rehearsal=rehearsal,
        )  # fmt: skip

    loss, teacher = partial(library_loss, model), rehearsal and rehearsal.teacher
    return Contestant(model, loop, count_parameters(model), loss, teacher, is_deterministic=True)


def bare_loop(setting: Setting, model: nn.Module, parameters: int, loss: Callable[[Tensor], Tensor]) -> Contestant:
    """What one writes by hand in PyTorch: the loss, its gradients, clipping, and fused AdamW."""
    arguments = setting.arguments("baseline", 1)

    def loop(wait: Wait) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, **adamw_options(arguments), fused=True)
        blocks = setting.dataset.blocks["train"]
        for rows in shuffled(len(blocks), arguments.batch_size, seed=0):
            wait()
            loss(blocks[rows]["input_ids"].long()).backward()
            nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    return Contestant(model, loop, parameters, loss)


def adamw_options(arguments: Arguments) -> dict:
    """The options of AdamW that all contestants share."""
    return {"lr": arguments.learning_rate, "betas": BETAS, "weight_decay": arguments.weight_decay}


def plain_model(setting: Setting) -> Contestant:
    """The baseline's model in a bare loop."""
    model = setting.fresh_model()
    return bare_loop(setting, model, count_parameters(model), partial(library_loss, model))


def low_rank(setting: Setting) -> Contestant:
    """The baseline's model with low-rank adapters (LoRA, arXiv:2106.09685), which alone are trained, in a bare loop."""
    from peft import LoraConfig, get_peft_model

    model = setting.fresh_model()
    parameters = count_parameters(model)
    adapted = get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear"))
    return bare_loop(setting, adapted, parameters, partial(library_loss, adapted))


def plain_gpt(setting: Setting) -> Contestant:
    """A hand-written GPT with as many parameters as the baseline's model, in a bare loop."""
    arguments = setting.arguments("baseline", 1)
    reference = count_parameters(setting.fresh_model())
    torch.manual_seed(0)
    model = GPT(
        setting.tokenizer.get_vocab_size(), arguments.hidden_size, arguments.layers, arguments.heads,
        arguments.seq_length, reference,
    )  # fmt: skip
    return bare_loop(setting, model, count_parameters(model), lambda input_ids: model(input_ids, input_ids))


def trainer(setting: Setting) -> Contestant:
    """The baseline's model in the `Trainer` of transformers, with fused AdamW, that reports and saves nothing."""
    from transformers import Trainer, TrainingArguments

    arguments = setting.arguments("baseline", 1)
    model = setting.fresh_model()

    def loop(wait: Wait) -> None:
        def collate(rows: list[dict]) -> dict:
            wait()
            input_ids = torch.stack([row["input_ids"] for row in rows]).long()
            return {"input_ids": input_ids, "labels": input_ids}

        with TemporaryDirectory() as folder:
            settings = TrainingArguments(
                folder, max_steps=arguments.max_steps, per_device_train_batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate, weight_decay=arguments.weight_decay, adam_beta2=BETAS[1],
                max_grad_norm=arguments.max_grad_norm, optim="adamw_torch_fused", use_cpu=True, report_to="none",
                save_strategy="no", logging_strategy="no", disable_tqdm=True,
            )  # fmt: skip
            blocks = setting.dataset.blocks["train"]
            Trainer(model, settings, train_dataset=blocks, data_collator=collate).train()

    return Contestant(model, loop, count_parameters(model), partial(library_loss, model))



# How K-1 and the baseline are trained: method, stage, flags.
OWN = {
    REFERENCE: ("baseline", 1),
    STAGE_1: ("k1", 1),
    "K-1, later stages, no rehearsal": ("k1", 2, "--rehearsal", "0"),
    LATER: ("k1", 2),
    "K-1, later stages, gain": ("k1", 2, "--selection", "gain"),
    "baseline, compiled": ("baseline", 1, COMPILE),
    "K-1, later stages, compiled": ("k1", 2, COMPILE),
}
OTHERS: dict[str, Callable[[Setting], Contestant]] = {
    "bare PyTorch loop": plain_model,
    "Hugging Face Trainer": trainer,
    "LoRA (peft)": low_rank,
    "plain GPT": plain_gpt,
}
CONTESTANTS = (*OWN, *OTHERS)
# Packages of requirements-dev.txt.
NEEDED = {"Hugging Face Trainer": "accelerate", "LoRA (peft)": "peft"}


def build(name: str, setting: Setting) -> Contestant:
    """The contestant `name`."""
    if name in OWN:
        method, stage, *flags = OWN[name]
        return own_loop(setting, method, stage, *flags)
    return OTHERS[name](setting)


def contestants_at(shape: Shape) -> list[str]:
    """The contestants at `shape`, whatever packages they need."""
    return [name for name in CONTESTANTS if shape.compiles or COMPILE not in OWN.get(name, ())]


def missing_packages() -> dict[str, str]:
    """The contestants that cannot take part, and the package that each lacks."""
    return {name: package for name, package in NEEDED.items() if find_spec(package) is None}
