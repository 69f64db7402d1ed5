"""The learning-rate study runs the scripts, records each run, and goes on where it was stopped."""

import json

from conftest import assert_one_clear_line, run_script

from k1.plots import frontier_point


def test_a_small_study(tmp_path):
    flags = [
        "--preset", "smoke", "--methods", "baseline", "k1", "--learning_rates", 1e-3, 1e-2,
        "--later_learning_rates", 1e-2, "--out", tmp_path,
    ]  # fmt: skip
    first = run_script("-m k1.study", *flags)
    assert first.status == 0, first.stderr
    recorded = json.loads((tmp_path / "results.json").read_text())
    results = recorded["runs"]
    assert set(results) == {
        f"{method}-{run}"
        for method in ("baseline", "k1")
        for run in ("stage1-0.001", "stage1-0.01", "stage23-0.01-after-0.01")
    }
    for method in ("baseline", "k1"):
        assert (
            results[f"{method}-stage1-0.01"]["mean_final_loss"] < results[f"{method}-stage1-0.001"]["mean_final_loss"]
        )
        later = results[f"{method}-stage23-0.01-after-0.01"]
        assert later["own_loss"]["wikitext"] == results[f"{method}-stage1-0.01"]["own_loss"]["wikitext"]
    assert first.stdout.count("0.01*") == 4
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")

    # A recorded run is not repeated; one that is missing is.
    learned = results["k1-stage1-0.001"]["mean_final_loss"]
    results["k1-stage1-0.001"]["mean_final_loss"] = 9.999
    del results["k1-stage23-0.01-after-0.01"]
    (tmp_path / "results.json").write_text(json.dumps(recorded))
    second = run_script("-m k1.study", *flags)
    assert "9.999" in second.stdout
    assert "k1-stage23-0.01-after-0.01" in json.loads((tmp_path / "results.json").read_text())["runs"]
    shown = f"{learned:.3f}"
    assert second.stdout.split() == [word if word != shown else "9.999" for word in first.stdout.split()]


def test_a_failed_run_is_shown_and_not_chosen(tmp_path):
    finished = run_script(
        "-m k1.study", "--preset", "smoke", "--methods", "baseline", "--learning_rates", 1e30, 1e-2,
        "--later_learning_rates", 1e-2, "--out", tmp_path,
    )  # fmt: skip
    assert finished.status == 0, finished.stderr
    assert "diverged" in finished.stdout and "0.01*" in finished.stdout
    assert (
        "diverged at step"
        in json.loads((tmp_path / "results.json").read_text())["runs"]["baseline-stage1-1e+30"]["failed"]
    )


def test_results_of_other_settings_are_refused(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"settings": {"preset": "full"}, "runs": {}}))
    assert_one_clear_line(
        run_script("-m k1.study", "--out", tmp_path), 1, "was recorded with another hidden_size", "another --out"
    )
    (tmp_path / "results.json").write_text("[]")
    assert_one_clear_line(run_script("-m k1.study", "--out", tmp_path), 1, "cannot be read")


def test_the_frontier_shows_learning_and_forgetting():
    record = {"own_loss": {"a": 4.0, "b": 3.0, "c": 2.0}, "final_loss": {"a": 5.0, "b": 3.5, "c": 2.0}}
    assert frontier_point(record) == (2.5, 0.75)
