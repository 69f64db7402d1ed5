"""A training whose numbers overflow ends with one line, and leaves nothing that the next start has to clear away."""

import pytest

from k1.checkpoints import load_checkpoint
from tests.conftest import assert_one_clear_line, run_script

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("stage", "max_steps"), [(1, 1), (2, 20)])
def test_divergence_stops_with_a_clear_line_and_leaves_the_old_checkpoint(trained, tmp_path, stage, max_steps):
    (tmp_path / "k1_dataset1.pt").write_bytes((trained.models_dir / "k1_dataset1.pt").read_bytes())
    (tmp_path / "k1_dataset2.pt").write_bytes(b"an older result")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    finished = run_script(
        f"train_k1_dataset{stage}.py", "--dataset_name", trained.corpora[stage - 1], "--models_dir", tmp_path,
        "--overwrite", "--preset", "smoke", "--learning_rate", "1e30", "--weight_decay", 0, "--max_steps", max_steps,
        "--threads", 1,
    )  # fmt: skip
    assert_one_clear_line(finished, 1, "diverged", "lower --learning_rate")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".lock"} == files


def test_after_a_divergence_at_the_last_step_a_lower_learning_rate_is_all_it_takes(trained, tmp_path):
    flags = ["--models_dir", tmp_path, "--preset", "smoke", "--max_steps", 1, "--threads", 1]
    flags += ["--dataset_names", *trained.corpora]
    diverged = run_script("train_baseline_all.py", *flags, "--learning_rate", "1e30", "--weight_decay", 0)
    assert_one_clear_line(diverged, 1, "diverged at step 1 ", "lower --learning_rate from 1e+30")
    finished = run_script("train_baseline_all.py", *flags)
    assert finished.status == 0, finished.stderr
    assert load_checkpoint(tmp_path / "baseline_dataset1.pt").history[-1]["step"] == 1
