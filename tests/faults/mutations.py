"""Damage to the bytes of any file.

Every mutation is a function of a path and a seeded `random.Random` that changes the file or
folder at that path. What must come of reading it is kept by `tests/faults/fuzz_kinds.py`.
"""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

Mutation = Callable[[Path, Random], object]
MARKER = "was-run"  # what hostile code would make in its working directory


def regions(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of the parts of a file: the records and the directory of a ZIP archive, else its thirds and ends."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            starts = [0, *(entry.header_offset for entry in archive.infolist()), archive.start_dir]
    except (zipfile.BadZipFile, OSError, ValueError):
        starts = [0, 8, len(data) // 3, 2 * len(data) // 3, len(data) - 64, len(data) - 8]
    starts = sorted({min(max(0, start), len(data)) for start in starts})
    return [(start, end) for start, end in zip(starts, [*starts[1:], len(data)]) if end > start] or [(0, len(data))]


def position(data: bytes, random: Random) -> int:
    start, end = random.choice(regions(data))
    return random.randrange(start, max(end, start + 1))


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 32)):
        changed[position(data, random)] ^= random.randint(1, 255)
    return bytes(changed)


def zero(data: bytes, random: Random) -> bytes:
    start, length = position(data, random), 2 ** random.randrange(10)
    return data[:start] + b"\0" * len(data[start : start + length]) + data[start + length :]


def swap(data: bytes, random: Random) -> bytes:
    first, second = sorted((position(data, random), position(data, random)))
    length = min(2 ** random.randrange(10), second - first)
    return (
        data[:first] + data[second : second + length] + data[first + length : second]
        + data[first : first + length] + data[second + length :]
    )  # fmt: skip


def repeat(data: bytes, random: Random) -> bytes:
    start, length = position(data, random), 2 ** random.randrange(10)
    return data[: start + length] + data[start : start + length] * random.randint(1, 9) + data[start + length :]


def truncate(data: bytes, random: Random) -> bytes:
    return data[: position(data, random)]


FOREIGN = [
    b"", b"\0", b"\n \n", b"hello\n", b"\xff\xfe\xfd" * 50, b"PK\x03\x04" + b"x" * 99, b"PAR1" * 9, b"ARROW1\0\0" * 9,
    gzip.compress(b'{"text": "a"}\n', mtime=0), json.dumps({"text": "a"}).encode(), pickle.dumps({"text": 1}),
    b"[" * 50_000, b"text\na\n", b"\x1f\x8b\x08", b"\x80\x02}q\x00.",
]  # fmt: skip


def on_bytes(change: Callable[[bytes, Random], bytes]) -> Mutation:
    """A mutation of one file, or of one of the files below a folder."""

    def mutate(path: Path, random: Random) -> None:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        file = random.choice(files)
        data = file.read_bytes()
        file.write_bytes(change(data, random) if data else b"\0")

    return mutate


BYTES: dict[str, Mutation] = {
    "truncation": on_bytes(truncate),
    "flipped bytes": on_bytes(flip),
    "zeroed bytes": on_bytes(zero),
    "swapped bytes": on_bytes(swap),
    "repeated bytes": on_bytes(repeat),
    "garbage": on_bytes(lambda data, random: random.randbytes(random.choice([1, 100, len(data)]))),
    "another kind of file": on_bytes(lambda data, random: random.choice(FOREIGN)),
}
