"""Text and tokens as memory-mapped Arrow files, and a folder of those that are worth keeping between runs."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk

from k1.errors import K1Error


def cached(kind: str, key: str, build: Callable[[], DatasetDict]) -> DatasetDict:
    """The memory-mapped datasets stored under `kind` and `key`, built and stored the first time.

    The folder is `$K1_CACHE`, by default `~/.cache/k1`. An entry appears under its
    name only when it is complete. Raises `K1Error` when the folder cannot be written.
    """
    folder = Path(os.environ.get("K1_CACHE") or Path.home() / ".cache" / "k1") / kind / key
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.mkdtemp(prefix=f".{key}-", dir=folder.parent)
        except OSError as error:
            raise K1Error(f"cannot write the cache folder {folder.parent} ({error.strerror}); set K1_CACHE to another")
        try:
            build().save_to_disk(temporary)
            try:
                os.rename(temporary, folder)
            except OSError:
                # Another process stored the same entry first; its content is the same.
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return load_from_disk(str(folder))


def write_dataset(column: str, kind: pa.DataType, values: Iterable) -> Dataset:
    """Write `values` to an Arrow file that lasts as long as the process; they need not fit in memory."""
    schema = pa.schema({column: kind})
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=scratch_folder().name)
    values = iter(values)
    with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while batch := list(islice(values, 100)):
            writer.write_table(pa.table({column: batch}, schema))
    return Dataset.from_file(path)


@cache
def scratch_folder() -> tempfile.TemporaryDirectory:
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="k1-")
