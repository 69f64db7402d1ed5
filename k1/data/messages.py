"""What a user reads on stderr while data is read: each line once, one line for an error, and none of the libraries'."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache

from datasets.exceptions import DatasetGenerationError

from k1.errors import K1Error
from k1.parallel import is_main_process


@cache
def say_once(line: str) -> None:
    """Print a line on stderr, the first time only and in one process only."""
    if is_main_process():
        print(line, file=sys.stderr)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep libraries from logging; as before afterwards."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries from logging, warning and showing progress."""
    with quiet_logs(), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


@contextmanager
def refusals(problem: str, advice: str) -> Iterator[None]:
    """Make of whatever libraries raise a `K1Error`, "problem: reason; advice", and keep them quiet."""
    try:
        with quiet_libraries():
            yield
    except (K1Error, MemoryError):
        raise
    except Exception as error:  # what it is depends on where the damage is
        raise K1Error(f"{problem}: {reason(error)}; {advice}") from error


def reason(error: BaseException) -> str:
    """Say in one line what an error is; what is behind a `DatasetGenerationError`, which itself says nothing."""
    error = error.__cause__ or error if isinstance(error, DatasetGenerationError) else error
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
