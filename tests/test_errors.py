"""Ctrl-C and SIGTERM: they never cut a write short, are never lost, and are never told as another error."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from k1.errors import Interruption, K1Error, Terminated, command, signals_wait
from k1.files import read_content, write_atomically, write_content
from tests.conftest import ROOT

RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def heeded():
    """The handlers of a script, also if the tests run in the background."""
    before = {number: signal.signal(number, handler) for number, handler in Interruption.HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_waits_until_a_file_is_written(tmp_path, number):
    def write(file):
        file.write(b"one ")
        signal.raise_signal(number)
        file.write(b"two")

    with pytest.raises(RAISED[number]):
        write_atomically(tmp_path / "file", write)
    assert (tmp_path / "file").read_bytes() == b"one two" and len(list(tmp_path.iterdir())) == 1
    assert signal.getsignal(number) is Interruption.HANDLERS[number]


@pytest.mark.parametrize("number", RAISED)
def test_a_checkpoint_in_the_midst_of_which_a_signal_comes_is_whole(tmp_path, number, monkeypatch):
    """Without `signals_wait` torch makes a RuntimeError of it, which is taken for a full disk."""
    content = {"format": 1, "weights": torch.zeros(300_000)}
    path, save = tmp_path / "checkpoint.pt", torch.save

    def interrupted_save(values, file):
        class File:
            def write(self, data):
                signal.raise_signal(number)
                return file.write(data)

            def flush(self):
                file.flush()

        save(values, File())

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(RAISED[number]):
        write_content(path, content)
    assert torch.equal(read_content(path, "checkpoint", 1, "")["weights"], content["weights"])
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_write_is_told_before_a_signal():
    with pytest.raises(ValueError, match="full"), signals_wait():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("full")


def test_inside_training_a_signal_that_waited_for_a_write_is_noted(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="stopped"), Interruption() as interruption:
        write_atomically(tmp_path / "file", lambda file: signal.raise_signal(signal.SIGINT))
        assert interruption.requested == signal.SIGINT
        interruption.end("stopped")


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_that_nobody_asked_for_any_more_is_not_lost(number):
    with pytest.raises(RAISED[number]), Interruption() as interruption:
        signal.raise_signal(number)
        assert interruption.requested == number


@pytest.mark.parametrize("other", [RuntimeError("release unlocked lock"), K1Error("cannot write")], ids=["torch", "k1"])
@pytest.mark.parametrize("number", RAISED)
def test_a_signal_of_which_a_library_makes_another_error_is_told_as_a_signal(capsys, number, other):
    @command
    def main():
        try:
            signal.raise_signal(number)
        except BaseException:
            try:
                raise LookupError
            except LookupError:
                raise other

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == STATUS[number]
    assert capsys.readouterr().err == f"error: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_below_stdout_is_one_clear_line():
    program = "from k1.errors import command\n@command\ndef main():\n    print('results')\nmain()"
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: cannot write the results (No space left on device)"), finished.stderr
    assert len(finished.stderr.splitlines()) == 1
