"""Writing files so that a crash or a full disk never leaves a part of one, and only one process at a time."""

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock, Timeout

from k1.errors import K1Error

# Drawing libraries are slow to import, and most scripts draw nothing.
if TYPE_CHECKING:
    from matplotlib.figure import Figure


locks: list[FileLock] = []  # held until the process ends, however it ends


def lock(path: Path) -> None:
    """Keep other processes from writing `path`; raises `K1Error` where one has already done so.

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


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote `path` or its resume file."""
    pattern = re.compile(rf"\.{re.escape(path.stem)}(\.resume)?{re.escape(path.suffix)}\.\d+")
    for file in path.parent.iterdir():
        if pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and give it the name `path`.

    Raises `K1Error` when the disk does not take it; a file that was at `path`
    before is then intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as an error of its archive, which says less.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise K1Error(f"cannot write {path} ({reason}); free some space or choose another place")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def flush_folder(folder: Path) -> None:
    """Let a new name in `folder` outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_figure(path: Path, figure: "Figure", dpi: int) -> None:
    """Write a matplotlib `figure` to `path` as PNG, atomically; the same figure gives the same bytes."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, metadata={"Software": None})
    write_atomically(path, lambda file: file.write(picture.getvalue()))
