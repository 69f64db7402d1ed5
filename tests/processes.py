"""Processes of the tests that are forked instead of started anew, so that the imports cost nothing, and captured.

What runs in such a process ends as a script does: `SystemExit` gives its status, any other
exception a traceback on its stderr and the status `UNEXPECTED`.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

UNEXPECTED = 70


def be_captured(body: Callable[[], object], stdout: Path, stderr: Path) -> NoReturn:
    """Run `body` and end this process; what it prints, also from below Python, goes to the files, which may be one."""
    status = UNEXPECTED
    try:
        for number, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
        body()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except KeyboardInterrupt:
        # Before or after a script heeds it; there a process of its own would be ended by the signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Whatever fails above, a fork must not go on with the work of its parent.
            os._exit(status)


class ServerProcess:
    """`be_captured` in a fork of a server that has imported `modules` and done nothing else.

    It has the methods of `subprocess.Popen` that the tests need. `body` is pickled.
    """

    def __init__(self, body: Callable[[], object], stdout: Path, stderr: Path, modules: Sequence[str]) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(list(modules))
        self._process = context.Process(target=be_captured, args=(body, stdout, stderr))
        self._process.start()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def wait(self, timeout: float) -> int:
        """The exit status once it has ended; after `timeout` seconds it is killed, and `TimeoutError` raised."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"a process takes more than {timeout} s")
        return self._process.exitcode


def run_two(body: Callable[[int, int], object], folder: Path, modules: Sequence[str], timeout: float) -> None:
    """Run `body` in two processes at once, with the rank of each and a free port; fails unless both end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [folder / f"output{rank}" for rank in (0, 1)]
    processes = [ServerProcess(partial(body, rank, port), path, path, modules) for rank, path in enumerate(files)]
    assert [process.wait(timeout) for process in processes] == [0, 0], [path.read_text() for path in files]
