"""Writing files so that a crash or a full disk never leaves a part of one."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from k1.errors import K1Error


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
