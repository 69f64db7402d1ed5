"""Each measurement in a process of its own, which ends with the one that asked for it."""

from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection

from k1.errors import K1Error

# What a server imports before it is forked: a fork of it starts at once, and has none of the memory used here.
PRELOADED = ["k1.benchmark.training", "k1.benchmark.generation", "k1.benchmark.growth"]


def measure(function: Callable, *arguments: object) -> object:
    """What `function` returns in a process of its own; raises what it raises.

    Raises `K1Error` where the process ends without an answer, as it does when memory runs out.
    """
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        is_result, value = receiver.recv()
    except EOFError:
        process.join()
        raise K1Error(
            f"measuring {function.__name__} ended with status {process.exitcode}, for lack of memory perhaps; "
            "choose smaller --shapes"
        )
    except BaseException:
        process.terminate()
        raise
    process.join()
    if not is_result:
        raise value
    return value


def answer(sender: Connection, function: Callable, arguments: tuple) -> None:
    """Send what `function` returns or raises; says nothing where Ctrl-C ends it, as the other process does."""
    with suppress(KeyboardInterrupt):
        try:
            sender.send((True, function(*arguments)))
        except Exception as error:
            sender.send((False, error))
