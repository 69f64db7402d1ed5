"""A measurement in a process of its own: its answer, its errors, and its end."""

import os
import signal

import pytest

from k1.benchmark.processes import measure
from k1.errors import K1Error


def double(value):
    return os.getpid(), 2 * value


def fail():
    raise K1Error("cannot be measured")


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_answer_comes_from_another_process():
    pid, value = measure(double, 21)
    assert value == 42 and pid != os.getpid()


def test_an_error_comes_out_here():
    with pytest.raises(K1Error, match="^cannot be measured$"):
        measure(fail)


def test_a_process_that_is_killed_is_named():
    with pytest.raises(K1Error, match="measuring be_killed ended with status -9, for lack of memory perhaps"):
        measure(be_killed)
