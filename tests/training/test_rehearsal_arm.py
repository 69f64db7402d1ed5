"""The two arms that share a first stage with another: the baseline with rehearsal, and the 51% alone."""

import os
import shutil
import signal

import pytest
import torch

from k1.checkpoints import RESUME_FORMAT, load_checkpoint
from k1.experiment import ARM_FILES
from k1.files import read_content
from tests.conftest import assert_one_clear_line, run_script, status_of, train
from tests.training.test_resume import start_and_heed, wait_for

pytestmark = pytest.mark.slow

FIRST, SECOND, FINAL = ARM_FILES["baseline_rehearsal"]


def train_arm(folder, corpora, *flags):
    return train("train_baseline_all.py", folder, corpora, "--max_steps", 20, "--rehearsal", 0.25, *flags)


@pytest.fixture(scope="module")
def rehearsing(trained, tmp_path_factory):
    """A folder in which the baseline with rehearsal was trained, its first stage included."""
    folder = tmp_path_factory.mktemp("arm")
    finished = train_arm(folder, trained.corpora)
    assert finished.returncode == 0 and finished.stdout.count("after stage") == 3, finished.stderr
    return folder


def test_its_first_stage_is_the_baselines_and_the_later_ones_rehearse(rehearsing, trained):
    assert sorted(path.name for path in rehearsing.glob("*.pt")) == sorted(ARM_FILES["baseline_rehearsal"])
    stages = [load_checkpoint(rehearsing / file, "baseline") for file in (FIRST, SECOND, FINAL)]
    assert [checkpoint.arguments["rehearsal"] for checkpoint in stages] == [0.0, 0.25, 0.25]
    assert [checkpoint.arm for checkpoint in stages] == ["baseline", "baseline_rehearsal", "baseline_rehearsal"]
    # At first the model is the one that wrote.
    assert abs(stages[2].history[0]["divergence"]) < 1e-4 < 1e-3 < stages[2].history[-1]["divergence"]
    plain = [load_checkpoint(trained.models_dir / f"baseline_dataset{stage}.pt").model for stage in (1, 2)]
    assert all(torch.equal(value, plain[0][name]) for name, value in stages[0].model.items())
    assert any(not torch.equal(value, plain[1][name]) for name, value in stages[1].model.items())


@pytest.mark.parametrize(
    ("arm", "number", "status"), [("baseline", signal.SIGINT, 130), ("baseline_rehearsal", signal.SIGTERM, 143)]
)
def test_a_signal_saves_first_and_the_same_command_resumes(trained, rehearsing, tmp_path, arm, number, status):
    models_dir, files = tmp_path / "models", [tmp_path / "stdout", tmp_path / "stderr"]
    flags = [
        "--dataset_names", *map(str, trained.corpora), "--preset", "smoke", "--threads", "1", "--models_dir",
        str(models_dir), "--max_steps", "20", *(["--rehearsal", "0.25"] if arm == "baseline_rehearsal" else []),
    ]  # fmt: skip
    models_dir.mkdir()
    shutil.copy(trained.models_dir / "baseline_dataset1.pt", models_dir)
    process = start_and_heed("train_baseline_all.py", [*flags, "--save_steps", "1"], *files)
    resume = models_dir / f"{arm}_final.resume.pt"
    wait_for(lambda: "stage 3:" in files[1].read_text() and resume.exists())
    os.kill(process.pid, number)
    assert status_of(process) == status
    stderr = files[1].read_text()
    assert "Traceback" not in stderr and stderr.splitlines()[-1].startswith("error: ")
    if "stopped at step" in stderr:
        assert f"resumes from {resume}" in stderr
    step = read_content(resume, "resume file", RESUME_FORMAT, "")["step"]
    finished = run_script("train_baseline_all.py", *flags)
    assert finished.returncode == 0, finished.stderr
    assert f"resuming from {resume}, step {step} of 20" in finished.stderr and not resume.exists()
    undisturbed = trained.models_dir if arm == "baseline" else rehearsing
    for file in ARM_FILES[arm]:
        expected, found = (load_checkpoint(folder / file).model for folder in (undisturbed, models_dir))
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_never_replaces_a_file_unasked_and_never_the_first_stage(rehearsing, trained, tmp_path):
    folder = shutil.copytree(rehearsing, tmp_path / "models")
    before = (folder / FIRST).read_bytes()
    other = "--rehearsal", 0.5
    refused = train_arm(folder, trained.corpora, *other)
    assert refused.returncode == 1 and f"{SECOND} exists already and has rehearsal 0.25, not 0.5; add" in refused.stderr
    refused = train_arm(folder, trained.corpora, *other, "--batch_size", 4)
    assert_one_clear_line(refused, 1, FIRST, "batch_size 8, not 4; add --overwrite")
    finished = train_arm(folder, trained.corpora, *other, "--overwrite")
    assert finished.returncode == 0 and "stage 1:" not in finished.stderr and (folder / FIRST).read_bytes() == before
    assert load_checkpoint(folder / FINAL).arguments["rehearsal"] == 0.5


def test_the_51_percent_alone_continue_k1s_first_stage_into_files_of_their_own(trained, tmp_path):
    shutil.copy(trained.models_dir / "k1_dataset1.pt", tmp_path)
    for stage in (2, 3):
        corpus, flags = trained.corpora[stage - 1], ["--max_steps", 20, "--rehearsal", 0]
        finished = train(f"train_k1_dataset{stage}.py", tmp_path, [corpus], *flags)
        assert finished.returncode == 0 and f"51% alone after stage {stage}" in finished.stdout, finished.stderr
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == sorted(ARM_FILES["sparse"])
    second, final = (load_checkpoint(tmp_path / file, "k1") for file in ARM_FILES["sparse"][1:])
    assert final.arm == "sparse" and final.arguments["rehearsal"] == 0 and final.arguments["update_fraction"] == 0.51
    # Nothing is written for a stage that does not rehearse.
    assert second.written == [] and final.predicted_forgetting == []
    plain = load_checkpoint(trained.models_dir / "k1_final.pt", "k1").model
    assert any(not torch.equal(value, plain[name]) for name, value in final.model.items())
