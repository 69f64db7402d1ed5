"""The command line of the training scripts, and the settings of a stage that follow from it."""

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import HfArgumentParser

from k1.errors import K1Error, Parser, UsageError, user_path
from k1.flags import AllDatasetsFlags, DataFlags, OneDatasetFlags, SparseUpdateFlags, TrainingFlags
from k1.parallel import process_count
from k1.presets import ARM_FILES, MAXIMUM, PRESETS, STAGES, arm_of
from k1.sparse import UPDATE_FRACTION


@dataclass(frozen=True)
class Arguments:
    """Every setting of one stage, with presets and checkpoints taken into account."""

    method: str
    stage: int
    preset: str
    dataset_name: str | None
    data_source: str
    max_documents: int
    evaluation_tokens: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    vocabulary_size: int
    seq_length: int
    batch_size: int
    gradient_accumulation_steps: int
    max_steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    update_fraction: float
    policy: str
    rehearsal: float
    rehearsal_sequences: int
    rehearsal_interval: int
    rehearsal_weight: float
    rehearsal_on_top: bool
    forgetting_budget: float | None
    seed: int
    device: str
    precision: str
    threads: int
    compile: bool

    @property
    def rehearsed_rows(self) -> int:
        """Rehearsed sequences in each forward pass."""
        return round(self.rehearsal * self.batch_size)

    @property
    def new_rows(self) -> int:
        """Sequences of the new dataset in each forward pass."""
        return self.batch_size - (0 if self.rehearsal_on_top else self.rehearsed_rows)

    @property
    def tokens_per_step(self) -> int:
        """Training tokens that one optimizer step reads, rehearsed ones included."""
        return (self.new_rows + self.rehearsed_rows) * self.gradient_accumulation_steps * self.seq_length

    @property
    def stage_seed(self) -> int:
        """Seed of the stage's text order and of what sparse updates draw: another one for each stage of each seed."""
        return 10 * self.seed + self.stage

    def as_dict(self) -> dict:
        """The settings as plain values, as a checkpoint keeps them."""
        return dataclasses.asdict(self)


# What a later stage takes from the checkpoint it continues; a flag may repeat it but not change it.
INHERITED = ("preset", "seq_length", "seed", "update_fraction", "policy")
# What a flag sets and otherwise the preset, without further ado.
FROM_PRESET = (
    "max_documents", "seq_length", "batch_size", "gradient_accumulation_steps", "max_grad_norm", "rehearsal_sequences",
    "rehearsal_interval", "rehearsal_weight",
)  # fmt: skip
MAX_THREADS = 1_024  # of many more the system has none
MODEL_SHAPE = ("hidden_size", "intermediate_size", "layers", "heads", "vocabulary_size")
MINIMUM = {
    "max_documents": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "seq_length": 2,
    "warmup_steps": 0, "weight_decay": 0, "seed": 0, "threads": 1,
    "save_steps": 1, "rehearsal_sequences": 1, "rehearsal_interval": 1, "rehearsal_weight": 0, "forgetting_budget": 0,
}  # fmt: skip


class TrainingParser(Parser, HfArgumentParser):
    """The command line of a training script."""


class Flags(argparse.Namespace):
    """What was typed on the command line of a training script; `None` if a flag was not given."""

    method: str
    models_dir: Path
    init_from: str | None
    max_steps: list[int] | None
    rehearsal: float | None
    rehearsal_on_top: bool
    forgetting_budget: float | None
    compile: bool
    save_steps: int | None
    report_to: str
    logging_dir: Path
    overwrite: bool

    @property
    def arm(self) -> str:
        """Which arm of the experiment the training is, a key of `k1.presets.ARM_FILES`."""
        is_default = self.rehearsal is None
        return arm_of(self.method, self.method == "k1" if is_default else self.rehearsal > 0)

    def checkpoint(self, stage: int) -> Path:
        """Where the arm's checkpoint of `stage` is."""
        return self.models_dir / ARM_FILES[self.arm][stage - 1]

    def max_steps_of_stages(self) -> list[int] | None:
        """`--max_steps` for each stage; None if the flag was not given."""
        return self.max_steps * STAGES if self.max_steps and len(self.max_steps) == 1 else self.max_steps

    def resolve(self, stage: int, previous: dict | None = None) -> Arguments:
        """Settings of `stage` (1 or later), given the `arguments` of the checkpoint it continues.

        Order of precedence: the checkpoint for model and sparse-update settings,
        then the command line, then the preset. Raises `UsageError` when a flag
        contradicts the checkpoint.
        """
        inherited = self._inherited(previous)

        def value(name, default):
            if name in inherited:
                return previous[name]
            given = getattr(self, name, None)
            return default if given is None else given

        preset_name = value("preset", "quick")
        preset = PRESETS[preset_name]
        size = min(stage, STAGES) - 1  # of a longer stream the later stages are as the last one
        max_steps = (self.max_steps_of_stages() or preset.max_steps)[size]
        batch_size = value("batch_size", preset.batch_size)
        if batch_size % process_count():
            raise UsageError(f"--batch_size {batch_size} cannot be shared evenly by {process_count()} processes")
        if self.compile and process_count() > 1:
            raise UsageError("--compile is for a training in one process; leave it out")
        device = resolve_device(self.device)
        update_fraction = 1.0 if self.method == "baseline" else value("update_fraction", UPDATE_FRACTION)
        rehearsal = self._rehearsal(stage, preset.rehearsal, batch_size)
        rates = preset.learning_rates[self.arm]
        return Arguments(
            method=self.method,
            stage=stage,
            preset=preset_name,
            dataset_name=getattr(self, "dataset_name", None),
            data_source=self.data_source,
            max_steps=max_steps,
            warmup_steps=value("warmup_steps", min(preset.warmup_steps, max_steps // 5)),
            learning_rate=value("learning_rate", rates[min(stage, 2) - 1]),
            update_fraction=update_fraction,
            policy=value("policy", "windows"),
            rehearsal=rehearsal,
            rehearsal_on_top=bool(rehearsal and self.rehearsal_on_top),
            forgetting_budget=self.forgetting_budget if rehearsal else None,
            weight_decay=value("weight_decay", preset.weight_decay),
            seed=value("seed", 0),
            device=device,
            precision=resolve_precision(self.precision, device),
            threads=value("threads", available_cores()),
            compile=self.compile,
            evaluation_tokens=preset.evaluation_tokens,
            **{name: previous[name] if previous else getattr(preset, name) for name in MODEL_SHAPE},
            **{name: value(name, getattr(preset, name)) for name in FROM_PRESET},
        )

    def _inherited(self, previous: dict | None) -> set[str]:
        """The settings that a stage takes from the one it continues; raises `UsageError` if a flag contradicts."""
        if previous is None:
            return set()
        if self.method == "k1" and self.init_from is not None:
            raise UsageError("--init_from is for stage 1, which a later stage continues; leave it out")
        for name in INHERITED:
            given = getattr(self, name, None)
            if given is not None and given != previous[name]:
                raise UsageError(
                    f"--{name} {given} contradicts the checkpoint, which was trained with {previous[name]}; "
                    f"leave the flag out or train stage 1 again with it"
                )
        return set(INHERITED)

    def _rehearsal(self, stage: int, default: float, batch_size: int) -> float:
        """The share of rehearsed text in a stage; raises `UsageError` for one that is no whole number of sequences."""
        given = getattr(self, "rehearsal", None)
        rehearsal = given if given is not None else default if self.method == "k1" else 0.0
        if stage == 1 or not rehearsal:
            return 0.0
        if not 0 < round(rehearsal * batch_size) < batch_size:
            raise UsageError(
                f"--rehearsal {rehearsal:g} of --batch_size {batch_size} leaves no whole sequence for one of the two; "
                "choose another share, or 0"
            )
        return rehearsal


def available_cores() -> int:
    """CPU cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Started by torchrun, the processes of one machine share its cores.
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def resolve_device(device: str) -> str:
    """The torch device to use for a `--device` value; raises `K1Error` if it is not present."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if present[name])
    if not present[device]:
        raise K1Error(f"--device {device}: torch finds no such device here; use --device cpu")
    return device


def resolve_precision(precision: str, device: str) -> str:
    """The number format of the forward pass for a `--precision` value."""
    if precision != "auto":
        return precision
    return "bfloat16" if device == "cuda" else "float32"


def parse_training_flags(description: str, method: str, argv: list[str] | None = None) -> Flags:
    """Parse the command line of a training script of `method` (`k1` or `baseline`).

    Exits with status 2, the usage and one line on stderr when a flag is unknown or out of range.
    """
    groups = [DataFlags, TrainingFlags]
    groups += [OneDatasetFlags, SparseUpdateFlags] if method == "k1" else [AllDatasetsFlags]
    parser = TrainingParser(groups, description=description, formatter_class=argparse.HelpFormatter)
    flags = parser.parse_args(argv, namespace=Flags(method=method))
    for name, minimum in MINIMUM.items():
        value = getattr(flags, name, None)
        maximum = MAX_THREADS if name == "threads" else MAXIMUM
        if value is not None and not minimum <= value <= maximum:
            parser.error(f"--{name} must be at least {minimum} and at most {maximum}, not {value}")
    check_max_steps(flags, parser)
    for name in ("learning_rate", "max_grad_norm"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name} must be a positive number, not {value}")
    if flags.rehearsal is not None and not 0 <= flags.rehearsal < 1:
        parser.error(f"--rehearsal must be at least 0 and below 1, not {flags.rehearsal}")
    update_fraction = getattr(flags, "update_fraction", None)
    if update_fraction is not None and not 0 < update_fraction <= 1:
        parser.error(f"--update_fraction must be above 0 and at most 1, not {update_fraction}")
    if method == "baseline" and len(flags.dataset_names) not in (0, STAGES):
        parser.error(f"--dataset_names takes {STAGES} names, not {len(flags.dataset_names)}")
    if flags.logging_dir is not None and flags.report_to == "none":
        parser.error("--logging_dir is for events; add --report_to tensorboard, or leave it out")
    flags.models_dir = user_path(flags.models_dir)
    flags.logging_dir = user_path(flags.logging_dir) if flags.logging_dir else flags.models_dir / "runs"
    return flags


def check_max_steps(flags: Flags, parser: argparse.ArgumentParser) -> None:
    """Exit with status 2 if `--max_steps` has the wrong number of values, or one that is out of range."""
    steps = flags.max_steps or [1]
    if len(steps) not in ((1,) if flags.method == "k1" else (1, STAGES)):
        parser.error(f"--max_steps takes 1 number{'' if flags.method == 'k1' else f' or {STAGES}'}, not {len(steps)}")
    # Only a pretrained model can go without training on dataset 1, and no later stage can.
    may_be_0 = flags.init_from is not None and (flags.method == "k1" or len(steps) > 1)
    for stage, value in enumerate(steps, start=1):
        minimum = 0 if may_be_0 and stage == 1 else 1
        if not minimum <= value <= MAXIMUM:
            hint = "; 0 is for stage 1 with --init_from, as in --max_steps 0 600 600" if value == 0 else ""
            parser.error(f"--max_steps must be at least {minimum} and at most {MAXIMUM}, not {value}{hint}")
