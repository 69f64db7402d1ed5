"""What compressed files say that they expand to, summed up before a library takes the memory for it."""

import gzip
import mmap
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from struct import error as StructError
from struct import unpack_from

import pyarrow as pa
import pyarrow.parquet as pq

MAX_EXPANSION = 100  # a file may hold this many times its size, and 64 MiB
MAX_UNPACKED = 2**30  # in one piece: a page of Parquet holds up to a thousand texts
OLD_PADDING = 100  # so many bytes more does pyarrow read of a column of parquet-mr, which was wrong before 1.2.9
# The types of Thrift.
BOOLEANS, BYTE, INTEGERS, I32, DOUBLE, BINARY, LISTS, MAP, STRUCT = (1, 2), 3, (4, 5, 6), 5, 7, 8, (9, 10), 11, 12
MAX_NESTING = 16


def most_expanded(path: Path) -> int:
    """How many bytes a file may hold: more than text can be compressed to, and room for what is small."""
    return MAX_EXPANSION * path.stat().st_size + 2**26


def check_expansion(path: Path, sizes: Iterable[int]) -> None:
    """Raise `ValueError` where the pieces of a file, of these `sizes` once they are unpacked, are too large."""
    left = most_expanded(path)
    for size in sizes:
        if size > MAX_UNPACKED:
            raise ValueError(f"it states {size:,} bytes for one compressed piece, and the most is {MAX_UNPACKED:,}")
        left -= size
        if left < 0:
            raise ValueError(f"it expands to more than {MAX_EXPANSION} times its size")


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


def page_sizes(path: Path, metadata: pq.FileMetaData, column: str) -> Iterator[int]:
    """The size of each compressed page of a column in a Parquet file, as its header states it."""
    # The schema says which its parts are; what they say of themselves may differ.
    names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    numbers = [number for number, name in enumerate(names) if f"{name}.".startswith(f"{column}.")]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in numbers if number < group.num_columns]
    if sum(max(chunk.total_compressed_size, 0) for chunk in chunks) > path.stat().st_size:
        raise ValueError("the parts of its column are together larger than the file")
    padding = OLD_PADDING if "parquet-mr" in (metadata.created_by or "").lower() else 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for chunk in chunks:
            yield from chunk_sizes(data, chunk, padding)


def chunk_sizes(data: mmap.mmap, chunk: pq.ColumnChunkMetaData, padding: int) -> Iterator[int]:
    """The sizes of the pages in one part of a column; 0 for a page that is not compressed."""
    position, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    if dictionary and 0 < dictionary < position:
        position = dictionary
    end = position + chunk.total_compressed_size
    while position < end + padding:
        reader = CompactReader(data, position)
        try:
            unpacked, packed = reader.page_header()
        except ValueError:
            if position >= end:
                return  # no page, but what follows the column
            raise
        # Not by its codec, as pyarrow ends the process when it is asked for one that it does not know.
        yield unpacked if unpacked != packed else 0
        position = reader.position + packed


class CompactReader:
    """Reads the header of a page at `position` of a Parquet file, in Thrift's compact protocol.

    It refuses what the protocol leaves open, so that pyarrow reads no other size from the same header.
    """

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data, self.position = data, position

    def page_header(self) -> tuple[int, int]:
        """The sizes of the page as it is unpacked and as it is stored."""
        sizes = {}
        for number, kind in self.fields():
            if number in (2, 3) and kind == I32:
                sizes[number] = self.i32()
            else:
                self.skip(kind, MAX_NESTING)
        if min(sizes.get(2, -1), sizes.get(3, -1)) < 0:
            raise ValueError("it has a page without a size")
        return sizes[2], sizes[3]

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; the value that follows is to be read before the next one."""
        before = 0
        while (start := self.byte()) & 15:
            number = before + (start >> 4) if start >> 4 else self.i32()
            if not before < number < 2**15:
                raise ValueError("it has a damaged header of a page")
            yield number, start & 15
            before = number

    def skip(self, kind: int, nesting: int) -> None:
        """Pass over a value of this type, in a field of a struct."""
        if kind in BOOLEANS:
            return  # the type is the value
        if nesting == 0:
            raise ValueError("it has a header of a page that is nested too deeply")
        if kind in INTEGERS:
            self.varint()
        elif kind in (BYTE, DOUBLE):
            self.advance(1 if kind == BYTE else 8)
        elif kind == BINARY:
            self.advance(self.varint())
        elif kind in LISTS:
            start = self.byte()
            self.skip_items([start & 15], start >> 4 if start >> 4 < 15 else self.varint(), nesting)
        elif kind == MAP:
            if count := self.varint():
                kinds = self.byte()
                self.skip_items([kinds >> 4, kinds & 15], count, nesting)
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, nesting - 1)
        else:
            raise ValueError("it has a header of a page of an unknown type")

    def skip_items(self, kinds: list[int], count: int, nesting: int) -> None:
        for _ in range(count):
            for kind in kinds:
                # Unlike a field, an item has its truth value in a byte of its own.
                self.skip(BYTE if kind in BOOLEANS else kind, nesting - 1)

    def i32(self) -> int:
        value = self.varint()
        if value >= 2**32:
            raise ValueError("it has a number of more than 32 bits in the header of a page")
        return value >> 1 ^ -(value & 1)

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("it has a number of more than 64 bits in the header of a page")

    def byte(self) -> int:
        self.advance(1)
        return self.data[self.position - 1]

    def advance(self, count: int) -> None:
        self.position += count
        if not 0 < self.position <= len(self.data):
            raise ValueError("it has a page beyond its end")
