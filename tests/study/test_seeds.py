"""Several seeds together: means, intervals and shares are those of the reports."""

import json

import pytest

from k1.errors import K1Error
from k1.study.seeds import format_seeds, kinds_of_forgetting, load_reports
from tests.conftest import assert_one_clear_line, run_script
from tests.study.records import rows_of

# By seed and arm: the loss of dataset `a` at the end, which is 4 after its own stage and after stage 2.
ENDS = [
    {"baseline": 5.0, "sparse": 5.1, "baseline_rehearsal": 4.3, "k1": 4.6},
    {"baseline": 5.0, "sparse": 5.3, "baseline_rehearsal": 4.5, "k1": 4.8},
]


def model(end, rehearses):
    """An arm in a report; what it predicts is 0.2 less than the truth of dataset 1, and right of dataset 2."""
    scores = {name: {"accuracy": 0.25, "loss": 4.0, "tokens": 4321 + number} for number, name in enumerate("abc")}
    return {
        "own": scores, "final": scores, "forgetting_percent": {"a": 10.0, "b": 5.0, "c": 0.0},
        "average_forgetting_percent": 10 * (end - 4), "mean_final_loss": end,
        "accuracy_matrix": [[0.25] * 3] * 4,
        "loss_matrix": [[7, 7, 7], [4, 6, None], [4.1, 2, 5], [end, 2.5, 3]], "learning_rates": [1, 2, 3],
        "predicted_forgetting": [[], [0.1 - 0.2], [end - 4.1 - 0.2, 0.5]] if rehearses else [[], [], []],
        "tokens_per_second": 2048,
        # Of the last dataset nothing can be lost.
        "generation": {name: {"domain": {"interval": [low, 1.0]}} for name, low in (("a", 1.39 - end / 9), ("c", 0.1))},
    }  # fmt: skip


def report(seed, ends):
    """A report of the arms of `ends`."""
    return {
        "models": {arm: model(end, arm in ("baseline_rehearsal", "k1")) for arm, end in ends.items()},
        "criteria": [{"criterion": "1. it holds", "met": seed == 0}],
        "datasets": [
            {"name": name, "fingerprint": name, "source": "bundled", "tokens": {"train": 1000 + number, "test": 100}}
            for number, name in enumerate("abc")
        ],
        "preset": "quick", "seed": seed, "parameters": 123_456, "versions": {"python": "3.99.1"},
    }  # fmt: skip


@pytest.fixture
def paths(tmp_path):
    written = [tmp_path / f"{seed}.json" for seed in range(len(ENDS))]
    for seed, path in enumerate(written):
        path.write_text(json.dumps(report(seed, ENDS[seed])))
    return written


def test_shares_are_taken_seed_by_seed(paths):
    reports = load_reports(paths)
    for found in reports:
        found["models"]["sparse"]["loss_matrix"][2][1] -= 0.25
    kinds = kinds_of_forgetting(3)
    assert [*kinds] == ["dataset 1 after stage 2", "dataset 1 at the end", "dataset 2 at the end"]
    assert [rise(reports[0]["models"]["k1"]) for rise in kinds.values()] == pytest.approx([0.1, 0.6, 0.5])
    text = format_seeds(reports)
    # 0.6 and 0.8, and a 95% interval of 12.706 standard errors with two seeds.
    rows = rows_of(text, ["Model", *kinds, "new loss of b"])
    assert rows["K-1"] == ["1.000 ± 0.000", "0.700 ± 1.271", "1.000 ± 0.000", "0.000 ± 0.000", "0.000 ± 0.000"]
    assert "baseline" not in rows
    assert rows["51% alone"][3:] == ["-0.250 ± 0.000", "0.000 ± 0.000"]


def test_main_effects_and_interaction_are_those_of_each_seed(paths):
    rows = rows_of(format_seeds(load_reports(paths)), ["", "baseline", "51% alone"])
    # Seed 0: 51% cost 0.1 alone and 0.3 with rehearsal, seed 1: 0.3 and 0.3; rehearsal gains 0.7 and 0.5 in each.
    assert rows["mean loss at the end, nats"] == [
        "5.000 ± 0.000", "5.200 ± 1.271", "4.400 ± 1.271", "4.700 ± 1.271",
        "0.250 ± 0.635", "-0.550 ± 0.635", "0.100 ± 1.271",
    ]  # fmt: skip
    assert rows["average forgetting, %"][4:] == ["2.500 ± 6.353", "-5.500 ± 6.353", "1.000 ± 12.706"]
    # Of all kinds only one differs.
    assert rows["mean of all kinds of forgetting, nats"][4] == "0.083 ± 0.212"


def test_predicted_forgetting_stands_beside_the_rise_in_the_same_stage(paths):
    finished = run_script("-m k1.study.seeds", *paths)
    assert finished.returncode == 0 and finished.stdout == format_seeds(load_reports(paths)) + "\n"
    text = finished.stdout
    criteria = rows_of(text, ["Criterion"])
    assert criteria["1. it holds"] == criteria["Criterion 3 of baseline + rehearsal"] == ["met", "NOT MET"]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["K-1", "2", "1", "-0.100 ± 0.000", "0.100 ± 0.000"] in lines
    assert ["K-1", "3", "1", "0.400 ± 1.271", "0.600 ± 1.271"] in lines
    assert ["baseline + rehearsal", "3", "2", "0.500 ± 0.000", "0.500 ± 0.000"] in lines
    assert "they are 0.133 apart in the mean of 12 pairs, their correlation is 0.9" in text


def test_reports_of_other_experiments_are_refused(paths):
    other = report(2, ENDS[1])
    other["datasets"][0]["fingerprint"] = "other"
    paths[1].write_text(json.dumps(other))
    with pytest.raises(K1Error, match="data differ"):
        load_reports(paths)
    paths[1].write_text(paths[0].read_text())
    with pytest.raises(K1Error, match="same seed"):
        load_reports(paths)
    two_arms = report(1, {arm: ENDS[1][arm] for arm in ("baseline", "k1")})
    for content in ("{", json.dumps(two_arms)):
        paths[1].write_text(content)
        finished = run_script("-m k1.study.seeds", *paths)
        assert_one_clear_line(finished, 1, "cannot be read as a report of all four arms", "make seeds")
