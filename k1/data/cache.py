"""Text and tokens as memory-mapped Arrow files, of which a folder keeps those that take long to make."""

import os
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from k1.errors import K1Error
from k1.flag_types import folder_to_write

SPLITS = ("train", "validation", "test")


def cache_folder() -> Path:
    """Make the folder of the cache, `$K1_CACHE` or `~/.cache/k1`; raises `K1Error` if it cannot be written."""
    try:
        return folder_to_write(os.environ.get("K1_CACHE") or "~/.cache/k1")
    except ArgumentTypeError as error:
        raise K1Error(f"the cache: {error}; set K1_CACHE to another folder")


def stored(column: str, kind: pa.DataType, values: Iterable, name: str = "") -> Dataset:
    """Write `values` to an Arrow file with one column; they need not fit in memory.

    With a `name` the file stays in the cache, under that name when it is complete; if it is there already, it is read
    and `values` are not. Else it lasts as long as it is used.
    """
    folder, values = cache_folder(), iter(values)
    kept = folder / f"{name}.arrow"
    with suppress(OSError, pa.ArrowException):  # not there, or damaged
        return Dataset.from_file(str(kept))
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        path = Path(temporary, kept.name)
        with open(path, "wb") as file:
            with pa.ipc.new_stream(file, schema := pa.schema({column: kind})) as writer:
                while batch := list(islice(values, 100)):
                    writer.write_table(pa.table({column: batch}, schema))
            file.flush()
            os.fsync(file.fileno())
        if name:
            path = path.replace(kept)
        return Dataset.from_file(str(path))
