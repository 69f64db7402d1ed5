"""A training whose numbers overflow ends with one line and leaves the old checkpoint as it is."""

import pytest

from tests.conftest import assert_one_clear_line, run_script


@pytest.mark.parametrize(("stage", "max_steps"), [(1, 1), (2, 1), (2, 20)])
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
    # A training that diverged at its last step may leave a resume file, which --overwrite removes.
    left = {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith((".lock", "resume.pt"))
    }
    assert left == files
