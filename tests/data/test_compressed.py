"""Tests of k1.data.compressed: what states too much is refused before it is unpacked, and all else is read."""

import struct
from contextlib import contextmanager
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k1.data.compressed import MAX_UNPACKED, CompactReader, Expansion, batch_sizes, check_expansion, page_sizes
from k1.data.local_files import file_documents
from k1.errors import K1Error
from tests.data.loading import failure

CODECS = ["snappy", "gzip", "zstd", "lz4", "brotli"]
TEXTS = [*(f"text {number} " * (number % 50) + "é" for number in range(600)), None, ""]
TABLE = pa.table({"nested": [{"text": [1, 2]}] * len(TEXTS), "text": TEXTS, "text2": ["x"] * len(TEXTS)})
LARGE = 5 * 2**24  # characters that are all the same
pools = []  # an array must not outlive the pool that it is from


@contextmanager
def unpacking():
    """Counts what pyarrow takes memory for; `max_memory()` of what it yields is the most at a time."""
    before = pa.default_memory_pool()
    pools.append(pa.proxy_memory_pool(before))
    pa.set_memory_pool(pools[-1])
    try:
        yield pools[-1]
    finally:
        pa.set_memory_pool(before)


def refusal(path, kind):
    """The one line that a file is refused with, which must not have been unpacked."""
    with unpacking() as pool, pytest.raises(K1Error) as caught:
        list(file_documents(path, kind))
    assert pool.max_memory() < 2**20
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be read as {kind}: it ") and "\n" not in message
    return message


def write_arrow(path, table, compression):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(str(path), table.schema, options=options) as stream:
        stream.write_table(table, max_chunksize=250)


def varint(size):
    """A size as it is in the header of a page."""
    groups = [size * 2 >> shift & 127 for shift in range(0, 35, 7) if size * 2 >> shift]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def replace_once(path, before, after):
    data = path.read_bytes()
    assert data.count(before) == 1 and len(before) == len(after)
    path.write_bytes(data.replace(before, after))


def sizes_of(path, padding=0):
    """The sizes of the pages of the column "text"."""
    metadata, sizes = pq.read_metadata(path), []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        [chunk] = [chunk for chunk in map(group.column, range(group.num_columns)) if chunk.path_in_schema == "text"]
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        sizes += page_sizes(path.read_bytes()[start : start + chunk.total_compressed_size + padding])
    return sizes


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_compressed_parquet_is_read(tmp_path, codec, version):
    path = tmp_path / "a.parquet"
    for dictionary in (False, True):
        options = {"use_dictionary": dictionary, "write_statistics": dictionary, "write_page_index": dictionary}
        layout = {"row_group_size": 250, "data_page_size": 5_000, "write_page_checksum": dictionary}
        pq.write_table(TABLE, path, compression=codec, data_page_version=version, **options, **layout)
        with unpacking() as pool:
            assert list(file_documents(path)) == TEXTS
        groups = [pq.read_metadata(path).row_group(number) for number in range(3)]
        # What the file states for all pages includes their headers.
        total = sum(group.column(1).total_uncompressed_size for group in groups)
        sizes = sizes_of(path)
        assert len(sizes) == (6 if dictionary else 3) and 0 < total - sum(sizes) < 700 * len(sizes)
        assert max(sizes) <= pool.max_memory()


def test_pages_that_are_not_compressed_do_not_count(tmp_path):
    pq.write_table(TABLE, tmp_path / "a.parquet", compression="none")
    assert list(file_documents(tmp_path / "a.parquet")) == TEXTS
    assert sizes_of(tmp_path / "a.parquet") == [0, 0]


@pytest.mark.parametrize("codec", ["zstd", "lz4", None])
def test_compressed_arrow_is_read(tmp_path, codec):
    path = tmp_path / "a.arrow"
    for text in (TABLE["text"], TABLE["text"].combine_chunks().dictionary_encode()):
        table = TABLE.set_column(1, "text", text)
        write_arrow(path, table, codec)
        with unpacking() as pool:
            assert list(file_documents(path, "arrow")) == TEXTS
        sizes = [size for size in batch_sizes(path) if size]
        assert max(sizes, default=0) <= pool.max_memory()
        assert (table.nbytes * 0.9 < sum(sizes) < table.nbytes * 1.1) if codec else sizes == []


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_page_that_expands_is_refused(tmp_path, dictionary):
    path = tmp_path / "a.parquet"
    options = {"use_dictionary": dictionary, "dictionary_pagesize_limit": 2 * LARGE, "write_statistics": False}
    pq.write_table(pa.table({"text": ["a" * LARGE]}), path, compression="zstd", **options)
    assert path.stat().st_size < LARGE / 1_000
    assert "expands to more than 100 times its size" in refusal(path, "parquet")
    assert failure(path) == refusal(path, "parquet")


def test_a_page_that_states_two_gigabytes_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a" * 2**27], "noise": [Random(0).randbytes(22 * 2**20)]})
    codecs = {"text": "zstd", "noise": "none"}
    pq.write_table(table, path, compression=codecs, use_dictionary=False, write_statistics=False)
    # As large as the file is, 128 MiB are not too much.
    check_expansion(path, sizes_of(path))
    replace_once(path, b"\x15" + varint(2**27 + 10), b"\x15" + varint(2**31 - 1))
    assert "states 2,147,483,647 bytes for one compressed piece" in refusal(path, "parquet")


def test_pages_that_expand_together_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.table({"text": ["a" * 2**22] * 20})
    pq.write_table(texts, path, compression="zstd", use_dictionary=False, write_batch_size=1)
    sizes = sizes_of(path)
    assert len(sizes) == 20 and max(sizes) < 2**23
    assert "expands to more than 100 times its size" in refusal(path, "parquet")


def test_a_page_in_the_padding_of_old_files_is_seen(tmp_path, monkeypatch):
    """pyarrow reads 100 bytes more than a column has, where it takes the file for one of an old parquet-mr."""
    path = tmp_path / "a.parquet"
    text = Random(0).randbytes(5_000).hex()
    pq.write_table(pa.table({"text": [text] * 9}), path, compression="zstd", write_statistics=False)
    sizes, chunk = sizes_of(path), pq.read_metadata(path).row_group(0).column(0)
    assert len(sizes) == 2 and min(sizes) > 0
    first = chunk.data_page_offset - chunk.dictionary_page_offset
    assert first < chunk.total_compressed_size < first + 100
    start = b"\x16" + varint(chunk.total_uncompressed_size) + b"\x16"
    replace_once(path, start + varint(chunk.total_compressed_size), start + varint(first))
    assert sizes_of(path) == sizes[:1]
    replace_once(path, b"parquet-cpp-arrow version 26.0.1", b"parquet-mr version 1.2.8".ljust(32))
    assert sizes_of(path, padding=100) == sizes
    # Of a page that is not all there nothing is known, and nothing is read.
    assert sizes_of(path, padding=4) == sizes[:1]
    seen = []
    monkeypatch.setattr(Expansion, "add", lambda self, size: seen.append(size))
    assert list(file_documents(path)) == [text] * 9 and seen == sizes


def test_an_unknown_codec_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE.select(["text"]), path, compression="zstd")
    replace_once(path, b"\x19\x18\x04text\x15\x0c", b"\x19\x18\x04text\x15\x7e")
    assert "compression" in failure(path)


def test_metadata_that_contradicts_itself_is_refused(tmp_path):
    """pyarrow has counted the levels of a column, one more than the schema then has, and ends the process where it is
    asked for what it knows of the column.
    """
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE.select(["text"]), path, compression="zstd")
    replace_once(path, b"\x25\x02\x18\x04text", b"\x25\x00\x18\x04text")
    assert "cannot be read as parquet" in failure(path)


BAD_HEADERS = {
    "nothing": (b"", "cut off"),
    "a number that is cut off": (b"\x15\xff", "cut off"),
    "a number of 33 bits": (b"\x15\x82\x80\x80\x80\x10\x00", "more than 32 bits"),
    "a number of 65 bits": (b"\x16" + b"\xff" * 9 + b"\x02\x00", "more than 64 bits"),
    "a number without end": (b"\x16" + b"\xff" * 11, "more than 64 bits"),
    "a field twice": (b"\x15\x02\x15\x02\x05\x04\x04\x00", "damaged"),
    "a field of a number that wraps": (b"\x15\x02\x15\x02\x05\x84\x80\x08\x04\x00", "damaged"),
    "an unknown type": (b"\x1e\x00", "an unknown type"),
    "deep structures": (b"\x1c" * 99, "nested too deeply"),
    "deep lists": (b"\x19" + b"\x19" * 99, "nested too deeply"),
    "a text beyond the end": (b"\x18\xff\xff\xff\x7f", "cut off"),
    "a list beyond the end": (b"\x19\xf3\xff\xff\xff\x7f", "cut off"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_refused(name):
    data, problem = BAD_HEADERS[name]
    with pytest.raises((EOFError, ValueError), match=problem):
        CompactReader(data, 0).struct()


NO_SIZES = {
    "no field": b"\x00",
    "a negative size": b"\x15\x00\x15\x01\x15\x02\x00",
    "a size of another type": b"\x15\x00\x16\x02\x15\x02\x00",
    "no stored size": b"\x15\x00\x15\x02\x00",
}


@pytest.mark.parametrize("name", NO_SIZES)
def test_a_page_without_sizes_is_refused(name):
    sizes = page_sizes(b"\x15\x00\x15\x0a\x15\x04\x00ab" + NO_SIZES[name] + bytes(100))
    assert next(sizes) == 5
    with pytest.raises((EOFError, ValueError), match="no page where one should be|negative size"):
        next(sizes)


def test_a_header_with_fields_of_all_types_is_read():
    skipped = [b"\x11", b"\x12", b"\x13\xff", b"\x14\x81\x01", b"\x17" + b"\xff" * 8, b"\x18\x02ab", b"\x1b\x00"]
    skipped += [b"\x1b\x01\x85\x01a\x02", b"\x1a\xf5\x10" + b"\x02" * 16]
    data = b"\x15\x0e\x2c" + b"".join(skipped) + b"\x00\x16\x01\x19\x21\x01\x02\x19\x15\x0a\x00"
    reader = CompactReader(data + b"more", 0)
    found = reader.struct()
    assert reader.position == len(data)
    assert (found[1, 5], found[4, 6], found[6, 9]) == (7, -1, [5]) and len(found[3, 12]) == len(skipped)


@pytest.mark.parametrize("kind", ["text", "dictionary"])
def test_a_batch_that_expands_is_refused(tmp_path, kind):
    path = tmp_path / "a.arrow"
    text = pa.array(["a" * LARGE])
    write_arrow(path, pa.table({"text": text if kind == "text" else text.dictionary_encode()}), "zstd")
    assert path.stat().st_size < LARGE / 1_000
    assert "expands to more than 100 times its size" in refusal(path, "arrow")


def test_a_batch_that_states_too_much_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    texts, noise = ["x", "abc" * 12_345, "x"], Random(0).randbytes(12 * 2**20)
    write_arrow(path, pa.table({"text": texts, "noise": [noise, b"", b""]}), "zstd")
    assert list(file_documents(path, "arrow")) == texts
    before = path.read_bytes()
    for size in (MAX_UNPACKED, 2**62):
        # With the noise the batch is larger than its largest text.
        path.write_bytes(before)
        stated, zstd = len("".join(texts)), b"\x28\xb5\x2f\xfd"
        replace_once(path, struct.pack("<q", stated) + zstd, struct.pack("<q", size) + zstd)
        assert f"bytes for one compressed piece, and the most is {MAX_UNPACKED:,}" in refusal(path, "arrow")


def test_an_empty_batch_that_is_compressed_is_read(tmp_path):
    batch, options = pa.record_batch({"text": pa.array([], pa.string())}), pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), batch.schema, options=options) as stream:
        stream.write_batch(batch)
    assert list(file_documents(tmp_path / "a.arrow", "arrow")) == []


def test_batches_that_expand_together_are_refused(tmp_path):
    path = tmp_path / "a.arrow"
    write_arrow(path, pa.table({"text": ["a" * 2**17] * 1_000}), "lz4")
    assert max(batch_sizes(path)) < 2**25 + 2**12
    assert "expands to more than 100 times its size" in refusal(path, "arrow")


def test_a_batch_compressed_as_before_arrow_1_is_refused(tmp_path):
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    batch = pa.record_batch({"text": ["a", "b"]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), batch.schema, options=options) as stream:
        stream.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "ZSTD"})
    assert "compressed as before Arrow 1.0" in refusal(tmp_path / "a.arrow", "arrow")
