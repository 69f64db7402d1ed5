"""Contestants take turns, one step each, and their times are compared within a round."""

import statistics

import pytest

from k1.benchmark import pacing
from k1.benchmark.pacing import WARM_UP, Turnstile, alternate, ratios, spread


def test_each_takes_one_step_a_round_and_each_round_begins_with_another():
    called = []
    steps = {name: lambda name=name: called.append(name) for name in "abc"}
    seconds = alternate(steps, rounds=4)
    rounds = ["".join(called[start : start + 3]) for start in range(0, len(called), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca", "cab"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_the_first_rounds_are_not_counted(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: next(now) ** 2)
    # Calls begin and end at 0, 1, 4, 9, ...: step number n takes 4n + 1.
    assert alternate({"a": lambda: None}, rounds=2) == {"a": [4 * WARM_UP + 1, 4 * (WARM_UP + 1) + 1]}


def test_a_loop_goes_on_by_one_batch_at_each_turn_and_ends_when_it_is_closed():
    begun, ended = [], []

    def loop(wait):
        try:
            for number in range(100):
                wait()
                begun.append(number)
        finally:
            ended.append(True)

    turnstile = Turnstile(loop)
    assert begun == []
    for expected in ([0], [0, 1], [0, 1, 2]):
        turnstile.step()
        assert begun == expected
    turnstile.close()
    assert begun == [0, 1, 2] and ended


@pytest.mark.parametrize("batches", [0, 2])
def test_what_a_loop_raises_comes_out_of_the_step(batches):
    def loop(wait):
        for _ in range(batches):
            wait()
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        turnstile = Turnstile(loop)
        for _ in range(batches):
            turnstile.step()


def test_a_loop_that_ends_by_itself_is_an_error():
    with pytest.raises(RuntimeError, match="ended by itself"):
        Turnstile(lambda wait: None)


def test_spread_has_the_median_and_the_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert spread(values) == {"low": 2.0, "median": statistics.median(values), "high": 4.0}
    assert spread([7.0]) == {"low": 7.0, "median": 7.0, "high": 7.0}


def test_ratios_are_of_the_same_round():
    found = ratios({"baseline": [1.0, 10.0, 2.0], "other": [2.0, 20.0, 4.0]}, "baseline")
    assert found["other"] == {"low": 2.0, "median": 2.0, "high": 2.0}
    assert found["baseline"]["median"] == 1.0
