"""Reads files with documents: plain text, JSON, JSON Lines, CSV, Parquet and Arrow, by the library `datasets`."""

import glob
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa

from k1.data.cache import cache_folder
from k1.data.messages import quiet_logs, reason
from k1.errors import K1Error

KNOWN_COLUMNS = ("text", "content")
FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".ldjson": "json", ".jsonlines": "json", ".json": "json", ".txt": "text",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSIONS = (".gz", ".bz2", ".xz")
ARCHIVES = (".zip", ".zst", ".tar", ".tgz", ".7z", ".rar")


def file_format(path: Path) -> str:
    """Return the format of a file: by its ending, "text" if that is none of `FORMATS`."""
    path = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return FORMATS.get(path.suffix.lower(), "text")


def file_documents(path: Path) -> Iterator[str | None]:
    """Read the documents of one file, None for a row without text; raises `K1Error` for what cannot be read."""
    kind = file_format(path)
    if path.suffix.lower() in ARCHIVES:
        raise K1Error(f"{path}: archives are not read; unpack it")
    try:
        if kind == "text":
            with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig") as file:
                yield file.read()
        elif path.stat().st_size:
            yield from table_documents(path, kind)
    except K1Error:
        raise
    except Exception as error:  # what it is depends on where the damage is
        raise K1Error(f"{path}: cannot be read as {kind}: {reason(error)}; mend or remove the file") from error


def table_documents(path: Path, kind: str) -> Iterator[str | None]:
    """Read the documents of a file of rows, None for a row without text; raises what `datasets` and `rows` do."""
    # "NA" is a text.
    csv = {"keep_default_na": False, "na_values": "", "sep": "\t" if ".tsv" in path.name.lower() else ","}
    # The library leaves the locks of what it reads in its cache.
    with quiet_logs(), tempfile.TemporaryDirectory(prefix=".", dir=cache_folder()) as cache:
        loaded = datasets.load_dataset(
            kind, data_files=glob.escape(str(path)), split="train", streaming=True, cache_dir=cache,
            **(csv if kind == "csv" else {}),
        )  # fmt: skip
        yield from rows(loaded, path)


def choose_column(kinds: Mapping[str, str], where: object) -> str:
    """Choose the column "text", else "content", else the only one whose kind is "text"; raises `K1Error`."""
    names = [name for name in KNOWN_COLUMNS if name in kinds][:1] or [name for name in kinds if kinds[name] == "text"]
    # What is no plain name may be the first row of a table without a header.
    is_csv = isinstance(where, Path) and file_format(where) == "csv"
    if len(names) != 1 or is_csv and not names[0].replace("-", "_").isidentifier():
        shown = ", ".join(f"{name:.40}" for name in kinds)
        raise K1Error(f'{where}: columns are {shown}; rename the one with the documents to "text"')
    # A column without any value has no kind.
    if kinds[names[0]] not in ("text", ""):
        raise K1Error(f'{where}: column "{names[0]}" holds no text but {kinds[names[0]]}; put the documents there')
    return names[0]


def choose_text(schema: pa.Schema, where: object) -> str:
    """Choose the column of an Arrow table that holds the documents, see `choose_column`."""
    return choose_column({field.name: arrow_kind(field.type) for field in schema}, where)


def arrow_kind(kind: pa.DataType) -> str:
    """Return "text" for each of the types of text, "" for a column without values, else the type's name."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "text" if is_text else "" if pa.types.is_null(kind) else str(kind)


def rows(
    dataset: datasets.Dataset | datasets.IterableDataset, where: object, columns: tuple[str, ...] = ()
) -> Iterator[str | None]:
    """Read the text of each row: the texts of `columns`, joined by blank lines, or that of `choose_text`'s column."""
    names = list(columns)
    for table in dataset.with_format("arrow").iter(batch_size=100):
        if not columns:
            names = [choose_text(table.select(names or table.column_names).schema, where)]
        for parts in zip(*(table[name].to_pylist() for name in names)):
            # A single column stays as it is: code may start with an indent.
            yield parts[0] if len(parts) == 1 else "\n\n".join(part.strip() for part in parts if part)
