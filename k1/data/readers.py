"""Reads files with documents: plain text, JSON, JSON Lines, CSV, Parquet and Arrow, also compressed."""

import bz2
import csv
import gzip
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from k1.data.messages import reason
from k1.errors import K1Error

INSPECTED_ROWS = 1_000  # the column with the documents is chosen by these
HEAD_BYTES = 2**20  # what is no text is recognized by these
KNOWN_COLUMNS = ("text", "content")
FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".ldjson": "json", ".jsonlines": "json", ".json": "json", ".txt": "text",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSIONS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
ARCHIVES = (".zip", ".zst", ".tar", ".tgz", ".7z", ".rar")
NUMBER = re.compile(r"[-+.:/%\dTZeE ]*\d[-+.:/%\dTZeE ]*|true|false|nan", re.IGNORECASE)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def file_format(path: Path) -> str:
    """Return the name of the reader of a file: by its ending, "text" if that is none of `FORMATS`."""
    path = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return FORMATS.get(path.suffix.lower(), "text")


def file_documents(path: Path) -> Iterator[str | None]:
    """Read the documents of one file, None for a row without text; raises `K1Error` for what cannot be read."""
    kind = file_format(path)
    try:
        if path.suffix.lower() in ARCHIVES:
            raise K1Error(f"{path}: archives are not read; unpack it")
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise K1Error(f"{path}: a Git LFS pointer in place of the file; get the file with: git lfs pull")
        with COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            if b"\0" in head and kind not in ("parquet", "arrow"):
                raise K1Error(f"{path}: a binary file, no text; remove it, or save it as text in UTF-8")
            if head:
                yield from READERS[kind](file, path)
    except K1Error:
        raise
    except PermissionError as error:
        raise K1Error(f"{path}: permission denied; make the file readable") from error
    except UnicodeDecodeError as error:
        where = f" at byte {error.start}" if kind == "text" else ""
        raise K1Error(f"{path}: not valid UTF-8: {error.reason}{where}; save it as UTF-8") from error
    except Exception as error:  # what it is depends on where the damage is
        raise K1Error(f"{path}: cannot be read as {kind}: {reason(error)}; mend or remove the file") from error


def read_text(file: BinaryIO, where: Path) -> Iterator[str]:
    """Read the whole file as one document."""
    yield file.read().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")


def read_json(file: BinaryIO, where: Path) -> Iterator[str | None]:
    """Read the documents of JSON Lines, or of one list of objects or of texts."""
    records = json_records(TextIOWrapper(file, "utf-8-sig"))
    first = list(islice(records, INSPECTED_ROWS))
    types: dict[str, set[str]] = {}
    for _, record in first:
        for name, value in record.items():
            types.setdefault(name, set()).update([] if value is None else [type(value).__name__])
    kinds = {name: "text" if found == {"str"} else " and ".join(sorted(found)) for name, found in types.items()}
    column = choose_column(kinds, where) if first else ""
    for number, record in chain(first, records):
        text = record.get(column)
        if not isinstance(text, str | None):
            raise ValueError(f'line {number}: column "{column}" holds no text but {type(text).__name__}')
        (text or "").encode()  # raises on lone surrogates
        yield text


def json_records(lines: TextIOWrapper) -> Iterator[tuple[int, dict]]:
    """Read objects and the lines they are on; raises `ValueError` that names the line that is none."""
    values = json_values(lines)
    first = list(islice(values, 2))
    if len(first) == 1:
        # It may hold all of them: [...] or {"data": [...]}.
        [(number, value)] = first
        if isinstance(value, dict) and isinstance(value.get("data"), list) and not value.keys() & set(KNOWN_COLUMNS):
            value = value["data"]
        items = value if isinstance(value, list) else [value]
        first = [(number, {"text": item} if isinstance(item, str) and items is value else item) for item in items]
    for number, record in chain(first, values):
        if not isinstance(record, dict):
            raise ValueError(f"line {number}: a {type(record).__name__} where an object should be")
        yield number, record


def json_values(lines: TextIOWrapper) -> Iterator[tuple[int, object]]:
    """Read the value on each line, or the one over all lines, and the line it begins on; raises `ValueError`."""
    is_first = True
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            try:
                value = json.loads((line + (lines.read() if is_first else "")).rstrip())
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number + error.lineno - 1}: {error.msg}") from error
        yield number, value
        is_first = False


def read_csv(file: BinaryIO, where: Path) -> Iterator[str | None]:
    """Read one column of a table with a header; raises `K1Error` if the first row does not look like one."""
    # Strict, as a lone quotation mark makes one field of many rows otherwise.
    delimiter = "\t" if ".tsv" in where.name.lower() else ","
    table = csv.DictReader(TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    header = table.fieldnames = [name.strip() for name in table.fieldnames or []]
    limit = csv.field_size_limit(2**31 - 1)
    try:
        rows = csv_rows(table)
        first = list(islice(rows, INSPECTED_ROWS))
        if not first:
            return
        column = choose_column({name: csv_kind([row[name] for row in first]) for name in header}, where)
        # Numbers, and what is no plain name, may be the first row of a table without a header.
        is_name = re.fullmatch(r"[^\W\d][\w-]*", column) and not any(map(NUMBER.fullmatch, header))
        if column not in KNOWN_COLUMNS and not is_name:
            raise K1Error(f'{where}: columns are {shown(header)}; write a header that names one of them "text"')
        for row in chain(first, rows):
            yield row[column] or None
    finally:
        csv.field_size_limit(limit)


def csv_rows(table: csv.DictReader) -> Iterator[dict]:
    """Read the rows; raises `ValueError` that names the line of one that is none or has too many fields."""
    try:
        for row in table:
            if any(more := row.get(None, [])):
                width = len(table.fieldnames or [])
                raise ValueError(f"line {table.line_num}: {width + len(more)} fields under {width} names of columns")
            yield row
    except csv.Error as error:
        advice = "a quotation mark inside a text must be doubled, and the text be quoted"
        raise ValueError(f"line {table.reader.line_num}: {error} ({advice})") from error


def csv_kind(values: list[str | None]) -> str:
    """Return what a column holds: "text", "numbers" (or dates, or truth values), or "" for nothing."""
    filled = [value for value in values if value]
    return "" if not filled else "numbers" if all(NUMBER.fullmatch(value) for value in filled) else "text"


def read_parquet(file: BinaryIO, where: Path) -> Iterator[str | None]:
    """Read one column."""
    table = pq.ParquetFile(file)
    column = choose_text(table.schema_arrow, where)
    for batch in table.iter_batches(10, columns=[column]):
        yield from batch.column(0).to_pylist()


def read_arrow(file: BinaryIO, where: Path) -> Iterator[str | None]:
    """Read one column of either format of Arrow: the file (Feather) or the stream."""
    try:
        table = pa.ipc.open_file(file).read_all()
    except pa.ArrowInvalid:
        file.seek(0)
        table = pa.ipc.open_stream(file).read_all()
    for chunk in table[choose_text(table.schema, where)].chunks:
        yield from chunk.to_pylist()


def shown(names: Iterable[str]) -> str:
    """The names of columns in a message; without a header they are texts."""
    return ", ".join(f"{name:.40}" for name in names)


READERS = {"text": read_text, "json": read_json, "csv": read_csv, "parquet": read_parquet, "arrow": read_arrow}


def choose_column(kinds: Mapping[str, str], where: object) -> str:
    """Choose the column "text", else "content", else the only one whose kind is "text"; raises `K1Error`."""
    names = [name for name in KNOWN_COLUMNS if name in kinds][:1] or [name for name in kinds if kinds[name] == "text"]
    if len(names) != 1:
        raise K1Error(f'{where}: columns are {shown(kinds)}; rename the one with the documents to "text"')
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
    names = list(columns) or [choose_text(dataset.features.arrow_schema, where)]
    for batch in dataset.select_columns(names).iter(batch_size=100):
        for parts in zip(*(batch[name] for name in names)):
            # A single column stays as it is: code may start with an indent.
            yield parts[0] if len(parts) == 1 else "\n\n".join(part.strip() for part in parts if part)
