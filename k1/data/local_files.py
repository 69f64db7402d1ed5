"""Local datasets: a file, a folder of files, or a folder saved by `datasets`."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path

from k1.data.cache import SPLITS
from k1.data.compressed import most_expanded
from k1.data.readers import DATA_ERRORS, MAX_DOCUMENT, READERS, reason
from k1.errors import K1Error

SECTION_CHARACTERS = 4_000
FEW_DOCUMENTS = 20
LONG_DOCUMENT = 2**20  # a longer one is cut, as the tokenizer takes a hundred times its memory
FORMATS = {
    ".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".json.gz": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text", ".md": "text", ".rst": "text", ".tex": "text", ".py": "text",
}  # fmt: skip


def local_splits(path: Path) -> dict[str, Iterable[str]]:
    if os.path.isfile(path / "dataset_dict.json") or os.path.isfile(path / "state.json"):
        return saved_splits(path)
    files = [path] if path.is_file() else folder_files(path)
    formats = {file_format(file): file for file in reversed(files)}
    if len(formats) > 1:
        examples = ", ".join(f"{kind} ({file.name})" for kind, file in sorted(formats.items()))
        raise K1Error(f"{path}: the folder mixes formats: {examples}; keep one format in a folder")
    documents = chain.from_iterable(map(file_documents, files))
    if "text" in formats:
        documents = (document for document in documents if not document.isspace())
        first = list(islice(documents, FEW_DOCUMENTS))
        # A few long texts must give enough documents to split into train, validation and test.
        if len(first) < FEW_DOCUMENTS:
            first = chain.from_iterable(map(cut_into_sections, first))
        documents = chain(first, documents)
    return {"train": chain.from_iterable(map(cut_long, documents))}


def saved_splits(path: Path) -> dict[str, Iterable[str]]:
    """The splits of a folder written by `save_to_disk`: the text in the Arrow files that its `state.json` names."""
    try:
        folders = {"train": path}
        if os.path.isfile(path / "dataset_dict.json"):
            names = plain_names(json.loads((path / "dataset_dict.json").read_bytes())["splits"])
            folders = {name: path / name for name in names}
        if "train" not in folders:
            raise K1Error(f"{path}: there is no split train; it has {', '.join(folders)}; rename one to train")
        files = {}
        for name in filter(folders.get, SPLITS):
            state = json.loads((folders[name] / "state.json").read_bytes())
            listed = plain_names(entry["filename"] for entry in state["_data_files"])
            files[name] = [folders[name] / file for file in listed]
    except (*DATA_ERRORS, KeyError, TypeError) as error:
        raise K1Error(f"{path}: cannot be read as a saved dataset: {reason(error)}; save it again") from error
    documents = {name: chain.from_iterable(map(file_documents, files[name], repeat("arrow"))) for name in files}
    return {name: chain.from_iterable(map(cut_long, documents[name])) for name in files}


def plain_names(names: Iterable[object]) -> list[str]:
    """Check that `names` stay inside their folder; raises `ValueError` if they do not."""
    names = list(names)
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or not {"/", "\\", "\0"}.isdisjoint(name):
            raise ValueError(f"it names {name!r:.80}, which is not a file inside the folder")
    if len(set(names)) < len(names):
        raise ValueError("it names a file twice")
    return names


def folder_files(folder: Path) -> list[Path]:
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


def file_format(path: Path) -> str:
    return next((kind for suffix, kind in FORMATS.items() if path.name.lower().endswith(suffix)), "text")


def file_documents(path: Path, kind: str | None = None) -> Iterator[str]:
    """The documents of one file; bad data ends as a `K1Error` that names the file."""
    kind = kind or file_format(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ValueError("it is not a file")
        left = most_expanded(path)
        for document in READERS[kind](path) if size > 0 else ():
            left -= len(document or "")
            if len(document or "") > MAX_DOCUMENT or left < 0:
                raise ValueError("it holds far more text than a file of its size should")
            yield document
    except (*DATA_ERRORS, KeyError) as error:
        match error:
            case PermissionError():
                problem = "permission denied; make the file readable"
            case UnicodeDecodeError() as bad:
                where = f" at byte {bad.start}" if kind == "text" else ""
                problem = f"not valid UTF-8: {bad.reason}{where}; save it as UTF-8"
            case _:
                problem = f"cannot be read as {kind}: {reason(error)}; mend or remove the file"
        raise K1Error(f"{path}: {problem}") from error


def cut_into_sections(text: str) -> Iterator[str]:
    """Cut at blank lines into sections of whole paragraphs, about `SECTION_CHARACTERS` long."""
    pieces = re.split(r"(\n(?:[ \t]*\n)+)", text)  # paragraph, blank lines, paragraph, ...
    section = pieces[0]
    for blank, paragraph in zip(pieces[1::2], pieces[2::2]):
        if section and len(section) + len(paragraph) > SECTION_CHARACTERS:
            yield section
            section = paragraph
        else:
            section += blank + paragraph
    yield section


def cut_long(text: str | None) -> Iterator[str | None]:
    """A document in pieces of at most `LONG_DOCUMENT` characters, cut at ends of lines or between words if possible."""
    start = 0
    while text and len(text) - start > LONG_DOCUMENT:
        limit = start + LONG_DOCUMENT
        ends = (text.rfind(mark, start + 1, limit) for mark in ("\n", " "))
        end = next((end for end in ends if end > start), limit)
        yield text[start:end]
        start = end
    yield text[start:] if start else text
