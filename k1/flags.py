"""The flags of the training scripts, with their help; the settings that follow from them are in `k1.arguments`."""

import argparse
from dataclasses import dataclass, field
from typing import Literal

from k1.errors import Parser
from k1.sparse import POLICIES, UPDATE_FRACTION


def flag(help_text: str, default=None):
    """A dataclass field that becomes a command-line flag with this help text."""
    return field(default=default, metadata={"help": help_text})


def module_parser(module: str, description: str) -> Parser:
    """The command line of `python3 -m module`, whose help shows `description` line by line."""
    return Parser(
        prog=f"python3 -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@dataclass
class DataFlags:
    data_source: Literal["auto", "hub", "bundled"] = flag(
        "where preset datasets come from; auto takes the bundled text when the hub cannot be reached", "auto"
    )
    max_documents: int | None = flag("training documents read per dataset (default: by preset)")


@dataclass
class OneDatasetFlags:
    dataset_name: str | None = flag(
        "preset name, hub id (owner/name or owner/name:config) or local path (default: the one named in the script)"
    )


@dataclass
class AllDatasetsFlags:
    dataset_names: list[str] = field(
        default_factory=list,
        metadata={"help": "the three datasets, in order (default: those named in the script)", "metavar": "NAME"},
    )


@dataclass
class TrainingFlags:
    preset: Literal["smoke", "quick", "study", "full"] | None = flag("size of the experiment (default: quick)")
    init_from: str | None = flag(
        "start stage 1 from this pretrained causal language model, a folder or a name on the hub (owner/name), with "
        "its own tokenizer (default: fresh weights)"
    )
    max_steps: list[int] | None = flag(
        "optimizer steps of each stage; train_baseline_all.py also takes one number for each; 0 for stage 1 keeps the "
        "model of --init_from as it is (default: by preset)"
    )
    batch_size: int | None = flag("sequences per forward pass (default: by preset)")
    gradient_accumulation_steps: int | None = flag("forward passes per optimizer step (default: by preset)")
    seq_length: int | None = flag("tokens per sequence (default: by preset)")
    learning_rate: float | None = flag("peak learning rate (default: by preset, tuned for each method)")
    warmup_steps: int | None = flag("steps of linear warm-up (default: by preset)")
    weight_decay: float | None = flag("decoupled weight decay of matrices (default: by preset)")
    max_grad_norm: float | None = flag("gradients are clipped to this norm (default: by preset)")
    rehearsal: float | None = flag(
        "share of each batch, from stage 2, that is rehearsed text, which the model writes itself; 0 switches it off "
        "(default: K-1 by preset, baseline 0)"
    )
    rehearsal_sequences: int | None = flag(
        "sequences that the model writes at the end of a stage, for later ones (default: by preset)"
    )
    rehearsal_interval: int | None = flag(
        "steps after which the model in training regenerates what it rehearses (default: by preset)"
    )
    rehearsal_weight: float | None = flag(
        "weight of the divergence on rehearsed text against the loss on new text (default: by preset)"
    )
    rehearsal_on_top: bool = flag("add the rehearsed sequences to the batch instead of replacing new ones", False)
    forgetting_budget: float | None = flag(
        "at the end of a stage the largest share of its change is kept at which the divergence on the model's own text "
        "stays below this, in nats per token (default: all of the change)"
    )
    seed: int | None = flag("initial weights, order of the text and what sparse updates draw (default: 0)")
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto takes the fastest one present", "auto")
    precision: Literal["auto", "float32", "bfloat16"] = flag("auto is bfloat16 on cuda, else float32", "auto")
    compile: bool = flag(
        "compile the forward and backward pass (torch.compile): the first step takes a minute, the others less time; "
        "results depend on it in the last bits",
        False,
    )
    threads: int | None = flag("CPU threads (default: one per core); results depend on it in the last bits")
    models_dir: str = flag("folder of the checkpoints", "models")
    save_steps: int | None = flag("steps between two writings of the resume file (default: about every 60 seconds)")
    report_to: Literal["none", "tensorboard"] = flag(
        "tensorboard writes events that it shows (pip install tensorboard)", "none"
    )
    logging_dir: str | None = flag("folder of the events, with a folder a checkpoint (default: runs in --models_dir)")
    overwrite: bool = flag("replace checkpoints that exist, and start anew if a training was stopped", False)


@dataclass
class SparseUpdateFlags:
    update_fraction: float | None = flag(f"share of all parameters updated per step (default: {UPDATE_FRACTION})")
    policy: Literal[*POLICIES] | None = flag(  # type: ignore[valid-type]
        "how the parameters to update are chosen: windows draws others at each step, stage once for the whole "
        "stage, so that the others stay bit-identical; the choice holds for the later stages too (default: windows)"
    )
