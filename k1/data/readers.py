"""Readers of files with documents: text, JSON lines, CSV, Parquet and Arrow."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError, DatasetsError

from k1.data.compressed import MAX_EXPANSION, ColumnFile, batch_sizes, check_expansion, gzip_sizes
from k1.errors import K1Error

INSPECTED_ROWS = 1_000  # the column with the documents is chosen by these
# Far above any text, and small enough that a hostile file fills neither the memory nor the disk.
MAX_DOCUMENT = 2**28
MAX_HEADER = 2**16
csv.field_size_limit(MAX_DOCUMENT)
# What the libraries raise on bad data.
DATA_ERRORS = (
    OSError, ValueError, EOFError, RuntimeError, MemoryError, OverflowError, zlib.error, csv.Error,
    pa.ArrowException, DatasetsError,
)  # fmt: skip


def read_text(path: Path) -> Iterator[str]:
    if path.stat().st_size > MAX_DOCUMENT:
        raise ValueError(f"it is larger than {MAX_DOCUMENT // 2**20} MiB, the most for one text; cut it into several")
    yield path.read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")


def read_json(path: Path) -> Iterator[str | None]:
    """The documents of JSON lines, or of one list of objects or of texts."""
    records = json_records(path)
    first = list(islice(records, INSPECTED_ROWS))
    if not first:
        return
    # For each column what it holds, as far as seen.
    kinds: dict[str, set[str]] = {}
    for record in first:
        for name, value in record.items():
            kinds.setdefault(name, set()).update([] if value is None else [type(value).__name__])
    column = choose_column({name: feature(" and ".join(sorted(found))) for name, found in kinds.items()}, path)
    for record in chain(first, records):
        text = record.get(column)
        if not isinstance(text, str | None):
            raise K1Error(f'{path}: column "{column}" holds no text but {type(text).__name__}; put the documents there')
        (text or "").encode()  # raises on lone surrogates
        yield text


def json_records(path: Path) -> Iterator[dict]:
    is_compressed = path.suffix.lower() == ".gz"
    if is_compressed:
        check_expansion(path, gzip_sizes(path))
    with (gzip.open if is_compressed else open)(path, "rt", encoding="utf-8-sig") as file:
        while line := file.readline(MAX_DOCUMENT):
            is_list = line.lstrip().startswith("[")
            line += file.read(MAX_DOCUMENT) if is_list else ""
            if len(line) >= MAX_DOCUMENT:
                raise ValueError("it has too long a line; write one object a line")
            for value in json.loads(line) if is_list else [json.loads(line)] if not line.isspace() else []:
                value = {"text": value} if is_list and isinstance(value, str) else value
                if not isinstance(value, dict):
                    raise ValueError(f"it holds a {type(value).__name__} where an object should be")
                yield value


def read_csv(path: Path) -> Iterator[str | None]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, encoding="utf-8-sig", newline="") as file:
        if len(file.readline(MAX_HEADER)) == MAX_HEADER:
            raise ValueError("its first line is too long for the names of columns")
        file.seek(0)
        # To pandas more fields than names are levels of an index, however many there are.
        header, first = islice(chain(filter(None, csv.reader(file, delimiter=separator)), [[], []]), 2)
        if len(first) > len(header) + (first[-1:] == [""]):
            raise ValueError(f"it has {len(header)} names of columns and {len(first)} fields in the first row")
    options = {"sep": separator, "keep_default_na": False, "na_values": [""], "index_col": False, "low_memory": False}
    column = choose_text(pa.Schema.from_pandas(pandas.read_csv(path, nrows=INSPECTED_ROWS, **options)), path)
    with pandas.read_csv(path, chunksize=INSPECTED_ROWS, dtype=str, **options) as tables:
        for table in tables:
            yield from (text if isinstance(text, str) else None for text in table[column])


def read_parquet(path: Path) -> Iterator[str | None]:
    with ColumnFile(path) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
        if file.metadata.num_rows > MAX_EXPANSION * path.stat().st_size:
            raise ValueError(f"it declares {file.metadata.num_rows:,} rows, too many for its size")
        column = choose_text(file.schema_arrow, path)
        opened.is_open = True
        yield from array_texts(batch.column(column) for batch in file.iter_batches(10, columns=[column]))


def read_arrow(path: Path) -> Iterator[str | None]:
    check_expansion(path, batch_sizes(path))
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        column = choose_text(batches.schema, path)
        yield from array_texts(batch.column(column) for batch in batches)


def array_texts(arrays: Iterable[pa.Array]) -> Iterator[str | None]:
    """The texts in Arrow arrays, checked first: damaged offsets would read beyond the memory of the array."""
    for array in arrays:
        array.validate(full=True)
        for start in range(0, 0 if pa.types.is_null(array.type) else len(array), 10):
            yield from array.slice(start, 10).to_pylist()


READERS = {"text": read_text, "json": read_json, "csv": read_csv, "parquet": read_parquet, "arrow": read_arrow}


def choose_column(features: Mapping[str, object], where: object) -> str:
    """The column "text", else "content", else the only one that holds text."""

    def holds_text(name: str) -> bool:
        return getattr(features[name], "dtype", None) in ("string", "large_string", "string_view")

    names = [name for name in ("text", "content") if name in features][:1] or list(filter(holds_text, features))
    if len(names) != 1:
        raise K1Error(f'{where}: columns are {", ".join(features)}; rename the one with the documents to "text"')
    if not holds_text(names[0]) and features[names[0]] != datasets.Value("null"):
        raise K1Error(f'{where}: column "{names[0]}" holds no text but {features[names[0]]}; put the documents there')
    return names[0]


def choose_text(schema: pa.Schema, where: object) -> str:
    """The column of an Arrow table that holds the documents, see `choose_column`."""

    def name_of(kind: pa.DataType) -> str:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        return "str" if is_text else "" if pa.types.is_null(kind) else str(kind)

    return choose_column({field.name: feature(name_of(field.type)) for field in schema}, where)


def feature(kind: str) -> datasets.Value | str:
    """`kind`, the name of a type, as `choose_column` takes it; "" is a column without values."""
    return datasets.Value({"str": "string", "": "null"}[kind]) if kind in ("str", "") else kind


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
