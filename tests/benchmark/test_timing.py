"""Things take turns, and their times are compared within a round."""

import statistics

import pytest

from k1.benchmark import timing
from k1.benchmark.timing import WARM_UP, alternate, ratio, spread


def test_each_takes_one_turn_a_round_and_each_round_begins_with_another():
    called = []
    seconds = alternate({name: lambda name=name: called.append(name) for name in "abc"}, rounds=4)
    assert "".join(called) == "abcbcacababcbcacab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_neither_the_first_rounds_nor_what_prepares_a_turn_are_counted(monkeypatch):
    now = [0]

    def take(seconds):
        now[0] += seconds

    lengths = iter([100] * WARM_UP + [3, 4])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert alternate({"a": lambda: take(next(lengths))}, rounds=2, prepare=lambda: take(50)) == {"a": [3, 4]}


def test_spreads_have_the_median_and_the_quartiles_and_ratios_are_of_the_same_round():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert spread(values) == {"low": 2.0, "median": statistics.median(values), "high": 4.0}
    assert ratio([7.0], [1.0]) == {"low": 7.0, "median": 7.0, "high": 7.0}
    assert ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == {"low": 2.0, "median": 2.0, "high": 2.0}
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])
