"""What compressed files say that they expand to, summed up before a library takes the memory for it."""

import gzip
import io
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import Any

import pyarrow as pa

MAX_EXPANSION = 100  # a file may hold this many times its size, and 64 MiB
MAX_UNPACKED = 2**30  # in one piece: a page of Parquet holds up to a thousand texts
OLD_PADDING = 100  # so much more than the column does pyarrow read in files of before 2014
MAX_HEADER = 2**24  # longer ones are none for pyarrow either
MAX_NESTING = 16
# The types of Thrift.
BOOLEANS, BYTE, INTEGERS, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = (1, 2), 3, (4, 5, 6), 5, 6, *range(7, 13)


def most_expanded(path: Path) -> int:
    """How many bytes a file may hold: more than text can be compressed to, and room for what is small."""
    return MAX_EXPANSION * path.stat().st_size + 2**26


class Expansion:
    """Sums up what a file expands to, and raises `ValueError` where that is too much."""

    def __init__(self, path: Path) -> None:
        self.left = most_expanded(path)

    def add(self, size: int) -> None:
        """Count one more piece of the file, which is of this size when it is unpacked."""
        if size > MAX_UNPACKED:
            raise ValueError(f"it states {size:,} bytes for one compressed piece, and the most is {MAX_UNPACKED:,}")
        self.left -= size
        if self.left < 0:
            raise ValueError(f"it expands to more than {MAX_EXPANSION} times its size")


def check_expansion(path: Path, sizes: Iterable[int]) -> None:
    """Raise `ValueError` where the pieces of a file, of these `sizes` when they are unpacked, are too large."""
    expansion = Expansion(path)
    for size in sizes:
        expansion.add(size)


def gzip_sizes(path: Path) -> Iterator[int]:
    """The sizes of the pieces that a gzip file is unpacked in; it does not state any before."""
    with gzip.open(path) as file:
        yield from map(len, iter(partial(file.read, 2**20), b""))


def batch_sizes(path: Path) -> Iterator[int]:
    """The size of each compressed batch in a stream of Arrow, as its buffers state it."""
    with pa.memory_map(str(path)) as file:
        for message in pa.ipc.MessageReader.open_stream(file):
            try:
                yield sum(buffer_sizes(message))
            except StructError as error:
                raise ValueError("it has a damaged batch") from error


def buffer_sizes(message: pa.ipc.Message) -> Iterator[int]:
    """The sizes that the compressed buffers of a message state; nothing where they are not compressed.

    The numbers of fields are those of Message.fbs in the Arrow format: a message has its kind and its content as
    fields 1 and 2, a dictionary its batch as field 1, a batch its buffers and its compression as fields 2 and 3.
    """
    if message.type not in ("record batch", "dictionary"):
        return
    data = message.metadata.to_pybytes()
    if b"ARROW:experimental_compression" in data:
        raise ValueError("it is compressed as before Arrow 1.0")
    batch = target(data, field_position(data, target(data, 0), 2))
    if message.type == "dictionary":
        batch = target(data, field_position(data, batch, 1))
    buffers = field_position(data, batch, 2)
    if buffers is None or field_position(data, batch, 3) is None:
        return
    start = target(data, buffers)
    body = memoryview(message.body)
    for number in range(unpack_from("<I", data, start)[0]):
        offset, length = unpack_from("<qq", data, start + 4 + 16 * number)
        # A buffer begins with its size, or -1 where it is not compressed.
        yield max(unpack_from("<q", body, offset)[0], 0) if length else 0


def field_position(data: bytes, table: int, number: int) -> int | None:
    """Where a field of the table at `table` of a FlatBuffer is; None if the table does not have it."""
    [back] = unpack_from("<i", data, table)
    [size] = unpack_from("<H", data, table - back)
    entry = 4 + 2 * number
    [offset] = unpack_from("<H", data, table - back + entry) if entry < size else [0]
    return table + offset if offset else None


def target(data: bytes, position: int | None) -> int:
    """What the offset at `position` of a FlatBuffer leads to."""
    if position is None:
        raise StructError("a field is missing")
    return position + unpack_from("<I", data, position)[0]


class ColumnFile(io.BufferedReader):
    """A Parquet file that pyarrow reads columns of, whose pages are checked when they are read, before it has them.

    So nothing depends on what the file says of where they are: pyarrow reads a column of a row group at once, unless it
    is told to buffer. What it reads to open the file is no column; `is_open` is to be set then.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.expansion, self.is_open = Expansion(path), False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        for unpacked in page_sizes(data) if self.is_open else ():
            self.expansion.add(unpacked)
        return data


def page_sizes(data: bytes) -> Iterator[int]:
    """The sizes that the headers of the pages in a column state; 0 for a page that is not compressed."""
    position = 0
    while position < len(data):
        reader = CompactReader(data, position)
        try:
            unpacked, packed = page_header(reader)
        except EOFError:
            if len(data) - position <= OLD_PADDING:
                return
            raise
        yield unpacked if unpacked != packed else 0
        position = reader.position + packed


def page_header(reader: "CompactReader") -> tuple[int, int]:
    """The sizes of a page as it is unpacked and as it is stored, fields 2 and 3 of its header."""
    header = reader.struct()
    if (2, I32) not in header or (3, I32) not in header:
        raise EOFError("it has no page where one should be")
    if header[2, I32] < 0 or header[3, I32] < 0:
        raise ValueError("it has a page of a negative size")
    return header[2, I32], header[3, I32]


class CompactReader:
    """Reads the header of a page at `position` of `data`, in Thrift's compact protocol.

    It raises `EOFError` at the end of the data, and `ValueError` for what the protocol does not have or leaves open:
    so pyarrow cannot read anything else from the same bytes.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        self.end = min(len(data), position + MAX_HEADER)

    def struct(self, nesting: int = MAX_NESTING) -> dict[tuple[int, int], Any]:
        """The fields of a struct by number and type; texts and maps are passed over."""
        found, before = {}, 0
        while (start := self.byte()) & 15:
            number = before + (start >> 4) if start >> 4 else self.integer(32)
            if not before < number < 2**15:
                raise ValueError("the header of a page is damaged")
            found[number, start & 15] = self.value(start & 15, nesting)
            before = number
        return found

    def value(self, kind: int, nesting: int) -> Any:
        """A value of this type, in a field of a struct."""
        if nesting == 0:
            raise ValueError("the header of a page is nested too deeply")
        if kind in INTEGERS:
            return self.integer(32 if kind == I32 else 64)
        if kind == STRUCT:
            return self.struct(nesting - 1)
        if kind in (LIST, SET):
            start = self.byte()
            count = start >> 4 if start >> 4 < 15 else self.varint()
            return [self.item(start & 15, nesting) for _ in range(count)]
        if kind == MAP:
            count = self.varint()
            kinds = self.byte() if count else 0
            for _ in range(count):
                self.item(kinds >> 4, nesting)
                self.item(kinds & 15, nesting)
        elif kind == BINARY:
            self.advance(self.varint())
        elif kind in (BYTE, DOUBLE):
            self.advance(1 if kind == BYTE else 8)
        elif kind not in BOOLEANS:  # their type is the value
            raise ValueError("the header of a page has an unknown type")
        return None

    def item(self, kind: int, nesting: int) -> Any:
        """A value in a list or a map; unlike a field, it has its truth value in a byte of its own."""
        return self.value(BYTE if kind in BOOLEANS else kind, nesting - 1)

    def integer(self, bits: int) -> int:
        value = self.varint()
        if value >= 2**bits:
            raise ValueError(f"the header of a page has a number of more than {bits} bits")
        return value >> 1 ^ -(value & 1)

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("the header of a page has a number of more than 64 bits")

    def byte(self) -> int:
        self.advance(1)
        return self.data[self.position - 1]

    def advance(self, count: int) -> None:
        self.position += count
        if self.position > self.end:
            raise EOFError("the header of a page is cut off")
