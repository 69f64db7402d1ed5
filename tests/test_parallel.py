"""Several processes under torchrun: the losses of one process, the same bits in each, one clear line when one dies."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from k1 import parallel
from k1.checkpoints import load_checkpoint
from k1.errors import K1Error
from k1.experiment import FILES
from tests.conftest import PATIENCE, ROOT, run_script, run_two

pytestmark = [pytest.mark.xdist_group("parallel"), pytest.mark.slow]


def torchrun(script: str, *flags: object) -> subprocess.Popen:
    """Start a script with two processes on this machine."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / script),
    ]  # fmt: skip
    return subprocess.Popen(
        [*command, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr and "error:" not in stderr
    return stdout, stderr


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory, corpora):
    """K-1's first two stages, trained by two processes; the folder and what was printed."""
    folder = tmp_path_factory.mktemp("parallel")
    common = ["--preset", "smoke", "--models_dir", folder, "--threads", 1, "--max_steps", 20]
    printed = [
        finish(torchrun(f"train_k1_dataset{stage}.py", "--dataset_name", corpora[stage - 1], *common))
        for stage in (1, 2)
    ]
    return folder, printed


@pytest.mark.parametrize(("stage", "tolerance"), [(1, 1e-2), (2, 0.1)])
def test_the_losses_agree_with_those_of_one_process(trained, trained_by_two, stage, tolerance):
    """To rounding at first; later steps carry the difference on, and so do the words that stage 2 rehearses."""
    folders = trained.models_dir, trained_by_two[0]
    one, two = (load_checkpoint(folder / FILES["k1"][stage - 1], "k1") for folder in folders)
    losses = [[entry["loss"] for entry in checkpoint.history] for checkpoint in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 20
    assert losses[1] == pytest.approx(losses[0], abs=tolerance)
    assert losses[1][0] == pytest.approx(losses[0][0], abs=1e-4 if stage == 1 else 1e-2)
    assert [entry["updated_fraction"] for entry in two.history] == pytest.approx([0.51] * 20, abs=0.01)
    for name, splits in one.evaluations[-1].items():
        for split, scores in splits.items():
            other = two.evaluations[-1][name][split]
            assert other["loss"] == pytest.approx(scores["loss"], abs=tolerance)
            assert other["tokens"] == scores["tokens"]


def test_one_process_prints_and_nothing_is_left_over(trained_by_two):
    folder, printed = trained_by_two
    assert [re.findall("^K-1 after stage .", stdout, re.M) for stdout, _ in printed] == [
        ["K-1 after stage 1"], ["K-1 after stage 2"],
    ]  # fmt: skip
    assert {path.name for path in folder.iterdir() if not path.name.endswith(".lock")} == {*FILES["k1"][:2]}


def workers_of(process: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id of the training processes that a torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(item[5:]): child for item in environment if item.startswith(b"RANK=")}
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the processes in /proc")
def test_a_process_that_dies_ends_the_run_with_a_clear_line_and_a_good_resume_file(trained, tmp_path):
    flags = ["--dataset_name", trained.corpora[0], "--preset", "smoke", "--models_dir", tmp_path, "--threads", 1]
    process = torchrun("train_k1_dataset1.py", *flags, "--max_steps", 3000, "--save_steps", 1)
    resume = tmp_path / "k1_dataset1.resume.pt"
    end = time.monotonic() + PATIENCE
    while not resume.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    lines = [line for line in stderr.splitlines() if line.startswith("error: process 0: ")]
    assert len(lines) == 1
    assert "another process of the training ended" in lines[0] or "stopped at step" in lines[0]
    content = torch.load(resume, weights_only=True)
    assert content["identity"]["processes"] == 2 and 1 <= content["step"] < 3000
    refused = run_script("train_k1_dataset1.py", *flags, "--max_steps", 3000)
    assert refused.returncode == 1 and "processes 2, not 1" in refused.stderr


def agree(rank: int, port: int) -> None:
    """One of two processes: copies and compares."""
    os.environ.update(
        TORCHELASTIC_RUN_ID="test", WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    parallel.join_processes()
    column_major = torch.full((2, 3), float(rank)).T
    parallel.copy_from_main_process(column_major)
    assert column_major.eq(0).all()
    assert parallel.any_process(rank == 1) and not parallel.any_process(False)
    parallel.require_identical("numbers", {"a": torch.tensor([1.0])})
    with pytest.raises(K1Error, match="do not hold the same numbers"):
        parallel.require_identical("numbers", {"a": torch.tensor([1.0 + rank])})
    # A process that is gone while the other still listens to it would make that one abort.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_copies_and_comparisons(tmp_path):
    run_two(agree, tmp_path)
