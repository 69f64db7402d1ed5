"""Errors that a user can act on, signals, and the one place that prints them."""

import argparse
import atexit
import errno
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TextIO

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = "not enough memory; lower --batch_size and raise --gradient_accumulation_steps, or choose a smaller preset"


class K1Error(Exception):
    """Something the user can mend; the message is one line that says what is wrong and what to do."""

    exit_status = 1


class UsageError(K1Error):
    """The command line asks for something that cannot be."""

    exit_status = 2


class Diverged(K1Error):
    """A training whose loss or gradient is no longer finite."""


class Terminated(BaseException):
    """SIGTERM, as `KeyboardInterrupt` is SIGINT."""


def raise_terminated(*_) -> None:
    """The handler of SIGTERM."""
    raise Terminated


def may_handle(number: int) -> bool:
    """Whether a handler of a signal can be set: only by the main thread, and not if it is to be ignored (nohup)."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    return is_main_thread and signal.getsignal(number) is not signal.SIG_IGN


class Interruption:
    """Context in which Ctrl-C and SIGTERM only set `requested`; they come at its end, unless that is an error.

    For training, which ends between two steps, and for writing: an exception in the middle of torch.save becomes
    another one there, or aborts the process. A second signal comes at once, unless `waits` says that all wait.
    """

    HANDLERS: dict[int, Callable] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: raise_terminated}

    def __init__(self, waits: bool = False) -> None:
        self.requested: int | None = None
        self._waits = waits

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in self.HANDLERS if may_handle(number)}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.requested = self.requested or number
        if not self._waits:
            signal.signal(number, self.HANDLERS[number])

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested is not None and kind is None:
            signal.raise_signal(self.requested)

    def end(self, message: str) -> None:
        """Raise what the signal stands for, `KeyboardInterrupt` or `Terminated`, with `message`."""
        raise KeyboardInterrupt(message) if self.requested == signal.SIGINT else Terminated(message)


def quiet_excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The `sys.excepthook` of commands, whose imports may fail, or be stopped, before `command` is reached."""
    end_if_clear(error)
    sys.__excepthook__(kind, error, trace)


def is_stream(path: Path) -> bool:
    """Whether `path` is written to as it is, never replaced: a device, a pipe, or what the process has open."""
    return path.parent in (Path("/dev"), Path("/dev/fd")) or path.is_fifo()


def user_path(text: str) -> Path:
    """The path that `text` names; ~ is the home folder, which the shell leaves alone in --flag=~/folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder; name the folder in full")


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, without the list of all flags, and that knows no abbreviations.

    Its help shows the `description` line by line.
    """

    def __init__(self, description: str | None, prog: str | None = None) -> None:
        lines = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=lines, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help explains all flags\n")


def module_parser(module: str, description: str | None) -> Parser:
    """The command line of `python3 -m module`."""
    return Parser(description, f"python3 -m {module}")


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap the `main` of a script so that bad input ends with one line on stderr, not a traceback.

    Exit status: 1 for a `K1Error`, 2 for a `UsageError`, 130 for Ctrl-C, 143 for SIGTERM, and 141
    when the reader of stdout goes away (`| head`), as for other shell tools.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        # They are None if the shell has closed them.
        sys.stdout = sys.stdout or open(os.devnull, "w")
        sys.stderr = sys.stderr or open(os.devnull, "w")
        try:
            if may_handle(signal.SIGTERM):
                signal.signal(signal.SIGTERM, raise_terminated)
            main()
            sys.stdout.flush()
        except BrokenPipeError:
            let_go(sys.stdout)
            sys.exit(141)
        except (Exception, KeyboardInterrupt, Terminated) as error:
            end_if_clear(error)
            raise
        finally:
            # All is written; a signal while the interpreter shuts down would only add a traceback.
            for number in Interruption.HANDLERS:
                atexit.register(signal.signal, number, signal.SIG_IGN)

    return wrapper


def end_if_clear(error: BaseException) -> None:
    """End the process with one line that says all of an error; returns if that is a mistake of the program."""
    cause: BaseException | None = error
    while cause:  # libraries make other errors of a signal
        if isinstance(cause, KeyboardInterrupt):
            fail(str(cause) or "interrupted", 130)
        if isinstance(cause, Terminated):
            fail(str(cause) or "terminated", 143)
        cause = cause.__context__
    if isinstance(error, K1Error):
        fail(str(error), error.exit_status)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "k1").startswith("k1"):
        fail(f"the package {error.name} is missing; run: pip install 'k1[experiment]'", 1)
    # torch's own words for it, on the CPU and on a GPU.
    is_memory = isinstance(error, RuntimeError) and re.search("allocate memory|out of memory", str(error))
    if is_memory or isinstance(error, MemoryError):
        fail(NO_MEMORY, 1)
    if isinstance(error, RuntimeError) and "TORCHELASTIC_RUN_ID" in os.environ:
        # What the collective operations of torch raise when another process is gone.
        reason = str(error).strip().splitlines()[0]
        fail(f"another process of the training ended ({reason}); start the same command again to resume", 1)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        let_go(sys.stdout)
        fail(
            f"cannot write the results ({error.strerror}); free some space and repeat the command, which prints "
            "them again: a checkpoint that was written is whole, and is not trained a second time",
            1,
        )


def let_go(stream: TextIO) -> None:
    """Let what is still written to stdout or stderr go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fail(message: str, status: int) -> NoReturn:
    """End the process with `message` as one line on stderr; of several processes each names itself."""
    process = f"process {os.environ['RANK']}: " if "TORCHELASTIC_RUN_ID" in os.environ else ""
    print(f"error: {process}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
