"""Contestants take turns: each training loop runs as it is, but waits before every batch until it is its turn."""

import statistics
import sys
import threading
import time
from collections.abc import Callable

WARM_UP = 2  # rounds that are not counted: they allocate the optimizer's state, and a loader may read one batch ahead


class Closed(Exception):
    """Ends a training loop that waits for its turn."""


class Turnstile:
    """Runs `loop` in a thread of its own and lets it go on from batch to batch, one `step` at a time.

    `loop` takes one argument, a function that it must call before it takes a batch.
    """

    def __init__(self, loop: Callable[[Callable[[], None]], None]) -> None:
        self._go, self._waiting = threading.Semaphore(0), threading.Semaphore(0)
        self._is_closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()
        self._until_it_waits()

    def _run(self, loop: Callable[[Callable[[], None]], None]) -> None:
        try:
            loop(self._wait)
            raise RuntimeError("the training ended by itself")
        except Closed:
            pass
        except Exception as error:
            self._error = error
        self._waiting.release()

    def _wait(self) -> None:
        self._waiting.release()
        self._go.acquire()
        if self._is_closed:
            raise Closed

    def _until_it_waits(self) -> None:
        self._waiting.acquire()
        if self._error:
            raise self._error

    def step(self) -> None:
        """Let the loop run until it asks for the next batch; raises what the loop raises."""
        self._go.release()
        self._until_it_waits()

    def close(self) -> None:
        """End the loop, and wait until it has ended."""
        self._is_closed = True
        self._go.release()
        self._thread.join()


def alternate(
    steps: dict[str, Callable[[], object]], rounds: int, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Seconds of each of `steps` in each of `rounds` rounds, in which every one is called once.

    Each round begins with another of them, so that none is always the first. `warm_up` rounds go before, uncounted.
    """
    names, seconds = list(steps), {name: [] for name in steps}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[warm_up:] for name, values in seconds.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles of `values`, at least one."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def ratios(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Median and quartiles, over the rounds, of what each took as a multiple of `reference` in the same round."""
    return {
        name: spread([mine / other for mine, other in zip(values, seconds[reference])])
        for name, values in seconds.items()
    }


def progress(text: str, started: float = time.perf_counter()) -> None:
    """One line on stderr: what is measured next, and after how many seconds."""
    print(f"{time.perf_counter() - started:4.0f} s: {text}", file=sys.stderr, flush=True)
