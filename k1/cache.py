"""Text and tokens as memory-mapped Arrow files, and a folder of those that are worth keeping between runs."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk

from k1.errors import K1Error


def cached(kind: str, key: str, build: Callable[[], DatasetDict]) -> DatasetDict:
    """The memory-mapped datasets stored under `kind` and `key`, built and stored the first time.

    The folder is `$K1_CACHE`, by default `~/.cache/k1`. An entry appears under its
    name only when it is complete; one that cannot be read is built again. Raises
    `K1Error` when the folder cannot be written.
    """
    folder = Path(os.environ.get("K1_CACHE") or Path.home() / ".cache" / "k1") / kind / key
    if folder.exists():
        try:
            return load_from_disk(str(folder))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            shutil.rmtree(folder, ignore_errors=True)
    built = build()
    with disk_errors(f"the cache folder {folder.parent}", "free some space or set K1_CACHE to another"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=folder.parent) as temporary:
            built.save_to_disk(Path(temporary) / key)
            try:
                os.rename(Path(temporary) / key, folder)
            except OSError:
                # Another process stored the same entry first; its content is the same.
                if not folder.exists():
                    raise
        return load_from_disk(str(folder))


def write_dataset(column: str, kind: pa.DataType, values: Iterable) -> Dataset:
    """Write `values` to an Arrow file that lasts as long as the process; they need not fit in memory.

    Raises `K1Error` when the folder of temporary files cannot be written.
    """
    schema = pa.schema({column: kind})
    values = iter(values)
    disk = f"the folder of temporary files {tempfile.gettempdir()}", "free some space or set TMPDIR to another"
    with disk_errors(*disk):
        handle, path = tempfile.mkstemp(suffix=".arrow", dir=scratch_folder().name)
    with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        # Errors of the source of the values are not errors of the disk, so only the writing is guarded.
        while batch := list(islice(values, 100)):
            with disk_errors(*disk):
                writer.write_table(pa.table({column: batch}, schema))
    return Dataset.from_file(path)


@contextmanager
def disk_errors(place: str, advice: str) -> Iterator[None]:
    """Turn an `OSError` into a `K1Error` that names the place and what to do."""
    try:
        yield
    except OSError as error:
        raise K1Error(f"cannot write {place} ({error.strerror or error}); {advice}") from error


@cache
def scratch_folder() -> tempfile.TemporaryDirectory:
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="k1-")
