"""From a dataset's name to blocks of tokens: split by document, fingerprinted, cached as Arrow files."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from tokenizers import Tokenizer

from k1.config import Arguments
from k1.data.cache import SPLITS, stored
from k1.data.messages import say_once
from k1.data.sources import load_documents
from k1.data.tokenizer import beginning_of_text, end_of_document
from k1.errors import K1Error
from k1.parallel import main_process_first

HELD_OUT_SHARE = 0.05  # of the documents
LARGE_SHARE = 0.1  # of the characters


@dataclass(frozen=True)
class TokenizedDataset:
    """The documents and blocks of one dataset.

    `blocks[split]` is an Arrow dataset whose column `input_ids` holds `seq_length`
    token ids a row; only the last row of validation and test may be shorter. With
    `has_beginnings` each row begins with the token that begins a text, which its model expects.
    """

    name: str
    source: str
    fingerprint: str
    documents: dict[str, Dataset]
    blocks: dict[str, Dataset]
    tokens: dict[str, int]
    prompts: list[str]
    max_documents: int
    has_beginnings: bool = False

    def record(self) -> dict:
        """What a checkpoint keeps of the dataset: plain values, no text but the prompts."""
        names = ("name", "source", "fingerprint", "tokens", "prompts", "max_documents")
        return {name: getattr(self, name) for name in names}


class DataLoader:
    """Reads one dataset: a preset name, a hub id (`owner/name`) or a local path.

    `dataset_name` is what the script names; `--dataset_name` on the command line
    (in `arguments`) takes its place. `documents[split]` is the text, one row a
    document in column `text`; `tokenize` turns it into blocks for the model.
    Raises `K1Error` when the text cannot be had or is too short to be split.
    """

    def __init__(self, dataset_name: str, arguments: Arguments) -> None:
        self.name = arguments.dataset_name or dataset_name
        self.seq_length = arguments.seq_length
        self.max_documents = arguments.max_documents
        with main_process_first():
            documents, self.source = load_documents(self.name, arguments.data_source, arguments.max_documents)
        if self.source == "local":
            # The same file has the same name whatever folder a script is run from.
            self.name = str(Path(self.name).expanduser().resolve())
        self.documents = split_documents(documents, self.name)

    def text(self, split: str) -> Iterator[str]:
        """The documents of one split, one by one."""
        return iter(self.documents[split]["text"])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the text of all splits, in order."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for text in self.text(split):
                encoded = text.encode()
                digest.update(f"{split} {len(encoded)}\n".encode())
                digest.update(encoded)
        return digest.hexdigest()

    def tokenize(self, tokenizer: Tokenizer) -> TokenizedDataset:
        """Encode every split and pack it into blocks, or take them from the cache.

        Documents follow each other with an end-of-document token between them; a block
        begins with the token that begins a text, if the model has one.
        Raises `K1Error` when the training text does not fill one block.
        """
        # What ends a document is in the tokenizer's JSON as well.
        identity = f"{self.fingerprint} {self.seq_length} {tokenizer.to_str()}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:32]
        with main_process_first():
            blocks = {
                split: stored("input_ids", pa.list_(pa.int32()), self._blocks(split, tokenizer), f"{key}-{split}")
                for split in SPLITS
            }
        if not len(blocks["train"]):
            raise K1Error(
                f"dataset '{self.name}' has fewer than {self.seq_length} tokens of training text, "
                f"which is one block; give it more text or lower --seq_length"
            )
        return TokenizedDataset(
            name=self.name,
            source=self.source,
            fingerprint=self.fingerprint,
            documents=self.documents,
            blocks={split: blocks[split].with_format("torch", columns=["input_ids"]) for split in SPLITS},
            tokens={split: tokens_in(blocks[split]) for split in SPLITS},
            prompts=self.prompts(),
            max_documents=self.max_documents,
            has_beginnings=bool(beginning_of_text(tokenizer)),
        )

    def prompts(self) -> list[str]:
        """Three prompts for the generate scripts: fixed for presets, else openings of test documents."""
        openings = [" ".join(text.split()[:8]) for text in self.documents["test"][:3]["text"]]
        return PROMPTS.get(self.name, openings)

    def _blocks(self, split: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
        """The token ids of each block of a split."""
        end, front = end_of_document(tokenizer), beginning_of_text(tokenizer)
        length = self.seq_length - len(front)
        buffer: list[int] = []
        # Few at once, as a text takes a hundred times its memory while it is tokenized.
        for batch in self.documents[split].iter(batch_size=16):
            for encoding in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False):
                buffer += [*encoding.ids, end]
            full = len(buffer) // length * length
            for start in range(0, full, length):
                yield front + buffer[start : start + length]
            del buffer[:full]
        # Held-out text counts to its last token; training batches need blocks of one length.
        if split != "train" and len(buffer) > 1:
            yield front + buffer


def tokens_in(blocks: Dataset) -> int:
    """Number of tokens in blocks of which only the last may be shorter than the first."""
    return (len(blocks) - 1) * len(blocks[0]["input_ids"]) + len(blocks[len(blocks) - 1]["input_ids"])


def split_documents(documents: dict[str, Dataset], name: str) -> dict[str, Dataset]:
    """Divide documents into train, validation and test so that no text is in two of them.

    Splits the source already has are kept. A missing validation or test split is
    5% of the documents (at least one), the ones with the lowest SHA-256, so that
    the choice depends on the text alone. Repeated documents are dropped: a test
    document never occurs in training text. A split that holds out more than
    `LARGE_SHARE` of the text is said on stderr. Raises `K1Error` when fewer than three
    different documents are left to fill the three splits.
    """
    lengths: dict[bytes, int] = {}  # of the different documents
    chosen: dict[str, list[tuple[bytes, int]]] = {}
    for split in reversed(SPLITS):
        chosen[split] = []
        for index, text in enumerate(documents[split]["text"] if split in documents else ()):
            digest = hashlib.sha256(text.encode()).digest()[:16]
            if digest not in lengths:
                lengths[digest] = len(text)
                chosen[split].append((digest, index))

    if len(lengths) < len(SPLITS):
        raise K1Error(
            f"dataset '{name}' has {len(lengths)} different document(s) and needs at least {len(SPLITS)}, "
            f"one each for train, validation and test; give it more text"
        )
    origin = dict.fromkeys(SPLITS, "train")
    held_out = max(1, round(HELD_OUT_SHARE * len(chosen["train"])))
    for split in ("validation", "test"):
        if chosen[split]:
            origin[split] = split
        else:
            by_digest = sorted(chosen["train"])
            chosen[split] = by_digest[:held_out]
            chosen["train"] = [pair for pair in chosen["train"] if pair[0] > by_digest[held_out - 1][0]]
    if not chosen["train"]:
        raise K1Error(f"dataset '{name}' has no training document that is not also held out; give it more text")
    for split in ("validation", "test"):
        share = sum(lengths[digest] for digest, _ in chosen[split]) / sum(lengths.values())
        if share > LARGE_SHARE:
            say_once(f"{name}: split {split} holds out {share:.0%} of the text")
    # Held-out documents in order of their digest: the first part of a long split is then a fair sample of it.
    return {
        split: documents[origin[split]].select(
            [index for _, index in (chosen[split] if split == "train" else sorted(chosen[split]))]
        )
        for split in SPLITS
    }


def require_distinct(names: list[str]) -> None:
    """Raise `K1Error` if a dataset comes twice: results are kept by dataset name."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise K1Error(f"dataset '{repeated}' comes twice in the sequence; the datasets must differ")


def load_datasets(records: list[dict], tokenizer: Tokenizer, arguments: Arguments) -> list[TokenizedDataset]:
    """Read again the datasets that a checkpoint names in its `datasets`, to evaluate on their held-out text.

    Raises `K1Error` when the text is no longer the one the checkpoint was trained with.
    """
    loaded = []
    for record in records:
        as_recorded = replace(
            arguments,
            dataset_name=None,
            data_source="auto" if record["source"] == "local" else record["source"],
            max_documents=record["max_documents"],
        )
        data_loader = DataLoader(record["name"], as_recorded)
        if data_loader.fingerprint != record["fingerprint"]:
            raise K1Error(
                f"the text of dataset '{record['name']}' is not the one the checkpoint was trained with "
                f"(fingerprint {data_loader.fingerprint[:12]}, not {record['fingerprint'][:12]}); "
                f"bring the old text back or train all stages again with --overwrite"
            )
        loaded.append(data_loader.tokenize(tokenizer))
    return loaded


PROMPTS = {
    "wikitext": ["The history of the city", "He was born in", "The main difference between the two"],
    "code": ["def __init__(self, ", "import os\nimport sys\n\n", "    for line in "],
    "science": ["The function returns an array of", "Let x be a random variable with", "The algorithm computes"],
    "openwebtext": ["The government said on", "In a new study,", "The company announced that"],
    "math": ["Let f be a continuous function", "To solve the equation", "The proof follows from"],
    "stories": ["Once upon a time", "Lily wanted to", "The dog was very"],
}
