"""Types of flags: a value that cannot be ends the command with one line before any work is done."""

import argparse
import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)


def checked(kind: type[Number], is_allowed: Callable[[Number], bool], words: str) -> Callable[[str], Number]:
    """The type of a number that `is_allowed`; else the error says that it must be `words`."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not is_allowed(value):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


above_zero = checked(int, lambda value: value >= 1, "at least 1")
positive = checked(float, lambda value: 0 < value < inf, "a positive number")


def file_to_write(text: str) -> Path:
    """The path of a file in a folder that exists and can be written."""
    path = Path(text)
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} is not a file in a folder that can be written")
    return path


def folder_to_write(text: str) -> Path:
    """The path of a folder that can be written, which is made."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} is not a folder that can be written ({error.strerror})")
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} is not a folder that can be written")
    return path
