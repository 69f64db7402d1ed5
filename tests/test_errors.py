"""Ctrl-C and SIGTERM, which never cut a write short and are never lost, and full disks."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

from k1.errors import Interruption, K1Error, Terminated, command
from k1.files import read_content, write_atomically, write_content, writing
from tests.conftest import ROOT, assert_one_clear_line, run_script

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
def test_a_checkpoint_in_the_midst_of_which_a_signal_comes_is_whole(tmp_path, number, monkeypatch):
    """If the signal does not wait, torch makes a RuntimeError of it, which is taken for a full disk."""
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
    assert list(tmp_path.iterdir()) == [path] and signal.getsignal(number) is Interruption.HANDLERS[number]


def test_an_error_of_the_write_is_told_before_a_signal():
    with pytest.raises(ValueError, match="full"), Interruption(waits=True):
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


PROGRAM = """
import sys
from tqdm import tqdm
from k1.errors import command
@command
def main():
    for _ in tqdm(range(2), file=sys.stderr, mininterval=0):
        print("progress", file=sys.stderr)
    print("results")
main()
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_below_stdout_is_one_clear_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PROGRAM]
        finished = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert finished.returncode == 1
    error = finished.stderr.splitlines()[-1]
    assert error.startswith("error: cannot write the results (No space left on device); free some space and repeat")


@pytest.mark.parametrize(("closed", "stdout"), [(">&-", ""), ("2>&-", "results\n")])
def test_a_closed_stream_ends_nothing(closed, stdout):
    command = f'exec "{sys.executable}" -c "$0" {closed}'
    finished = subprocess.run(["sh", "-c", command, PROGRAM], capture_output=True, text=True, cwd=ROOT)
    assert (finished.returncode, finished.stdout) == (0, stdout) and "Traceback" not in finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", ["-m k1.report", "-m k1.study.pretrained", "train_k1_dataset1.py"])
def test_a_package_that_is_not_installed_is_one_clear_line(tmp_path, target):
    for name in ("datasets", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module', name={name!r})")
    finished = run_script(target, "--help", environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert_one_clear_line(finished, 1, " is missing; run: pip install 'k1[experiment]'")


FULL = errno.ENOSPC, "No space left on device"
MORE = "free some space or choose another place"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(*FULL), MORE),
        (SafetensorError(f"I/O error: {FULL[1]} (os error 28)"), MORE),
        (PermissionError(errno.EACCES, "Permission denied"), "choose another place"),
    ],
)
def test_free_some_space_is_said_of_a_full_disk_alone(tmp_path, error, advice):
    (tmp_path / "file").write_text("old")
    with pytest.raises(K1Error, match=rf"\); {advice}$"), writing(tmp_path / "file"):
        raise error
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
