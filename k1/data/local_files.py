"""Reads local datasets: a file, a folder of files, or a folder saved by `datasets`."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import datasets
import pyarrow as pa

from k1.data.cache import SPLITS, stored
from k1.data.messages import refusals, say_once
from k1.data.readers import file_documents, file_format, rows
from k1.errors import K1Error

SECTION_CHARACTERS = 4_000
FEW_DOCUMENTS = 20
LONG_DOCUMENT = 2**20  # a longer one is cut, as the tokenizer takes a hundred times its memory
LONG_ENDS = (r"(?=\n)", r"(?= )")
# A form feed or a line of spaces of any kind, else the end of a line, of a sentence, of a word.
SECTION_ENDS = (
    r"(?=\f|[\r\n][^\S\r\n]*[\r\n])", r"(?=[\r\n])", r"((?<=[.!?])(?=\s)|(?<=。))", r"(?=\s)",
)  # fmt: skip
MISSING_SHARE = 0.01  # of the rows may have no text
# As `datasets` finds them: train.jsonl, data/train-00000-of-00002.parquet, my_test.txt; not train.py, a program.
SPLIT_WORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SPLIT_NAME = re.compile(rf"(?:^|[-._])({'|'.join(SPLIT_WORDS)})(?=$|[-._\d])(?!.*\.py$)", re.IGNORECASE)
# Beside the splits of a copy of a dataset from the hub.
NO_TEXT = re.compile(r"(readme|licen[cs]e)", re.IGNORECASE)


def local_splits(path: Path, max_documents: int) -> dict[str, datasets.Dataset]:
    """Read the documents of a local dataset by split, at most `max_documents` of split train.

    One file is read from its start; of several files the documents are taken evenly over all of them.
    Raises `K1Error` if a file cannot be read, or more than `MISSING_SHARE` of the rows have no text.
    """
    if any(os.path.isfile(path / name) for name in ("dataset_dict.json", "state.json")):
        texts, is_one = saved_splits(path), True
    else:
        files = files_by_split(path, [path] if path.is_file() else folder_files(path))
        texts, is_one = {split: documents_of(files[split], path) for split in files}, len(files["train"]) == 1
    most = {"train": max_documents} if is_one else {}
    splits = {split: stored("text", pa.string(), with_text(texts[split], path, most.get(split))) for split in texts}
    if (total := len(splits["train"])) > max_documents:
        say_once(f"{path}: {max_documents:,} of {total:,} documents are read, evenly over all files (--max_documents)")
        chosen = [number * total // max_documents for number in range(max_documents)]
        splits["train"] = splits["train"].select(chosen)
    return splits


def saved_splits(path: Path) -> dict[str, Iterator[str | None]]:
    """Read the splits of a folder written by `save_to_disk`; raises `K1Error` if it is damaged or has no train."""
    with refusals(f"{path}: cannot be read as a saved dataset", "save it again"):
        saved = datasets.load_from_disk(str(path))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if "train" not in splits:
        raise K1Error(f"{path}: there is no split train; it has {', '.join(splits)}; rename one to train")
    return {name: rows(splits[name], path) for name in SPLITS if name in splits}


def files_by_split(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Divide the files by the splits that their names or folders say; all are of train if they do not.

    Raises `K1Error` if some files are of no split beside others of train and of validation or test.
    """
    splits: dict[str, list[Path]] = {}
    others = []
    for file in files:
        parts = file.relative_to(path).parts if file != path else ()
        names = [found[1].lower() for part in parts if (found := SPLIT_NAME.search(part))]
        if names:
            splits.setdefault(SPLIT_WORDS[names[0]], []).append(file)
        elif not NO_TEXT.match(file.name):
            others.append(file)
    if "train" not in splits or len(splits) == 1:
        if splits.keys() - {"train"}:
            say_once(f"{path}: it has no split train, so the files of {', '.join(splits)} are trained on as well")
        return {"train": files}
    if others:
        raise K1Error(f"{path}: {others[0].name} is in none of the splits {', '.join(splits)}; move it elsewhere")
    return splits


def folder_files(folder: Path) -> list[Path]:
    """List all files below a folder but the hidden ones, sorted; raises `K1Error` if there is none."""

    def fail(error: OSError) -> None:
        raise K1Error(f"{error.filename}: cannot be listed: {error.strerror}; make it readable") from error

    if not folder.is_dir():
        raise K1Error(f"{folder}: neither a file nor a folder; use a path to text")
    files = []
    for parent, subfolders, names in os.walk(folder, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = sorted(filter(os.path.isfile, files))
    if not files:
        raise K1Error(f"{folder}: there is no file to read in this folder; put text files in it")
    return files


def documents_of(files: list[Path], path: Path) -> Iterator[str | None]:
    """Read the documents of files of one format; the sections of plain text if there are few."""
    formats = {file_format(file): file for file in reversed(files)}
    if len(formats) > 1:
        examples = ", ".join(f"{kind} ({file.name})" for kind, file in sorted(formats.items()))
        raise K1Error(f"{path}: the folder mixes formats: {examples}; keep one format in a folder")
    documents = chain.from_iterable(map(file_documents, files))
    if "text" not in formats:
        return documents
    filled = (document for document in documents if document and not document.isspace())
    first = list(islice(filled, FEW_DOCUMENTS))
    # So that there is something to hold out.
    return chain(first if len(first) == FEW_DOCUMENTS else chain.from_iterable(map(sections_of, first)), filled)


def sections_of(text: str) -> list[str]:
    """Cut a text into sections of at most `SECTION_CHARACTERS`, without what separates them."""
    pieces = cut(text, SECTION_CHARACTERS, SECTION_ENDS)
    return [piece.strip("\r\n\f\xa0") for piece in pieces] if len(pieces) > 1 else pieces


def cut(text: str, most: int, ends: tuple[str, ...]) -> list[str]:
    """Cut a text that is longer than `most` characters before the last match of the first of `ends` that there is."""
    if len(text) <= most:
        return [text]
    before_end = [rf".{{1,{most - 1}}}{end}" for end in ends]
    pattern = "|".join([rf".{{1,{most}}}\Z", *before_end, rf".{{1,{most}}}"])
    return [found[0] for found in re.finditer(pattern, text, re.DOTALL)]


def with_text(documents: Iterable[str | None], path: object, most: int | None = None) -> Iterator[str]:
    """Pass on the first `most` documents that are not blank, the long ones cut, and say what is left out.

    Raises `K1Error` if more than `MISSING_SHARE` of the rows have no text.
    """
    read = missing = blank = kept = 0
    pieces = ([None] if text is None else cut(text, LONG_DOCUMENT, LONG_ENDS) for text in documents)
    for piece in chain.from_iterable(pieces):
        if kept == most:
            say_once(f"{path}: the first {most:,} documents are read (--max_documents)")
            break
        read += 1
        if piece and not piece.isspace():
            kept += 1
            yield piece
        else:
            missing += piece is None
            blank += piece is not None
    if missing > MISSING_SHARE * read:
        advice = "give each its text, in the same column, or remove them"
        raise K1Error(f"{path}: {missing:,} of {read:,} rows have no text; {advice}")
    if missing or blank:
        say_once(f"{path}: {missing + blank:,} of {read:,} rows have no text and are left out")
