"""Every setting of a training, once: as a field of `Arguments`, of which the command line and the presets are made."""

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import torch
from transformers.hf_argparser import string_to_bool

from k1.errors import K1Error, Parser, UsageError
from k1.experiment import ARM_FILES, ARM_KINDS, ARMS, STAGES, arm_of
from k1.flag_types import POSITIVE, Bounds, at_least, checked, folder_to_write
from k1.parallel import join_processes, process_count
from k1.sparse import POLICIES, UPDATE_FRACTION

# What a preset changes of the defaults below, which are those of preset quick.
CHANGES = {
    "smoke": dict(
        hidden_size=32, intermediate_size=88, layers=2, heads=2, vocabulary_size=512,
        max_steps=(60, 30, 30), warmup_steps=5, evaluation_tokens=8_192, max_documents=200, rehearsal_sequences=64,
        learning_rate=dict.fromkeys(ARMS, (1e-2, 1e-2)),
    ),
    "quick": dict(),
    "study": dict(
        hidden_size=64, intermediate_size=172, layers=2, heads=2, vocabulary_size=1_024, batch_size=16,
        max_steps=(300, 150, 150), warmup_steps=25, evaluation_tokens=16_384,
        learning_rate={
            "baseline": (4e-3, 1e-3), "sparse": (4e-3, 1e-3), "baseline_rehearsal": (4e-3, 3e-3), "k1": (4e-3, 3e-3),
        },
    ),
    "full": dict(
        hidden_size=768, intermediate_size=2_048, layers=12, heads=12, vocabulary_size=32_000,
        seq_length=1_024, gradient_accumulation_steps=8,
        max_steps=(600, 600, 600), warmup_steps=60, evaluation_tokens=1_048_576, max_documents=200_000,
        learning_rate=dict.fromkeys(ARMS, (6e-4, 3e-4)),
    ),
}  # fmt: skip


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


def rehearsed_share(share: float, known: SimpleNamespace) -> float:
    """The share of rehearsed text in a stage; raises `UsageError` for one that is no whole number of sequences."""
    if known.stage == 1 or not ARM_KINDS[known.arm][1]:
        return 0.0
    if not 0 < round(share * known.batch_size) < known.batch_size:
        raise UsageError(
            f"--rehearsal {share:g} of --batch_size {known.batch_size} leaves no whole sequence for one of the two; "
            "choose another share, or 0"
        )
    return share


@dataclass(frozen=True)
class Setting:
    """What a field of `Arguments` says of itself.

    `computed` and `becomes` are given a value and a namespace of the arm, the stage and all settings before this one.
    """

    help: str = ""  # of its flag; without there is none
    default: Any = None
    bounds: Bounds | None = None  # of a number
    choices: Iterable[str] | None = None
    nargs: str | None = None
    metavar: str | None = None
    method: str | None = None  # whose scripts alone have the flag
    is_preset: bool = False  # a preset may have another default
    is_inherited: bool = False  # from the checkpoint that a stage continues; a flag may repeat it but not change it
    computed: Callable = lambda value, known: value  # what is used if none was given: made of the default
    becomes: Callable = lambda value, known: value  # what is used, also of what was given


def setting(*said: Any, is_stored: bool = True, **options: Any) -> Any:
    """A field of `Arguments`, see `Setting`; what is not stored does not matter to what is learned."""
    metadata = {"setting": Setting(*said, **options)}
    return field(metadata=metadata) if is_stored else field(metadata=metadata, default=None, compare=False)


by_preset = partial(setting, is_preset=True)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Every setting of one stage, with presets and checkpoints taken into account."""

    preset: str = setting("size of the experiment (default: quick)", "quick", choices=CHANGES, is_inherited=True)
    method: str = setting()
    stage: int = setting()
    data_source: str = setting(
        "where preset datasets come from; auto takes the bundled text when the hub cannot be reached", "auto",
        choices=("auto", "hub", "bundled"),
    )  # fmt: skip
    max_documents: int = by_preset("training documents read per dataset", 20_000, at_least(1))
    evaluation_tokens: int = by_preset(default=65_536)
    hidden_size: int = by_preset(default=128, is_inherited=True)
    intermediate_size: int = by_preset(default=344, is_inherited=True)
    layers: int = by_preset(default=4, is_inherited=True)
    heads: int = by_preset(default=4, is_inherited=True)
    vocabulary_size: int = by_preset(default=2_048, is_inherited=True)
    init_from: str | None = setting(
        "start stage 1 from this pretrained causal language model, a folder or a name on the hub (owner/name), with "
        "its own tokenizer (default: fresh weights)", is_stored=False,
    )  # fmt: skip
    max_steps: int = by_preset(
        "optimizer steps of each stage; train_baseline_all.py also takes one number for each; 0 for stage 1 keeps the "
        "model of --init_from as it is (default: by preset)", (1_200, 600, 600), at_least(0), nargs="+",
        # By stage; of a longer stream the later stages are as the last one.
        becomes=lambda steps, known: steps[min(known.stage, len(steps)) - 1],
    )  # fmt: skip
    batch_size: int = by_preset("sequences per forward pass", 8, at_least(1))
    gradient_accumulation_steps: int = by_preset("forward passes per optimizer step", 1, at_least(1))
    seq_length: int = by_preset("tokens per sequence", 128, at_least(2), is_inherited=True)
    learning_rate: float = by_preset(
        "peak learning rate (default: by preset, tuned for each method)",
        # By arm: that of stage 1, which does not rehearse, and that of all later stages.
        {"baseline": (3e-3, 5e-4), "sparse": (3e-3, 5e-4), "baseline_rehearsal": (3e-3, 2.5e-3), "k1": (3e-3, 2.5e-3)},
        POSITIVE, computed=lambda rates, known: rates[known.arm][min(known.stage, 2) - 1],
    )  # fmt: skip
    warmup_steps: int = by_preset(
        "steps of linear warm-up", 100, at_least(0), computed=lambda steps, known: min(steps, known.max_steps // 5)
    )
    weight_decay: float = by_preset("decoupled weight decay of matrices", 0.1, at_least(0))
    max_grad_norm: float = by_preset("gradients are clipped to this norm", 1.0, POSITIVE)
    rehearsal: float = by_preset(
        "share of each batch, from stage 2, that is rehearsed text, which the model writes itself; 0 switches it off "
        "(default: K-1 by preset, baseline 0)", 0.25,
        ("at least 0 and below 1", lambda value: 0 <= value < 1), becomes=rehearsed_share,
    )  # fmt: skip
    rehearsal_sequences: int = by_preset(
        "sequences that the model writes at the end of a stage, for later ones", 512, at_least(1)
    )
    rehearsal_interval: int = by_preset(
        "steps after which the model in training regenerates what it rehearses", 50, at_least(1)
    )
    rehearsal_weight: float = by_preset(
        "weight of the divergence on rehearsed text against the loss on new text", 3.0, at_least(0)
    )
    rehearsal_on_top: bool = setting(
        "add the rehearsed sequences to the batch instead of replacing new ones", False,
        becomes=lambda is_on_top, known: bool(known.rehearsal and is_on_top),
    )  # fmt: skip
    forgetting_budget: float | None = setting(
        "at the end of a stage the largest share of its change is kept at which the divergence on the model's own text "
        "stays below this, in nats per token (default: all of the change)", None, at_least(0),
        becomes=lambda nats, known: nats if known.rehearsal else None,
    )  # fmt: skip
    seed: int = setting(
        "initial weights, order of the text and what sparse updates draw (default: 0)",
        0,
        at_least(0),
        is_inherited=True,
    )
    device: str = setting(
        "auto takes the fastest one present", "auto", choices=("auto", "cpu", "cuda", "mps"),
        becomes=lambda device, known: resolve_device(device),
    )  # fmt: skip
    precision: str = setting(
        "auto is bfloat16 on cuda, else float32", "auto", choices=("auto", "float32", "bfloat16"),
        becomes=lambda chosen, known: {"auto": "bfloat16" if known.device == "cuda" else "float32"}.get(chosen, chosen),
    )  # fmt: skip
    compile: bool = setting(
        "compile the forward and backward pass (torch.compile): the first step takes a minute, the others less time; "
        "results depend on it in the last bits", False,
    )  # fmt: skip
    threads: int = setting(
        "CPU threads (default: one per core); results depend on it in the last bits", None, at_least(1, 1_024),
        computed=lambda none, known: available_cores(),
    )  # fmt: skip
    models_dir: Path = setting("folder of the checkpoints", "models", is_stored=False)
    save_steps: int | None = setting(
        "steps between two writings of the resume file (default: about every 60 seconds)",
        None,
        at_least(1),
        is_stored=False,
    )
    report_to: str = setting(
        "tensorboard writes events that it shows (pip install tensorboard)", "none", choices=("none", "tensorboard"),
        is_stored=False,
    )  # fmt: skip
    logging_dir: Path = setting(
        "folder of the events, with a folder a checkpoint (default: runs in --models_dir)", is_stored=False
    )
    overwrite: bool = setting("replace what was trained with other settings, finished or begun", False, is_stored=False)
    dataset_name: str | None = setting(
        "preset name, hub id (owner/name or owner/name:config) or local path (default: the one named in the script)",
        method="k1",
    )
    dataset_names: list[str] = setting(
        "the three datasets, in order (default: those named in the script)", (), nargs=STAGES, metavar="NAME",
        method="baseline", is_stored=False,
    )  # fmt: skip
    update_fraction: float = setting(
        f"share of all parameters updated per step (default: {UPDATE_FRACTION})", UPDATE_FRACTION,
        ("above 0 and at most 1", lambda value: 0 < value <= 1), method="k1", is_inherited=True,
        computed=lambda share, known: share if known.method == "k1" else 1.0,
    )  # fmt: skip
    policy: str = setting(
        "how the parameters to update are chosen: windows draws others at each step, stage once for the whole "
        "stage, so that the others stay bit-identical; the choice holds for the later stages too (default: windows)",
        "windows", choices=POLICIES, method="k1", is_inherited=True,
    )  # fmt: skip

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
        return {item.name: getattr(self, item.name) for item in fields(self) if item.compare}


SETTINGS = {item.name: item.metadata["setting"] for item in fields(Arguments)}
DEFAULTS = {name: item.default for name, item in SETTINGS.items() if item.is_preset}
PRESETS = {name: SimpleNamespace(**DEFAULTS | changes) for name, changes in CHANGES.items()}


class Flags(argparse.Namespace):
    """What was typed on the command line of a script of `method`, and the defaults of what is not stored."""

    @property
    def arm(self) -> str:
        """Which arm of the experiment the training is, a key of `k1.experiment.ARMS`."""
        return arm_of(self.method, self.rehearsal > 0 if "rehearsal" in self else self.method == "k1")

    def checkpoint(self, stage: int) -> Path:
        """Where the arm's checkpoint of `stage` is."""
        return self.models_dir / ARM_FILES[self.arm][stage - 1]

    def resolve(self, stage: int, previous: dict | None = None) -> Arguments:
        """Settings of `stage` (1 or later), given the `arguments` of the checkpoint it continues.

        Order of precedence: the checkpoint for what is inherited, then the command line, then the preset. Raises
        `UsageError` when a flag contradicts the checkpoint, or another flag.
        """
        typed = {**vars(self), "stage": stage}
        if previous and self.method == "k1" and typed.get("init_from") is not None:
            raise UsageError("--init_from is for stage 1, which a later stage continues; leave it out")
        inherited = {name: previous[name] for name, item in SETTINGS.items() if previous and item.is_inherited}
        for name, value in inherited.items():
            if typed.get(name, value) != value:
                raise UsageError(
                    f"--{name} {typed[name]} contradicts the checkpoint, which was trained with {value}; leave the "
                    "flag out or train stage 1 again with it"
                )
        given = typed | inherited
        preset = vars(PRESETS[given.get("preset", SETTINGS["preset"].default)])
        known = SimpleNamespace(arm=self.arm)
        for name, item in SETTINGS.items():
            value = given[name] if name in given else item.computed(preset.get(name, item.default), known)
            setattr(known, name, item.becomes(value, known))
        if known.batch_size % process_count():
            raise UsageError(f"--batch_size {known.batch_size} cannot be shared evenly by {process_count()} processes")
        if known.compile and process_count() > 1:
            raise UsageError("--compile is for a training in one process; leave it out")
        return Arguments(**{name: getattr(known, name) for name in SETTINGS})


# How the text of a flag becomes a value, unless the type itself makes one.
KINDS = {bool: string_to_bool, Path: folder_to_write}


def settings_of(arm: str, preset: str, stage: int = 1, **changes: Any) -> Arguments:
    """The settings of a stage of `arm` at `preset`, but for `changes`; raises `UsageError` if they contradict."""
    method, rehearses = ARM_KINDS[arm]
    share = PRESETS[preset].rehearsal if rehearses else 0.0
    return Flags(**{"method": method, "preset": preset, "rehearsal": share, **changes}).resolve(stage)


def parse_training_flags(description: str, method: str, argv: list[str] | None = None) -> Flags:
    """Parse the command line of a training script of `method` (`k1` or `baseline`).

    Exits with status 2 and one line on stderr when a flag is unknown or out of range. Started by torchrun, the
    process then joins the others.
    """
    parser = Parser(description=description)
    for item in fields(Arguments):
        said = item.metadata["setting"]
        kind: Any = next(iter(get_args(item.type)), item.type)
        if said.help and said.method in (None, method):
            convert = checked(kind, said.bounds) if said.bounds else KINDS.get(kind, kind)
            parser.add_argument(
                *dict.fromkeys([f"--{item.name}", f"--{item.name.replace('_', '-')}"]),
                help=said.help + " (default: by preset)" * (said.is_preset and "(default" not in said.help),
                default=argparse.SUPPRESS if item.compare else said.default,
                type=convert, choices=said.choices, metavar=said.metavar,
                **{"nargs": "?", "const": True} if kind is bool else {"nargs": said.nargs},
            )  # fmt: skip
    flags = parser.parse_args(argv, namespace=Flags(method=method))
    steps = getattr(flags, "max_steps", [1])
    if len(steps) not in ((1,) if method == "k1" else (1, STAGES)):
        parser.error(f"--max_steps takes 1 number{'' if method == 'k1' else f' or {STAGES}'}, not {len(steps)}")
    # Only a pretrained model can go without training on dataset 1, and no later stage can.
    may_be_0 = flags.init_from is not None and (method == "k1" or len(steps) > 1)
    if 0 in (steps[1:] if may_be_0 else steps):
        parser.error("--max_steps must be at least 1; 0 is for stage 1 with --init_from, as in --max_steps 0 600 600")
    if flags.logging_dir is not None and flags.report_to == "none":
        parser.error("--logging_dir is for events; add --report_to tensorboard, or leave it out")
    flags.logging_dir = flags.logging_dir or flags.models_dir / "runs"
    join_processes()
    return flags
