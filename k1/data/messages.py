"""What a user reads on stderr while data is read: each line once, and none of the libraries' own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import datasets
import huggingface_hub

from k1.parallel import is_main_process


@cache
def say_once(line: str) -> None:
    """Print a line on stderr, the first time only and in one process only."""
    if is_main_process():
        print(line, file=sys.stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep `datasets` and `huggingface_hub` from logging and showing progress; as before afterwards."""
    libraries = (datasets.utils, huggingface_hub.utils)
    levels = [library.logging.get_verbosity() for library in libraries]
    with_bars = [library for library in libraries if not library.are_progress_bars_disabled()]
    for library in libraries:
        library.logging.set_verbosity(library.logging.CRITICAL)
    for library in with_bars:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels):
            library.logging.set_verbosity(level)
        for library in with_bars:
            library.enable_progress_bars()
