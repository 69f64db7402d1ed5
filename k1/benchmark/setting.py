"""What the contestants of a benchmark share: the shape of the model, the text, and a first stage to go on from."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from k1.arguments import Arguments, parse_training_flags
from k1.data.loader import DataLoader, TokenizedDataset
from k1.data.tokenizer import load_tokenizer, train_tokenizer
from k1.model import build_model, configure_torch, model_config
from k1.presets import PRESETS, Preset

WORDS = 5_000
LETTERS = "etaoinshrdlucmfwypvbgk"
DOCUMENT_WORDS = 100, 600
# Enough that the held-out shares fill an evaluation.
CHARACTERS_PER_EVALUATED_TOKEN = 80


@dataclass(frozen=True)
class Shape:
    """A size of the model: `preset` with all widths times `width`.

    `rounds` is how often each contestant has its turn. `trains` says whether whole
    training steps are measured, `compiles` compiled ones too, `optimizer_alone` the
    optimizer by itself, and `stages` what goes on around the training of a stage.
    """

    preset: str
    rounds: int
    width: int = 1
    trains: bool = True
    optimizer_alone: bool = False
    stages: bool = False
    compiles: bool = False

    @property
    def size(self) -> Preset:
        """The preset at this shape."""
        preset = PRESETS[self.preset]
        return replace(
            preset,
            hidden_size=preset.hidden_size * self.width,
            intermediate_size=preset.intermediate_size * self.width,
            heads=preset.heads * self.width,
        )


SHAPES = {
    "smoke": Shape("smoke", rounds=5, optimizer_alone=True, stages=True),
    "quick": Shape("quick", rounds=15, stages=True, compiles=True),
    "wide": Shape("quick", rounds=4, width=4, compiles=True),
    "full": Shape("full", rounds=3, trains=False, optimizer_alone=True),
}


@dataclass(frozen=True)
class Setting:
    """A shape on `threads` threads; `folder` is where its text, tokenizer and first stage lie."""

    shape: str
    threads: int
    folder: Path

    def arguments(self, method: str, stage: int, *flags: str) -> Arguments:
        """The settings of a stage, from the flags that a user of the scripts would type."""
        shape = SHAPES[self.shape]
        typed = ["--preset", shape.preset, "--device", "cpu", "--threads", str(self.threads), *flags]
        arguments = parse_training_flags("", method, typed).resolve(stage)
        names = ("hidden_size", "intermediate_size", "heads")
        return replace(arguments, **{name: getattr(shape.size, name) for name in names})

    def begin(self) -> None:
        """Configure torch in the process that measures."""
        configure_torch(self.threads)

    def read(self) -> TokenizedDataset:
        """Read text and tokenizer now, so that neither time nor memory of it is counted later."""
        return self.dataset

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, trained on the text the first time."""
        path = self.folder / f"{self.shape}-tokenizer.json"
        if not path.exists():
            arguments = self.arguments("k1", 1)
            tokenizer = train_tokenizer(self._loader.text("train"), arguments.vocabulary_size)
            path.write_text(tokenizer.to_str())
        return load_tokenizer(path.read_text())

    @cached_property
    def dataset(self) -> TokenizedDataset:
        """The text, tokenized."""
        return self._loader.tokenize(self.tokenizer)

    @cached_property
    def _loader(self) -> DataLoader:
        return DataLoader(str(self.folder / f"{self.shape}.jsonl"), self.arguments("k1", 1))

    def fresh_model(self) -> PreTrainedModel:
        """The model that stage 1 begins with."""
        return build_model(model_config(self.arguments("k1", 1), self.tokenizer.get_vocab_size()), seed=0)

    @property
    def first_stage(self) -> Path:
        """The file with what a later stage of K-1 goes on from: its model, importance and responsibility."""
        return self.folder / f"{self.shape}-first.pt"

    def checkpoint(self, method: str) -> Path:
        """The file with the checkpoint of a first stage of `method`."""
        return self.folder / f"{self.shape}-{method}.pt"

    def held_out(self) -> torch.Tensor:
        """Token ids, (rows, length), that no contestant trains on."""
        blocks = self.dataset.blocks["test"]
        return blocks[: min(8, len(blocks) - 1)]["input_ids"].long()


def made_up_documents(characters: int, seed: int = 0) -> Iterator[str]:
    """Documents of made-up words of about `characters` in all; few words are frequent and many rare, as in language."""
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices(LETTERS, k=generator.randint(2, 9))) for _ in range(WORDS)]
    weights = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))
    written = 0
    while written < characters:
        words = generator.choices(vocabulary, cum_weights=weights, k=generator.randint(*DOCUMENT_WORDS))
        text = " ".join(words).capitalize() + "."
        written += len(text)
        yield text


def write_corpus(path: Path, characters: int) -> None:
    """Write `made_up_documents` to `path` as .jsonl, one by one."""
    with open(path, "w", encoding="utf-8") as file:
        for text in made_up_documents(characters):
            file.write(json.dumps({"text": text}) + "\n")
