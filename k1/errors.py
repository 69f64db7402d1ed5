"""Errors that a user can act on, and the one place that prints them."""

import functools
import os
import sys
from collections.abc import Callable


class K1Error(Exception):
    """Something the user can mend; the message is one line that says what is wrong and what to do."""

    exit_status = 1


class UsageError(K1Error):
    """The command line asks for something that cannot be."""

    exit_status = 2


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap the `main` of a script so that bad input ends with one line on stderr, not a traceback.

    Exit status: 1 for a `K1Error`, 2 for a `UsageError`, 130 for Ctrl-C, and 141 when the
    reader of stdout goes away (`| head`), as for other shell tools.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        try:
            main()
            sys.stdout.flush()
        except K1Error as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # The interpreter flushes stdout once more at exit; let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    return wrapper
