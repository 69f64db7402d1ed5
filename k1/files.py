"""Files: written whole or not at all, by one process at a time, and believed only after checks."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from k1.errors import DISK_FULL, Interruption, K1Error, is_stream

locks: list[FileLock] = []  # held until the process ends, however it ends


def lock(path: Path) -> None:
    """Keep other processes from writing `path`; raises `K1Error` if one has already done so.

    The kernel gives the lock back when the process ends, so a dead one never holds it.
    """
    guard = FileLock(path.with_name(f".{path.stem}.lock"), timeout=0, is_singleton=True)
    try:
        guard.acquire()
    except Timeout:
        raise K1Error(f"another process is writing {path}; wait until it ends or choose another --models_dir")
    except OSError as error:
        raise K1Error(f"cannot lock {path} ({error.strerror}); choose another --models_dir")
    locks.append(guard)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill the file at `path`, see `writing`; a device or a pipe is written to as it is."""
    if is_stream(path):
        # What stdout was redirected to keeps what is in it.
        with open(path, "ab") as file:
            write(file)
    else:
        with writing(path) as place, open(place, "wb") as file:
            write(file)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a free name beside `path`; the file or folder there at the end is flushed to the disk and takes its place.

    Of a link it is the place of the file that the link names; a folder takes that of an empty one only. Signals wait
    until the end. Raises `K1Error` when the disk does not take it or something has come to lie at `path`, which is
    then as it was.
    """
    target = path.resolve()
    # Always the same name, so that nothing is left of a process that was killed once the next one has written.
    place = target.with_name(f".{target.name}.part")
    try:
        with Interruption(waits=True):
            remove(place)
            yield place
            for written in [*(place.iterdir() if place.is_dir() else []), place]:
                flush(written)
            os.replace(place, target)
            with contextlib.suppress(OSError):  # not every system can
                flush(target.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save reports a full disk as an error of its archive, which says less.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        # safetensors and torch tell the reason of the system in words alone.
        is_full = any(os.strerror(number) in str(reason) for number in DISK_FULL)
        raise K1Error(f"cannot write {path} ({reason}); {'free some space or ' * is_full}choose another place")
    finally:
        remove(place)


def remove(path: Path) -> None:
    """Remove the file or folder at `path`, if there is one."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def flush(path: Path) -> None:
    """Let a file, or the names in a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def content_digest(content: object) -> str:
    """SHA-256, as hexadecimal digits, of values and tensors nested in dictionaries, lists and tuples.

    Raises `ValueError` for anything else.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)}\n".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"list {len(value)}\n".encode())
            for item in value:
                add(item)
        elif value is None or isinstance(value, bool | int | float | str):
            digest.update(f"{type(value).__name__} {value!r}\n".encode("utf-8", "surrogatepass"))
        else:
            raise ValueError(f"it holds a value of type {type(value).__name__}")

    add(content)
    return digest.hexdigest()


def write_content(path: Path, content: dict) -> str:
    """Write `content` (see `content_digest`) to `path`, with its SHA-256 as the key `sha256`; returns that.

    Raises `K1Error` when the disk does not take it; an old file at `path` is then intact.
    """
    sha256 = content_digest(content)
    write_atomically(path, lambda file: torch.save({**content, "sha256": sha256}, file))
    return sha256


def read_content(path: Path, kind: str, format_version: int, remedy: str) -> dict:
    """Read what `write_content` wrote: a `kind` ("checkpoint") whose key `format` is `format_version`.

    Nothing in the file is run. Raises `K1Error`, one line that ends with `remedy`, when the file cannot be
    read, is damaged, or is of another kind or format version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, IsADirectoryError) as error:
        raise K1Error(f"cannot read {path} ({error.strerror}); check the file and its permissions")
    except Exception:  # what torch.load raises depends on where the damage is
        raise K1Error(f"{path} is damaged or is not a {kind}; {remedy}")
    if not isinstance(content, dict) or "format" not in content:
        raise K1Error(f"{path} is not a k1 {kind}; {remedy}")
    if content["format"] != format_version:
        found = f"{content['format']!s:.20}"
        raise K1Error(f"{path} has format version {found}, this code reads version {format_version}; {remedy}")
    sha256 = content.pop("sha256", None)
    if content_digest(content) != sha256:
        raise K1Error(f"{path} is damaged: its content does not have the SHA-256 that it names; {remedy}")
    return {**content, "sha256": sha256}
