"""Text and tokens as memory-mapped Arrow files, and a folder of those that are worth keeping between runs."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk

from k1.data.messages import quiet_libraries
from k1.errors import K1Error
from k1.files import advice_on

SPLITS = ("train", "validation", "test")
CHECKSUM = "sha256"


def cached(kind: str, key: str, build: Callable[[], DatasetDict]) -> DatasetDict:
    """The memory-mapped datasets stored under `kind` and `key`, built and stored the first time.

    The folder is `$K1_CACHE`, by default `~/.cache/k1`. An entry appears under its
    name only when it is complete; one whose files are not those that were stored is
    built again. Raises `K1Error` when the folder cannot be written.
    """
    folder = cache_folder() / kind / key
    if stored := load_intact(folder):
        return stored
    shutil.rmtree(folder, ignore_errors=True)
    built = build()
    with disk_errors(f"the cache folder {folder.parent}", "set K1_CACHE to another"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=folder.parent) as temporary:
            complete = Path(temporary) / key
            with quiet_libraries():
                built.save_to_disk(complete)
            (complete / CHECKSUM).write_text(checksum(complete))
            try:
                os.rename(complete, folder)
            except OSError:
                # Another process stored the same entry first; its content is the same.
                if not folder.exists():
                    raise
    return load_intact(folder) or built


def cache_folder() -> Path:
    """The folder of the cache; raises `K1Error` if there is none by default."""
    try:
        return Path(os.environ.get("K1_CACHE") or Path.home() / ".cache" / "k1")
    except RuntimeError as error:
        raise K1Error("this user has no home folder for the cache; set K1_CACHE to a folder") from error


def load_intact(folder: Path) -> DatasetDict | None:
    """The datasets in `folder`, or None if its files are not those that were stored."""
    try:
        is_intact = (folder / CHECKSUM).read_text() == checksum(folder)
        return load_from_disk(str(folder)) if is_intact else None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def checksum(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below `folder` but the one that keeps it."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUM):
        with open(path, "rb") as file:
            total.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def write_dataset(column: str, kind: pa.DataType, values: Iterable) -> Dataset:
    """Write `values` to an Arrow file that lasts as long as the process; they need not fit in memory.

    Raises `K1Error` when the folder of temporary files cannot be written.
    """
    schema = pa.schema({column: kind})
    values = iter(values)
    disk = f"the folder of temporary files {tempfile.gettempdir()}", "set TMPDIR to another"
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
        raise K1Error(f"cannot write {place} ({error.strerror or error}); {advice_on(error, advice)}") from error


@cache
def scratch_folder() -> tempfile.TemporaryDirectory:
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="k1-")


def write_splits(splits: dict[str, Iterable[str]], max_documents: int | None) -> dict[str, datasets.Dataset]:
    """Write the documents of each split to an Arrow file, so that they need not fit in memory."""
    written = {}
    for split, documents in splits.items():
        documents = (document for document in documents if document and not document.isspace())
        dataset = write_dataset("text", pa.string(), islice(documents, max_documents if split == "train" else None))
        if len(dataset) > 0:
            written[split] = dataset
    return written
