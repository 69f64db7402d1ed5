"""The report: its figures are those of the checkpoints, and unfair comparisons are refused."""

import copy

import pytest

from k1.checkpoints import load_checkpoint, save_checkpoint
from k1.errors import K1Error
from k1.experiment import ARM_FILES, FILES
from k1.report.comparison import (
    MAX_FORGETTING_PERCENT,
    MIN_QUALITY_KEPT,
    datasets_of,
    judge,
    load_runs,
    report_of,
    require_comparable,
)
from k1.report.tables import SCORES, format_report
from tests.conftest import assert_one_clear_line, run_script


@pytest.fixture(scope="module")
def results(written):
    return written.results


@pytest.fixture(scope="module")
def runs(trained):
    return load_runs(trained.models_dir)


def test_the_json_has_the_numbers_of_the_checkpoints(runs, results):
    for arm, (_, dataset2, final) in runs.items():
        names = [dataset["name"] for dataset in final.datasets]
        first = final.evaluations[0][names[0]]["test"]["accuracy"]
        end = final.evaluations[-1][names[0]]["test"]["accuracy"]
        result = results["models"][arm]
        assert result["forgetting_percent"][names[0]] == pytest.approx(100 * (first - end) / first)
        assert result["final"][names[2]] == final.evaluations[-1][names[2]]["test"]
        # The whole matrix but for datasets more than one stage ahead.
        assert [[cell is not None for cell in row] for row in result["accuracy_matrix"]] == [
            [True, True, True], [True, True, False], [True, True, True], [True, True, True],
        ]  # fmt: skip
        assert results["parameters"] == sum(value.numel() for value in dataset2.model.values())
    assert results["models"]["k1"]["updated_fraction"] == pytest.approx(0.51, abs=0.01)
    assert [len(found) for found in results["models"]["k1"]["predicted_forgetting"]] == [0, 1, 2]
    for *earlier, last in (result["generation"].values() for result in results["models"].values()):
        # Nothing follows the last dataset.
        assert all(values["own"] == values["final"] and values["interval"] == [1, 1] for values in last.values())
        assert all(scores["fluency"]["own"] != scores["fluency"]["final"] for scores in earlier)


@pytest.mark.slow
def test_two_reports_are_the_same(trained, runs, written):
    report = report_of(trained.models_dir, runs, datasets_of(runs["k1"][-1]), "cpu")
    assert format_report(report) == written.printed.stdout.rstrip("\n")


def verdict(ours, theirs, average=None, **low):
    """The criteria, given forgetting in %, and if not 1 the lower ends of what is kept of dataset a."""

    def result(forgetting, mean_forgetting):
        kept = {score: {"kept": 1.0, "interval": [low.get(score, 1.0), 1.1]} for score in SCORES}
        return {
            "own": {"a": {}}, "forgetting_percent": {"a": forgetting}, "average_forgetting_percent": mean_forgetting,
            "generation": {"a": kept, "b": {score: {"kept": 1.0, "interval": [1.0, 1.0]} for score in SCORES}},
        }  # fmt: skip

    averages = average or (ours, theirs)
    return judge(result(ours, averages[0]), result(theirs, averages[1]))


def met(*forgetting, **values):
    return [item["met"] for item in verdict(*forgetting, **values)]


def test_criteria_at_their_thresholds():
    assert met(MAX_FORGETTING_PERCENT, MAX_FORGETTING_PERCENT + 0.1) == [True, True, True, True]
    assert met(MAX_FORGETTING_PERCENT + 0.1, MAX_FORGETTING_PERCENT) == [False, False, True, False]
    assert not met(10, 30, average=(30, 20))[3]
    for score in SCORES:
        assert met(10, 30, **{score: MIN_QUALITY_KEPT})[2]
        assert not met(10, 30, **{score: MIN_QUALITY_KEPT - 0.001})[2]
        figures = verdict(10, 30, **{score: 0.5})[2]["figures"]
        assert f"{SCORES[score][0]} 50%" in figures and figures.count("100%") == len(SCORES) - 1


DIFFERENCES = {
    "data": lambda checkpoint: checkpoint.datasets[1].update(fingerprint="0" * 64),
    "seed": lambda checkpoint: checkpoint.arguments.update(seed=7),
    "tokens a step, gradient_accumulation_steps": lambda c: c.arguments.update(gradient_accumulation_steps=2),
    "tokenizer": lambda checkpoint: setattr(checkpoint, "tokenizer", checkpoint.tokenizer + " "),
    "architecture": lambda checkpoint: checkpoint.model_config.update(hidden_size=34),
    "weight_decay": lambda checkpoint: checkpoint.arguments.update(weight_decay=0.3),
    "pretrained model": lambda checkpoint: setattr(checkpoint, "start", {"sha256": "0" * 64}),
}


@pytest.mark.parametrize("named", DIFFERENCES)
def test_runs_that_are_not_comparable_are_refused_by_name(runs, named):
    other = copy.deepcopy(runs["baseline"])
    require_comparable(runs["k1"], other, "baseline")
    DIFFERENCES[named](other[-1])
    with pytest.raises(K1Error, match=f"K-1 and baseline cannot be compared, they differ in: {named};"):
        require_comparable(runs["k1"], other, "baseline")


@pytest.mark.parametrize(
    ("arm", "shared", "free"),
    [("sparse", "update_fraction", "rehearsal"), ("baseline_rehearsal", "rehearsal_weight", "update_fraction")],
)
def test_an_arm_shares_with_k1_what_it_stands_for(runs, arm, shared, free):
    other = copy.deepcopy(runs["k1"])
    other[-1].arguments.update({free: 0.123})
    require_comparable(runs["k1"], other, arm)
    other[-1].arguments.update({shared: 0.123})
    with pytest.raises(K1Error, match=f"they differ in: {shared};"):
        require_comparable(runs["k1"], other, arm)


@pytest.fixture
def links(trained, tmp_path):
    """A folder with the checkpoints of the trained models, each of which may be replaced."""
    for path in trained.models_dir.glob("*.pt"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_other_arms_are_compared_if_they_were_trained(links):
    assert list(load_runs(links)) == ["baseline", "k1"]
    for file, other in zip(ARM_FILES["sparse"][1:], FILES["k1"][1:]):
        (links / file).symlink_to(links / other)
    assert list(load_runs(links)) == ["baseline", "sparse", "k1"]


def test_files_of_two_runs_are_refused_in_one_line(links):
    checkpoint = load_checkpoint(links / "k1_dataset2.pt")
    next(iter(checkpoint.evaluations[0].values()))["test"]["loss"] += 0.1
    (links / "k1_dataset2.pt").unlink()
    save_checkpoint(links / "k1_dataset2.pt", checkpoint)
    assert_one_clear_line(run_script("-m k1.report", "--models_dir", links), 1, "does not continue", "--overwrite")
