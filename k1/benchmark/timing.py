"""Things take turns in one process, so that what else slows the machine down slows all of them down."""

import statistics
import sys
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

WARM_UP = 2  # rounds that are not counted: they allocate the optimizer's state
Name = TypeVar("Name", bound=Hashable)
Spread = dict[str, float]


def alternate(
    things: dict[Name, Callable[[], object]],
    rounds: int,
    warm_up: int = WARM_UP,
    prepare: Callable[[], object] = lambda: None,
) -> dict[Name, list[float]]:
    """Seconds of each of `things` in each of `rounds` rounds, in which every one is called once.

    Each round begins with another of them, so that none is always the first. `warm_up`
    rounds go before, uncounted; `prepare` is called before each thing, untimed.
    """
    names, seconds = list(things), {name: [] for name in things}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            prepare()
            started = time.perf_counter()
            things[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[warm_up:] for name, values in seconds.items()}


def spread(values: list[float]) -> Spread:
    """Median and quartiles of `values`, at least one."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def ratio(values: list[float], reference: list[float]) -> Spread:
    """Median and quartiles of `values` as multiples of `reference` in the same round."""
    return spread([value / other for value, other in zip(values, reference, strict=True)])


def progress(text: str, started: float = time.perf_counter()) -> None:
    """One line on stderr: what is measured next, and after how many seconds."""
    print(f"{time.perf_counter() - started:4.0f} s: {text}", file=sys.stderr, flush=True)
