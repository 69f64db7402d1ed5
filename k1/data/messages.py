"""What a user reads on stderr while data is read: each line once, and none of the libraries' own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import datasets
import huggingface_hub
import transformers

from k1.parallel import is_main_process


@cache
def say_once(line: str) -> None:
    """Print a line on stderr, the first time only and in one process only."""
    if is_main_process():
        print(line, file=sys.stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries of Hugging Face from logging and showing progress; as before afterwards."""
    libraries = (datasets.utils, huggingface_hub.utils)
    loggers = [library.logging for library in (*libraries, transformers.utils)]
    levels = [logger.get_verbosity() for logger in loggers]
    had_bars = [not library.are_progress_bars_disabled() for library in libraries]
    models_had_bars = transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.set_verbosity(logger.CRITICAL)
    for library in libraries:
        library.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.set_verbosity(level)
        # First, as it is a switch of huggingface_hub as well.
        if models_had_bars:
            transformers.utils.logging.enable_progress_bar()
        for library, had in zip(libraries, had_bars):
            library.enable_progress_bars() if had else library.disable_progress_bars()
