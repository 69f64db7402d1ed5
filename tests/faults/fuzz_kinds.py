"""The kinds of files that the project reads: a good one of each, how scripts read it, what may come of damage."""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from k1.arguments import Arguments, parse_training_flags
from k1.checkpoints.contents import stage_checkpoint
from k1.checkpoints.storage import load_checkpoint, restore_model, save_checkpoint
from k1.data.cache import SPLITS
from k1.data.loader import DataLoader
from k1.data.tokenizer import load_tokenizer, train_tokenizer
from k1.files import content_digest
from k1.model import build_model, model_config
from k1.report.generation import generate, prompts_of
from k1.sparse.eigenbasis import enter_eigenbasis
from k1.sparse.importance import fisher_information, sample_batches
from k1.training.evaluation import evaluate
from k1.training.loop import train
from k1.training.resume import ResumeFile
from tests.conftest import write_corpus
from tests.faults.checkpoint_mutations import (
    ARCHIVES,
    TENSORS,
    VALUES,
    cyclic,
    exponential,
    in_tensors,
    put,
    resigned,
    without,
    wrong_type,
)
from tests.faults.mutations import BYTES, Mutation
from tests.faults.text_mutations import (
    CSV_ANY,
    JSON_ANY,
    JSON_REFUSED,
    PARQUET_ANY,
    PARQUET_REFUSED,
    SAVED_REFUSED,
    bomb,
)
from tests.faults.tokenizer_mutations import TOKENIZERS, in_json, lengthen, replace_tokenizer


@dataclass(frozen=True)
class Kind:
    """A kind of file: `read(path)` reads it as the scripts do and returns what was read, as a digest.

    After a mutation of `refused` it must raise `K1Error`; after one of `either`, or any damage of bytes, it
    may. With `same`, what it returns must be what the undamaged file gives; with `rebuilt`, it may not raise.
    """

    name: str
    read: Callable[[Path], str]
    refused: dict[str, Mutation] = field(default_factory=dict)
    either: dict[str, Mutation] = field(default_factory=dict)
    same: bool = False
    rebuilt: bool = False

    @property
    def mutations(self) -> dict[str, Mutation]:
        """All mutations by name."""
        return {**BYTES, **self.refused, **self.either}


def small_arguments(**changes: object) -> Arguments:
    """The settings of a model of a few thousand parameters."""
    flags = parse_training_flags("", "k1", ["--preset", "smoke", "--threads", "1", "--seq_length", "16"])
    small = {"hidden_size": 16, "intermediate_size": 24, "layers": 1, "vocabulary_size": 300, "max_steps": 2}
    return replace(flags.resolve(stage=1), **{**small, "batch_size": 2, "evaluation_tokens": 64, **changes})


RESUMED: dict = {}  # what the training of the resume file is called with; a forked process finds it here


class Stopped(Exception):
    """Ends a training after its first step."""


class StoppedAtOnce(ResumeFile):
    """A resume file after which the training stops."""

    def save(self, identity: dict, **state) -> None:
        super().save(identity, **state)
        raise Stopped


def write_good_files(folder: Path) -> None:
    """One good file of each kind, and the tokenizer that the text is read with."""
    corpus = write_corpus(folder, "rivers")
    arguments = small_arguments(importance_batches=1)
    loader = DataLoader(str(corpus), arguments)
    texts = [text for split in SPLITS for text in loader.text(split)]
    tokenizer = train_tokenizer(texts, 300)
    dataset = loader.tokenize(tokenizer)
    model = build_model(model_config(arguments, tokenizer.get_vocab_size()), seed=0)
    untrained = evaluate(model, [dataset], arguments)
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        history = train(model, dataset, arguments)
    sample = sample_batches(dataset, arguments)
    enter_eigenbasis(model, sample, arguments.max_basis_dim)
    scores = {"untrained": untrained, "before": untrained, "after": evaluate(model, [dataset], arguments)}
    importance = fisher_information(model, sample)
    checkpoint = stage_checkpoint(
        model, tokenizer, dataset, arguments, **scores, history=history, importance=importance
    )
    save_checkpoint(folder / "checkpoint.pt", checkpoint)
    begun = build_model(model_config(arguments, tokenizer.get_vocab_size()), seed=0)
    with contextlib.redirect_stderr(open(os.devnull, "w")), contextlib.suppress(Stopped):
        train(begun, dataset, arguments, resume_file=StoppedAtOnce(folder / "checkpoint.pt", save_steps=1))
    RESUMED.update(model=model_config(arguments, tokenizer.get_vocab_size()), dataset=dataset, arguments=arguments)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "text.txt").write_text("\n\n".join(texts))
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes(), mtime=0))
    corpus.rename(folder / "lines.jsonl")
    (folder / "table.csv").write_text("id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)))
    pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), folder / "table.parquet", row_group_size=20)
    Dataset.from_dict({"text": texts}).save_to_disk(folder / "saved")


def read_checkpoint(path: Path) -> str:
    """As a generate script."""
    checkpoint = load_checkpoint(path, "k1")
    model = restore_model(checkpoint, "cpu", fold=True)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    _, _, prompt = prompts_of(checkpoint.datasets, None)[0]
    generate(model, tokenizer, [tokenizer.encode(prompt).ids], 3, 0.8, 40, seed=0)
    return content_digest([checkpoint.model, checkpoint.importance])


def read_resume_file(path: Path) -> str:
    """As a training script that goes on from it."""
    model = build_model(RESUMED["model"], seed=0)
    resume_file = ResumeFile(path.with_name("checkpoint.pt"))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        history = train(model, RESUMED["dataset"], RESUMED["arguments"], resume_file=resume_file)
    if "going on from" not in errors.getvalue():
        raise AssertionError("the training began anew")
    return content_digest([model.state_dict(), [entry["loss"] for entry in history]])


def read_tokenizer(path: Path) -> str:
    """As it is read from a checkpoint."""
    tokenizer = load_tokenizer(path.read_bytes().decode(errors="replace"))
    return hashlib.sha256(f"{tokenizer.encode('The river.').ids} {tokenizer.to_str()}".encode()).hexdigest()


def read_text(path: Path) -> str:
    """As a training script reads its dataset."""
    tokenizer = load_tokenizer((path.parent / "tokenizer.json").read_text())
    blocks = DataLoader(str(path), small_arguments()).tokenize(tokenizer).blocks
    return content_digest({split: list(blocks[split][:]["input_ids"]) for split in SPLITS})


def read_cache(path: Path) -> str:
    """The same text, whose tokens are in the cache."""
    os.environ["K1_CACHE"] = str(path)
    return read_text(path.parent / "lines.jsonl")


def without_checksum(path: Path, random: Random) -> None:
    next(path.rglob("sha256")).unlink()


def other_tokens(path: Path, random: Random) -> None:
    files = sorted(path.rglob("*.arrow"))
    shutil.copy(files[0], files[1])


CHECKPOINT_KEYS = [
    "method", "stage", "model_config", "model", "tokenizer", "arguments", "seed", "datasets", "evaluations",
    "initial_evaluation", "history", "importance", "versions", "format",
]  # fmt: skip
RESUME_KEYS = ["format", "identity", "step", "history", "losses", "model", "optimizer"]
RESUME_VALUES = {
    "a later step than the last": ("step", 10**12),
    "step 0": ("step", 0),
    "another learning rate": ("identity/arguments/learning_rate", 7.0),
    "another text": ("identity/dataset/fingerprint", "0" * 64),
    "another start": ("identity/starting state", "0" * 64),
    "no arguments": ("identity/arguments", {}),
    "no moments": ("optimizer/state", {}),
    "no selection": ("optimizer/selection", {}),
    "pending updates of nothing": ("optimizer/selection/pending_updates", {"lm_head.weight": torch.zeros(3)}),
}
EITHER = {"an attention of the hub", "a kernel of the hub", "a data type of text", "10^12 positions"}
values = {name: put(path, value) for name, (path, value) in VALUES.items()}

KINDS = [
    Kind(
        "checkpoint.pt",
        read_checkpoint,
        refused={
            **ARCHIVES,
            **{f"without {key}": without(key) for key in CHECKPOINT_KEYS},
            **{f"{key} of another type": wrong_type(key) for key in CHECKPOINT_KEYS},
            **{
                f"{name} in {part}": in_tensors(part, change)
                for part in ("model", "importance")
                for name, change in TENSORS.items()
                if (part, name) != ("importance", "zero strides of the right shape")
            },
            **{name: mutation for name, mutation in values.items() if name not in EITHER},
            "a list of itself": resigned(cyclic),
            "2^60 lists": resigned(exponential),
            "more tokens than the model": replace_tokenizer(lengthen),
            **{f"tokenizer: {name}": replace_tokenizer(change) for name, change in TOKENIZERS.items()},
        },
        either={name: values[name] for name in EITHER},
        same=True,
    ),
    Kind(
        "checkpoint.resume.pt",
        read_resume_file,
        refused={
            **ARCHIVES,
            **{f"without {key}": without(key) for key in RESUME_KEYS},
            **{f"{key} of another type": wrong_type(key) for key in RESUME_KEYS},
            **{f"{name} in model": in_tensors("model", change) for name, change in TENSORS.items()},
            **{name: put(path, value) for name, (path, value) in RESUME_VALUES.items()},
            "a list of itself": resigned(cyclic),
        },
        same=True,
    ),
    Kind(
        "tokenizer.json",
        read_tokenizer,
        {name: in_json(change) for name, change in TOKENIZERS.items()},
        same=True,
    ),
    Kind(
        "cache",
        read_cache,
        either={"without a checksum": without_checksum, "the tokens of another split": other_tokens},
        same=True,
        rebuilt=True,
    ),
    Kind("text.txt", read_text),
    Kind("lines.jsonl", read_text, JSON_REFUSED, JSON_ANY),
    Kind("lines.jsonl.gz", read_text, {**JSON_REFUSED, "5 GB in 5 MB": bomb}, JSON_ANY),
    Kind("table.csv", read_text, either=CSV_ANY),
    Kind("table.parquet", read_text, PARQUET_REFUSED, PARQUET_ANY),
    Kind("saved", read_text, SAVED_REFUSED),
]
