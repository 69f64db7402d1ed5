"""Reading local text: files and folders of text, JSON lines, CSV and Parquet, and datasets saved to disk."""

import glob
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetsError

from k1.errors import K1Error

SPLITS = ("train", "validation", "test")
SECTION_CHARACTERS = 4_000
FEW_DOCUMENTS = 20

FORMATS = {
    ".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".json.gz": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text", ".md": "text", ".rst": "text", ".tex": "text", ".py": "text",
}  # fmt: skip

# What the libraries raise on bad data.
DATA_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zlib.error, pa.ArrowException, DatasetsError)


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
    return {"train": documents}


def saved_splits(path: Path) -> dict[str, Iterable[str]]:
    """The splits of a folder written by `save_to_disk`."""
    try:
        saved = datasets.load_from_disk(str(path))
    except (*DATA_ERRORS, KeyError, TypeError) as error:
        raise K1Error(f"{path}: cannot be read as a saved dataset: {reason(error)}; save it again") from error
    if isinstance(saved, datasets.Dataset):
        saved = {"train": saved}
    if "train" not in saved:
        raise K1Error(f"{path}: there is no split train; it has {', '.join(saved)}; rename one to train")
    column = choose_column(saved["train"].features, path)
    return {name: rows(saved[name], (column,)) for name in SPLITS if name in saved}


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


def file_documents(path: Path) -> Iterator[str]:
    """The documents of one file; bad data ends as a `K1Error` that names the file."""
    kind = file_format(path)
    try:
        if path.stat().st_size > 0:
            yield from read_text(path) if kind == "text" else read_table(path, kind)
    except DATA_ERRORS as error:
        if isinstance(error.__cause__, StopIteration) or "corresponds to no data" in str(error):
            return  # how `datasets` says that a file has no rows
        match cause(error):
            case PermissionError():
                problem = "permission denied; make the file readable"
            case UnicodeDecodeError() as bad:
                where = f" at byte {bad.start}" if kind == "text" else ""
                problem = f"not valid UTF-8: {bad.reason}{where}; save it as UTF-8"
            case _:
                problem = f"cannot be read as {kind}: {reason(error)}; mend or remove the file"
        raise K1Error(f"{path}: {problem}") from error


def read_text(path: Path) -> Iterator[str]:
    yield path.read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")


def read_table(path: Path, kind: str) -> Iterator[str]:
    options = {
        "json": {"parse_agent_traces": False},
        "csv": {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "keep_default_na": False, "na_values": [""]},
        "parquet": {},
    }
    # A cache of its own for each reading: a changed file is always read anew.
    with tempfile.TemporaryDirectory() as cache:
        # Escaped, as the name is taken for a pattern.
        data_files = {"train": glob.escape(str(path.absolute()))}
        loaded = datasets.load_dataset(kind, data_files=data_files, cache_dir=cache, **options[kind])
        for table in loaded.values():
            yield from rows(table, (choose_column(table.features, path),))


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


def choose_column(features: datasets.Features, where: object) -> str:
    """The column "text", else "content", else the only one that holds text."""

    def holds_text(name: str) -> bool:
        return getattr(features[name], "dtype", None) in ("string", "large_string", "string_view")

    names = [name for name in ("text", "content") if name in features][:1] or list(filter(holds_text, features))
    if len(names) != 1:
        raise K1Error(f'{where}: columns are {", ".join(features)}; rename the one with the documents to "text"')
    if not holds_text(names[0]) and features[names[0]] != datasets.Value("null"):
        raise K1Error(f'{where}: column "{names[0]}" holds no text but {features[names[0]]}; put the documents there')
    return names[0]


def rows(dataset: datasets.Dataset | datasets.IterableDataset, columns: tuple[str, ...]) -> Iterator[str]:
    for batch in dataset.select_columns(list(columns)).iter(batch_size=100):
        for parts in zip(*(batch[column] for column in columns)):
            # A single column stays as it is: code may start with an indent.
            yield parts[0] or "" if len(parts) == 1 else "\n\n".join(part.strip() for part in parts if part)


def cause(error: BaseException) -> BaseException:
    """The error behind a `DatasetGenerationError`, which itself says nothing."""
    return error.__cause__ or error if isinstance(error, DatasetGenerationError) else error


def reason(error: BaseException) -> str:
    return " ".join(str(cause(error)).split())[:300] or type(cause(error)).__name__
