"""The two arms that share a first stage with another: the baseline with rehearsal, and the 51% alone."""

import shutil
import signal

import pytest
import torch

from k1.checkpoints.storage import load_checkpoint
from k1.experiment import ARM_FILES
from tests.conftest import assert_one_clear_line, run_script
from tests.training.test_resume import start_and_heed, wait_for

pytestmark = pytest.mark.slow

FIRST, SECOND, FINAL = ARM_FILES["baseline_rehearsal"]


def flags_of(folder, corpora, *flags):
    common = ["--preset", "smoke", "--max_steps", 20, "--threads", 1, "--rehearsal", 0.25, "--models_dir", folder]
    return [str(flag) for flag in (*common, "--dataset_names", *corpora, *flags)]


def train_arm(folder, corpora, *flags):
    return run_script("train_baseline_all.py", *flags_of(folder, corpora, *flags))


@pytest.fixture(scope="module")
def arm(trained, tmp_path_factory):
    """A folder with the baseline's first stage, and the arm trained from it."""
    folder = tmp_path_factory.mktemp("arm")
    shutil.copy(trained.models_dir / FIRST, folder)
    finished = train_arm(folder, trained.corpora)
    assert finished.status == 0, finished.stderr
    return folder, finished


def test_it_trains_the_later_stages_alone(arm, trained):
    folder, finished = arm
    assert sorted(path.name for path in folder.glob("*.pt")) == sorted(ARM_FILES["baseline_rehearsal"])
    assert (folder / FIRST).read_bytes() == (trained.models_dir / FIRST).read_bytes()
    assert "stage 1:" not in finished.stderr and "after stage 3" in finished.stdout
    stages = [load_checkpoint(folder / file, "baseline") for file in (FIRST, SECOND, FINAL)]
    assert [checkpoint.arguments["rehearsal"] for checkpoint in stages] == [0.0, 0.25, 0.25]
    assert [checkpoint.arm for checkpoint in stages] == ["baseline", "baseline_rehearsal", "baseline_rehearsal"]
    # At first the model is the one that wrote.
    assert abs(stages[2].history[0]["divergence"]) < 1e-4 < 1e-3 < stages[2].history[-1]["divergence"]
    plain = load_checkpoint(trained.models_dir / "baseline_dataset2.pt", "baseline").model
    assert any(not torch.equal(value, plain[name]) for name, value in stages[1].model.items())


def test_without_a_first_stage_it_trains_it_to_the_same_bits(arm, trained, tmp_path):
    finished = train_arm(tmp_path, trained.corpora)
    assert finished.status == 0 and "stage 1:" in finished.stderr, finished.stderr
    for file in (FIRST, FINAL):
        ours, theirs = (load_checkpoint(folder / file, "baseline").model for folder in (tmp_path, arm[0]))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_stopped_training_resumes_to_the_same_bits(arm, trained, tmp_path):
    models_dir, files = tmp_path / "models", [tmp_path / "stdout", tmp_path / "stderr"]
    models_dir.mkdir()
    shutil.copy(trained.models_dir / FIRST, models_dir)
    resume = models_dir / "baseline_rehearsal_final.resume.pt"
    process = start_and_heed("train_baseline_all.py", flags_of(models_dir, trained.corpora, "--save_steps", 1), *files)
    wait_for(lambda: (models_dir / SECOND).exists() and resume.exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    finished = train_arm(models_dir, trained.corpora)
    assert finished.status == 0 and f"resuming from {resume}" in finished.stderr, finished.stderr
    for file in (SECOND, FINAL):
        ours, theirs = (load_checkpoint(folder / file, "baseline").model for folder in (models_dir, arm[0]))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_it_never_replaces_a_file_unasked_and_never_the_first_stage(arm, trained, tmp_path):
    folder = shutil.copytree(arm[0], tmp_path / "models")
    before = (folder / FIRST).read_bytes()
    other = "--rehearsal", 0.5
    refused = train_arm(folder, trained.corpora, *other)
    assert_one_clear_line(refused, 1, SECOND, "rehearsal 0.25, not 0.5; add --overwrite")
    assert train_arm(folder, trained.corpora, *other, "--overwrite").status == 0
    assert (folder / FIRST).read_bytes() == before
    assert load_checkpoint(folder / FINAL).arguments["rehearsal"] == 0.5


def test_a_first_stage_of_other_settings_is_refused(trained, tmp_path):
    shutil.copy(trained.models_dir / FIRST, tmp_path)
    finished = train_arm(tmp_path, trained.corpora, "--batch_size", 4)
    assert_one_clear_line(finished, 1, FIRST, "batch_size 8, not 4", "train_baseline_all.py with --overwrite first")


def test_the_51_percent_alone_continue_k1s_first_stage_into_files_of_their_own(trained, tmp_path):
    shutil.copy(trained.models_dir / "k1_dataset1.pt", tmp_path)
    flags = ["--models_dir", tmp_path, "--max_steps", 20, "--threads", 1, "--rehearsal", 0]
    for stage in (2, 3):
        finished = run_script(f"train_k1_dataset{stage}.py", "--dataset_name", trained.corpora[stage - 1], *flags)
        assert finished.status == 0 and f"51% alone after stage {stage}" in finished.stdout, finished.stderr
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == sorted(ARM_FILES["sparse"])
    second, final = (load_checkpoint(tmp_path / file, "k1") for file in ARM_FILES["sparse"][1:])
    assert final.arm == "sparse" and final.arguments["rehearsal"] == 0 and final.arguments["update_fraction"] == 0.51
    # Nothing is written for a stage that does not rehearse.
    assert second.written == [] and final.predicted_forgetting == []
    plain = load_checkpoint(trained.models_dir / "k1_final.pt", "k1").model
    assert any(not torch.equal(value, plain[name]) for name, value in final.model.items())


def test_without_the_stage_before_it_says_which_command_writes_it(trained, tmp_path):
    shutil.copy(trained.models_dir / "k1_dataset1.pt", tmp_path)
    finished = run_script("train_k1_dataset3.py", "--rehearsal", 0, "--models_dir", tmp_path)
    remedy = "run train_k1_dataset2.py --rehearsal 0 first"
    assert_one_clear_line(finished, 1, f"sparse_dataset2.pt does not exist; {remedy}")
