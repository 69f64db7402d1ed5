"""Errors that a user can act on, and the one place that prints them."""

import functools
import signal
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

    Exit status: 1 for a `K1Error`, 2 for a `UsageError`, 130 for Ctrl-C. A reader of
    stdout that goes away (`| head`) ends the script quietly, as it does other shell tools.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            main()
        except K1Error as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            print("error: interrupted; no file was changed by the stage that was running", file=sys.stderr)
            sys.exit(130)

    return wrapper
