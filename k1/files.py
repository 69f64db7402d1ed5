"""Writing files so that a crash or a full disk never leaves a part of one."""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from k1.errors import K1Error

# Drawing libraries are slow to import, and most scripts draw nothing.
if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    except (OSError, RuntimeError) as error:
        raise K1Error(f"cannot write {path} ({error}); free some space or choose another place")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_figure(path: Path, figure: "Figure", dpi: int) -> None:
    """Write a matplotlib `figure` to `path` as PNG, atomically; the same figure gives the same bytes."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, metadata={"Software": None})
    write_atomically(path, lambda file: file.write(picture.getvalue()))
