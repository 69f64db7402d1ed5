"""Hostile files of text: wrong types, declared sizes, files that expand, and folders that point elsewhere."""

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.mutations import Mutation


def write(data: bytes) -> Mutation:
    return lambda path, random: path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def lines(*values: object) -> Mutation:
    return write("".join(json.dumps(value) + "\n" for value in values).encode())


def one_line(value: object) -> Mutation:
    """One more line among good ones."""

    def mutate(path: Path, random: Random) -> None:
        is_compressed = path.suffix == ".gz"
        good = (gzip.decompress(path.read_bytes()) if is_compressed else path.read_bytes()).splitlines()
        good.insert(random.randrange(len(good) + 1), value if isinstance(value, bytes) else json.dumps(value).encode())
        path.write_bytes(gzip.compress(b"\n".join(good), mtime=0) if is_compressed else b"\n".join(good))

    return mutate


def bomb(path: Path, random: Random) -> None:
    """5 GB of one line in 5 MB."""
    part = gzip.compress(bytes(2**26), 9, mtime=0)
    path.write_bytes(part * 80)


JSON_REFUSED: dict[str, Mutation] = {
    "a number for the text": one_line({"text": 5}),
    "a list for the text": one_line({"text": ["a", ["b"]]}),
    "an object for the text": one_line({"text": {"a": "b"}}),
    "text for an object": one_line("text"),
    "a number for an object": one_line(5),
    "a list in a line": one_line([[1]]),
    "invalid UTF-8": one_line(b'{"text": "caf\xe9"}'),
    "a lone surrogate": one_line({"text": "\ud800"}),
    "deep nesting": one_line(b"[" * 200_000),
    "deep objects": one_line(b'{"text":' * 100_000),
    "an endless number": one_line(b'{"n": ' + b"9" * 100_000 + b"}"),
    "no column of text": lines(*({"a": 1, "b": [2]} for _ in range(50))),
    "two columns of text": lines(*({"a": "x", "b": "y"} for _ in range(50))),
    "only empty objects": lines({}, {}, {}),
    "an unclosed list": write(b'[{"text": "a"}, '),
}
JSON_ANY: dict[str, Mutation] = {
    "a column of its own in each line": lines(*({"text": f"a {n}", f"k{n}": n} for n in range(20_000))),
    "a line of 50 MB": one_line(b'{"text": "' + b"a " * 25_000_000 + b'"}'),
    "a line of 50 MB of brackets": one_line(b"[" + b"[]," * 5_000_000 + b"[]]"),
    "NUL": one_line(b"\0\0\0"),
    "NaN": one_line(b'{"text": NaN}'),
    "null": one_line({"text": None}),
    "a key twice": one_line(b'{"text": "a", "text": 5}'),
}
CSV_ANY: dict[str, Mutation] = {
    "unbalanced quotes": one_line(b'1,"not closed'),
    "NUL": one_line(b"1,a\0b\0"),
    "too many fields": one_line(b"1," + b"a," * 1000),
    "a million fields": write(b"id,text\n" + b"," * 1_000_000 + b"\n"),
    "a million columns": write(b"," * 1_000_000 + b"\n1,2\n"),
    "a field of 20 MB": one_line(b'1,"' + b"a " * 10_000_000 + b'"'),
    "invalid UTF-8": one_line(b"1,caf\xe9"),
    "only numbers": write(b"a,b\n1,2\n3,4\n"),
    "a header only": write(b"id,text\n"),
    "the same column twice": write(b"text,text\na,b\nc,d\ne,f\n"),
    "carriage returns": write(b"id,text\r1,a\r2,b\r3,c\r"),
}


def table(columns: Callable[[], dict], **options: object) -> Mutation:
    return lambda path, random: pq.write_table(pa.table(columns()), path, **options)


PARQUET_REFUSED: dict[str, Mutation] = {
    "lists for texts": table(lambda: {"text": [["a"], ["b"]]}),
    "structures for texts": table(lambda: {"text": [{"a": "b"}] * 9}),
    "bytes for texts": table(lambda: {"text": pa.array([b"\xff"] * 9)}),
    "numbers for texts": table(lambda: {"text": list(range(9))}),
    "two columns of text": table(lambda: {"a": ["x"], "b": ["y"]}),
    "invalid UTF-8": table(lambda: {"text": text_array([b"caf\xe9", b"ok", b"x"])}),
    "no row": table(lambda: {"text": pa.array([], pa.string())}),
    "three million empty rows": table(lambda: {"text": [""] * 3_000_000}, compression="zstd"),
}
PARQUET_ANY: dict[str, Mutation] = {
    "20,000 rows of one text": table(lambda: {"text": ["word " * 400] * 20_000}, compression="zstd"),
    "a text of 100 MB": table(lambda: {"text": ["a" * 10**8, "b", "c"]}, compression="zstd"),
    "a thousand columns": table(lambda: {"text": ["a", "b", "c"], **{f"c{n}": [1, 2, 3] for n in range(1000)}}),
}


def text_array(values: list[bytes]) -> pa.Array:
    """A text array of bytes that are not checked."""
    _, offsets, data = pa.array(values).buffers()
    return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, data])


def one_offset(index: int, value: int) -> Mutation:
    """Another number among the offsets of the texts in the Arrow file of a saved dataset."""

    def mutate(path: Path, random: Random) -> None:
        (file,) = path.glob("*.arrow")
        data = bytearray(file.read_bytes())
        column = pa.ipc.open_stream(bytes(data)).read_next_batch().column(0)
        offsets = column.buffers()[1].to_pybytes()[: 4 * len(column) + 4]
        place = data.index(offsets) + 4 * (index % (len(column) + 1))
        data[place : place + 4] = struct.pack("<i", value)
        file.write_bytes(data)

    return mutate


def in_arrow(column: Callable[[], pa.Array], compression: str | None = None) -> Mutation:
    """Another column "text" in the Arrow file of a saved dataset."""

    def mutate(path: Path, random: Random) -> None:
        (file,) = path.glob("*.arrow")
        batch, options = (
            pa.record_batch({"text": column()}),
            pa.ipc.IpcWriteOptions(compression=compression, allow_64bit=True),
        )
        with pa.ipc.new_stream(file, batch.schema, options=options) as stream:
            stream.write_batch(batch)

    return mutate


def in_state(state: object) -> Mutation:
    """Other content of `state.json`, or of the list of files in it."""

    def mutate(path: Path, random: Random) -> None:
        old = json.loads((path / "state.json").read_text())
        new = {**old, "_data_files": state} if isinstance(state, list) else state
        (path / "state.json").write_text(json.dumps(new))

    return mutate


def outside(name: str) -> Mutation:
    """The text moves out of the folder, and `state.json` names it there."""

    def mutate(path: Path, random: Random) -> None:
        (file,) = path.glob("*.arrow")
        target = path.parent / "elsewhere.arrow"
        shutil.move(file, target)
        in_state([{"filename": name.format(target)}])(path, random)

    return mutate


def splits_outside(path: Path, random: Random) -> None:
    shutil.copytree(path, path.parent / "elsewhere")
    (path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "../elsewhere"]}))
    (path / "train").symlink_to(path.parent / "elsewhere")


def a_folder_for_a_file(path: Path, random: Random) -> None:
    (file,) = path.glob("*.arrow")
    file.unlink()
    file.mkdir()


SAVED_REFUSED: dict[str, Mutation] = {
    "a file above the folder": outside("../elsewhere.arrow"),
    "a file by its absolute path": outside("{}"),
    "a split above the folder": splits_outside,
    "a file that is missing": in_state([{"filename": "missing.arrow"}]),
    "a name of a wrong type": in_state([{"filename": 5}]),
    "a name with NUL": in_state([{"filename": "a\0b"}]),
    "a file a thousand times": in_state([{"filename": "data-00000-of-00001.arrow"}] * 1000),
    "files of a wrong type": in_state([5, None]),
    "a state without files": in_state({}),
    "a state of text": in_state("text"),
    "a folder for a file": a_folder_for_a_file,
    "an offset beyond the data": one_offset(-1, 2**31 - 1),
    "an offset that goes back": one_offset(5, 1),
    "an offset far ahead": one_offset(5, 2**30),
    "a negative offset": one_offset(0, -(2**31)),
    "invalid UTF-8": in_arrow(lambda: text_array([b"caf\xe9", b"ok", b"x"])),
    "lists for texts": in_arrow(lambda: pa.array([["a"]] * 9)),
    "10^15 empty rows": in_arrow(lambda: pa.Array.from_buffers(pa.null(), 10**15, [None])),
    "compressed text that expands": in_arrow(lambda: pa.array(["a" * 3 * 10**8, "b", "c"]), "zstd"),
}
