"""Several seeds together: means, intervals and shares are those of the reports."""

import copy
import json

import pytest

from k1.errors import K1Error
from k1.study.seeds import forgotten_nats, format_seeds, load_reports
from tests.conftest import assert_one_clear_line, run_script


def report(seed, k1_end, baseline_end):
    """A report in which the loss of dataset `a` goes from 4 to the given values."""

    def model(end):
        scores = {"accuracy": 0.25, "loss": 4.0}
        return {
            "own": {"a": scores, "b": scores, "c": scores}, "final": {"a": scores, "b": scores, "c": scores},
            "forgetting_percent": {"a": 10.0, "b": 5.0, "c": 0.0}, "average_forgetting_percent": 7.5,
            "loss_matrix": [[7, 7, 7], [4, 6, None], [end - 0.5, 2, 5], [end, 2.5, 3]], "learning_rates": [1, 2, 3],
        }  # fmt: skip

    return {
        "models": {"k1": model(k1_end), "baseline": model(baseline_end)},
        "criteria": [{"criterion": "1. it holds", "met": seed == 0}],
        "datasets": [{"name": name, "fingerprint": name} for name in "abc"],
        "preset": "quick", "seed": seed,
    }  # fmt: skip


@pytest.fixture
def paths(tmp_path):
    written = []
    for seed, ends in enumerate([(4.6, 5.0), (4.8, 5.0)]):
        written.append(tmp_path / f"{seed}.json")
        written[-1].write_text(json.dumps(report(seed, *ends)))
    return written


def test_shares_are_taken_seed_by_seed(paths):
    reports = load_reports(paths)
    assert forgotten_nats(reports[0]["models"]["k1"]) == pytest.approx(
        {"dataset 1 after stage 2": 0.1, "dataset 1 at the end": 0.6, "dataset 2 at the end": 0.5}
    )
    finished = run_script("-m k1.study.seeds", *paths)
    assert finished.status == 0 and finished.stdout == format_seeds(reports) + "\n"
    # 0.6 and 0.8, and a 95% interval of 12.706 standard errors with two seeds.
    assert "0.700 ± 1.271" in finished.stdout
    assert "| 1. it holds |    met | NOT MET |" in finished.stdout


def test_every_model_is_compared_with_the_baseline(paths):
    reports = load_reports(paths)
    for report in reports:
        third = copy.deepcopy(report["models"]["k1"])
        third["own"]["b"] = {"accuracy": 0.25, "loss": 3.75}
        report["models"]["baseline_rehearsal"] = third
    lines = [line.split("|")[1:-1] for line in format_seeds(reports).splitlines() if "| " in line]
    found = {cells[0].strip(): [cell.strip() for cell in cells[4:]] for cells in lines if len(cells) == 6}
    assert found["Model"] == ["new loss of b", "new loss of c"]
    assert found["K-1"] == ["0.000 ± 0.000", "0.000 ± 0.000"]
    assert found["baseline + rehearsal"] == ["-0.250 ± 0.000", "0.000 ± 0.000"]


def test_reports_of_other_experiments_are_refused(paths):
    other = copy.deepcopy(report(2, 4.6, 5.0))
    other["datasets"][0]["fingerprint"] = "other"
    paths[1].write_text(json.dumps(other))
    with pytest.raises(K1Error, match="data differ"):
        load_reports(paths)
    paths[1].write_text(paths[0].read_text())
    with pytest.raises(K1Error, match="same seed"):
        load_reports(paths)
    paths[1].write_text("{")
    assert_one_clear_line(run_script("-m k1.study.seeds", *paths), 1, "cannot be read as a report", "--json")
