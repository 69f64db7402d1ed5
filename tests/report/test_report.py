"""The report: its figures are those of the checkpoints, and unfair comparisons are refused."""

import re
import shutil

import pytest

from k1.checkpoints.storage import load_checkpoint, save_checkpoint
from k1.errors import K1Error
from k1.experiment import ARM_FILES, ARMS, FILES
from k1.report.comparison import load_runs, report_of
from k1.report.criteria import MAX_FORGETTING_PERCENT, MIN_QUALITY_KEPT, judge
from k1.report.tables import SCORES
from k1.report.text import format_report
from tests.conftest import assert_one_clear_line, run_script


@pytest.fixture(scope="module")
def report(written):
    return written.printed.stdout, written.results


def test_the_json_has_the_numbers_of_the_checkpoints(trained, report):
    _, results = report
    for method, files in FILES.items():
        final = load_checkpoint(trained.models_dir / files[-1], method)
        names = [dataset["name"] for dataset in final.datasets]
        first = final.evaluations[0][names[0]]["test"]["accuracy"]
        end = final.evaluations[-1][names[0]]["test"]["accuracy"]
        result = results["models"][method]
        assert result["forgetting_percent"][names[0]] == pytest.approx(100 * (first - end) / first)
        assert result["final"][names[2]] == final.evaluations[-1][names[2]]["test"]
        # The whole matrix but for datasets more than one stage ahead.
        assert [[cell is not None for cell in row] for row in result["accuracy_matrix"]] == [
            [True, True, True], [True, True, False], [True, True, True], [True, True, True],
        ]  # fmt: skip
    assert results["models"]["k1"]["updated_fraction"] == pytest.approx(0.51, abs=0.01)
    weights = load_checkpoint(trained.models_dir / "k1_dataset2.pt", "k1").model
    assert results["parameters"] == sum(value.numel() for value in weights.values())
    assert [len(found) for found in results["models"]["k1"]["predicted_forgetting"]] == [0, 1, 2]


def test_the_text_shows_the_same_figures(report):
    text, results = report
    for label, method in (("K-1", "k1"), ("baseline", "baseline")):
        result = results["models"][method]
        row = re.search(rf"^\| {label} +\|.*\|$", text, re.M).group()
        assert f"{result['average_forgetting_percent']:.1f} |" in row
        for name in result["own"]:
            assert (
                f"{100 * result['own'][name]['accuracy']:.1f} -> {100 * result['final'][name]['accuracy']:.1f}" in row
            )
    assert re.search(r"^\| Model +\|.*\| +Forgetting % \|$", text, re.M)
    assert len(re.findall(r"^[1-4]\. .*: (met|NOT MET) \(", text, re.M)) == 4


def test_the_scores_of_generated_text_after_the_last_stage_are_final(report):
    _, results = report
    for result in results["models"].values():
        *earlier, last = result["generation"].values()
        for values in last.values():
            assert values["own"] == values["final"] and values["kept"] == 1 and values["interval"] == [1, 1]
        for scores in earlier:
            for values in scores.values():
                assert values["interval"][0] <= values["kept"] <= values["interval"][1]
            assert scores["fluency"]["own"] != scores["fluency"]["final"]
    for text in (*results["judges"]["real_text"].values(), *flattened(results)):
        assert 0 <= text["domain"] <= 1 and 0 < text["distinct_2"] <= 1 and text["fluency"] > 0
    assert results["judges"]["classifier_accuracy"] > 0.95


def flattened(results):
    """The scores of every model's text of every dataset at both times."""
    return [
        {score: values[when] for score, values in scores.items()}
        for result in results["models"].values()
        for scores in result["generation"].values()
        for when in ("own", "final")
    ]


def test_the_text_shows_the_scores_of_real_and_generated_text(report):
    text, results = report
    first, _, third = results["judges"]["real_text"]
    tables = text[text.index("Generated text") :].split("\n\n")
    for table, score, scale, digits in (
        (tables[2], "domain", 100, 1), (tables[4], "fluency", 1, 2), (tables[6], "distinct_2", 100, 1),
    ):  # fmt: skip
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        assert [row[0] for row in rows[2:]] == ["real text", *(ARMS[method] for method in results["models"])]
        assert rows[2][1] == f"{scale * results['judges']['real_text'][first][score]:.{digits}f}"
        for row, result in zip(rows[3:], results["models"].values()):
            values = result["generation"][first][score]
            low, high = values["interval"]
            assert row[1] == (
                f"{scale * values['own']:.{digits}f} -> {scale * values['final']:.{digits}f} "
                f"({100 * values['kept']:.0f}%, {100 * low:.0f} to {100 * high:.0f})"
            )
            assert row[3] == f"{scale * result['generation'][third][score]['final']:.{digits}f}"
        assert max(map(len, table.splitlines())) <= 110
    assert f"right about {100 * results['judges']['classifier_accuracy']:.1f}% of real test text" in text


def test_two_reports_are_the_same(trained, report):
    assert format_report(report_of(load_runs(trained.models_dir), "cpu")) == report[0].rstrip("\n")


def verdict(ours, theirs, average=None, **low):
    """Which criteria are met, given forgetting in %, and if not 1 the lower ends of what is kept of dataset a."""

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


@pytest.mark.parametrize("score", SCORES)
def test_each_score_is_kept_by_the_lower_end_of_its_interval(score):
    assert met(10, 30, **{score: MIN_QUALITY_KEPT})[2]
    assert not met(10, 30, **{score: MIN_QUALITY_KEPT - 0.001})[2]
    figures = verdict(10, 30, **{score: 0.5})[2]["figures"]
    assert f"{SCORES[score]} 50%" in figures and figures.count("100%") == len(SCORES) - 1


@pytest.fixture
def copies(trained, tmp_path):
    for path in trained.models_dir.glob("*.pt"):
        shutil.copy(path, tmp_path)
    return tmp_path


def alter(models_dir, file, method, change):
    checkpoint = load_checkpoint(models_dir / file, method)
    change(checkpoint)
    save_checkpoint(models_dir / file, checkpoint)


def set_fingerprint(checkpoint):
    checkpoint.datasets[1]["fingerprint"] = "0" * 64


def set_seed(checkpoint):
    checkpoint.seed = 7


def set_steps(checkpoint):
    checkpoint.arguments["max_steps"] += 1


def set_architecture(checkpoint):
    checkpoint.model_config["hidden_size"] += 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_fingerprint, "data"),
        (set_seed, "seed"),
        (set_steps, "token budget"),
        (set_architecture, "architecture"),
    ],
)
def test_runs_that_are_not_comparable_are_refused_by_name(copies, change, named):
    alter(copies, "baseline_final.pt", "baseline", change)
    with pytest.raises(K1Error, match=f"they differ in: {named};"):
        report_of(load_runs(copies), "cpu")


def test_weight_decay_must_agree_in_every_stage(copies):
    def set_weight_decay(checkpoint):
        checkpoint.arguments["weight_decay"] = 0.3

    alter(copies, "baseline_final.pt", "baseline", set_weight_decay)
    with pytest.raises(K1Error, match="they differ in: weight decay;"):
        report_of(load_runs(copies), "cpu")


@pytest.mark.parametrize(
    ("arm", "setting", "named"),
    [("sparse", "update_fraction", "sparse updates"), ("baseline_rehearsal", "rehearsal_weight", "rehearsal")],
)
def test_all_four_arms_are_compared_if_they_share_what_they_stand_for(copies, arm, setting, named):
    for other, method, like in (("sparse", "k1", "baseline"), ("baseline_rehearsal", "baseline", "k1")):
        for stage in (1, 2):
            checkpoint = load_checkpoint(copies / FILES[method][stage])
            checkpoint.arguments["rehearsal"] = load_checkpoint(copies / FILES[like][stage]).arguments["rehearsal"]
            save_checkpoint(copies / ARM_FILES[other][stage], checkpoint)
    assert {name: run[-1].arm for name, run in load_runs(copies).items()} == {name: name for name in ARMS}

    def change(checkpoint):
        checkpoint.arguments[setting] = 0.123

    alter(copies, ARM_FILES[arm][-1], None, change)
    with pytest.raises(K1Error, match=f"they differ in: {named};"):
        load_runs(copies)


def test_another_tokenizer_is_refused_by_name(copies):
    def set_tokenizer(checkpoint):
        checkpoint.tokenizer = checkpoint.tokenizer.replace('"version":"1.0"', '"version": "1.0"', 1) + " "

    for file in FILES["baseline"]:
        alter(copies, file, "baseline", set_tokenizer)
    with pytest.raises(K1Error, match="they differ in: tokenizer;"):
        report_of(load_runs(copies), "cpu")


def set_evaluation(checkpoint):
    next(iter(checkpoint.evaluations[0].values()))["test"]["loss"] += 0.1


def set_dataset(checkpoint):
    name = checkpoint.datasets[0]["name"]
    checkpoint.datasets[0]["name"] = "another"
    for row in (*checkpoint.evaluations, checkpoint.initial_evaluation):
        row["another"] = row.pop(name)


@pytest.mark.parametrize("change", [set_evaluation, set_dataset])
def test_files_of_two_runs_are_refused(copies, change):
    alter(copies, "k1_dataset2.pt", "k1", change)
    with pytest.raises(K1Error, match="does not continue .* --overwrite"):
        report_of(load_runs(copies), "cpu")


def test_a_refusal_is_one_line_and_status_1(copies):
    alter(copies, "baseline_final.pt", "baseline", set_seed)
    assert_one_clear_line(run_script("-m k1.report", "--models_dir", copies), 1, "they differ in: seed;")


def test_an_unwritable_json_file_is_a_usage_error(copies):
    assert_one_clear_line(run_script("-m k1.report", "--models_dir", copies, "--json", "."), 2, "--json")


@pytest.mark.parametrize(
    ("file", "script"),
    [
        ("k1_dataset1.pt", "train_k1_dataset1.py"),
        ("k1_dataset2.pt", "train_k1_dataset2.py"),
        ("k1_final.pt", "train_k1_dataset3.py"),
        ("baseline_dataset2.pt", "train_baseline_all.py"),
    ],
)
def test_a_missing_file_names_its_script(copies, file, script):
    (copies / file).unlink()
    with pytest.raises(K1Error, match=rf"{file} does not exist; run {script} first"):
        report_of(load_runs(copies), "cpu")
