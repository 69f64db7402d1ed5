"""Types of flags: a value that cannot be ends the command with one line before any work is done."""

import argparse
import os
import tempfile
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TypeVar

from k1.errors import is_stream, user_path

Number = TypeVar("Number", int, float)
# What a number must be, in words, and as a test.
Bounds = tuple[str, Callable[[float], bool]]
# Far above any use; a seed beyond it would overflow torch's generators.
MAXIMUM = 2**32 - 1
POSITIVE: Bounds = ("a positive number", lambda value: 0 < value < inf)


def at_least(minimum: int, maximum: float = MAXIMUM) -> Bounds:
    """The bounds of a number that is not below `minimum` nor above `maximum`."""
    words = f"at least {minimum}" + (f" and at most {maximum}" if maximum < inf else "")
    return words, lambda value: minimum <= value <= maximum


def checked(kind: type[Number], bounds: Bounds) -> Callable[[str], Number]:
    """The type of a flag whose number is within `bounds`; of another one the error says what it must be."""
    words, is_within = bounds

    def parse(text: str) -> Number:
        value = kind(text)
        if not is_within(value):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


above_zero = checked(int, at_least(1, inf))
positive = checked(float, POSITIVE)


def file_to_write(text: str) -> Path:
    """The path of a file in a folder that exists and can be written, or of a device that can be."""
    path = user_path(text)
    if path.is_dir() or not os.access(path if is_stream(path) else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} is not a file in a folder that can be written")
    return path


def folder_to_write(text: str) -> Path:
    """The path of a folder that can be written, which is made."""
    path = user_path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} is not a folder that can be written ({error.strerror})")
