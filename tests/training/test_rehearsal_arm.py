"""The baseline with rehearsal: an arm of its own that goes on from the baseline's first stage."""

import shutil

import pytest
import torch

from k1.checkpoints.storage import load_checkpoint
from k1.presets import ARM_FILES
from tests.conftest import assert_one_clear_line, run_script

FIRST, SECOND, FINAL = ARM_FILES["baseline_rehearsal"]


def train_arm(folder, corpora, *flags):
    return run_script(
        "train_baseline_all.py", "--preset", "smoke", "--max_steps", 20, "--threads", 1, "--rehearsal", 0.25,
        "--models_dir", folder, "--dataset_names", *corpora, *flags,
    )  # fmt: skip


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
    assert (folder / FIRST).read_bytes() == (trained.models_dir / FIRST).read_bytes()
    assert "stage 1:" not in finished.stderr and "after stage 3" in finished.stdout
    stages = [load_checkpoint(folder / file, "baseline") for file in (FIRST, SECOND, FINAL)]
    assert [checkpoint.arguments["rehearsal"] for checkpoint in stages] == [0.0, 0.25, 0.25]
    # At first the model is the one that wrote.
    assert abs(stages[2].history[0]["divergence"]) < 1e-5 < 1e-3 < stages[2].history[-1]["divergence"]
    plain = load_checkpoint(trained.models_dir / "baseline_dataset2.pt", "baseline").model
    assert any(not torch.equal(value, plain[name]) for name, value in stages[1].model.items())


def test_without_a_first_stage_it_trains_it_to_the_same_bits(arm, trained, tmp_path):
    finished = train_arm(tmp_path, trained.corpora)
    assert finished.status == 0 and "stage 1:" in finished.stderr, finished.stderr
    for file in (FIRST, FINAL):
        ours, theirs = (load_checkpoint(folder / file, "baseline").model for folder in (tmp_path, arm[0]))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_it_never_replaces_a_file_unasked_and_never_the_first_stage(arm, trained):
    folder, _ = arm
    before = (folder / FIRST).read_bytes()
    assert_one_clear_line(train_arm(folder, trained.corpora), 1, SECOND, "exists already; add --overwrite")
    assert train_arm(folder, trained.corpora, "--overwrite").status == 0
    assert (folder / FIRST).read_bytes() == before


def test_a_first_stage_of_other_settings_is_refused(trained, tmp_path):
    shutil.copy(trained.models_dir / FIRST, tmp_path)
    finished = train_arm(tmp_path, trained.corpora, "--batch_size", 4)
    assert_one_clear_line(finished, 1, FIRST, "batch_size 8, not 4", "train_baseline_all.py with --overwrite first")
