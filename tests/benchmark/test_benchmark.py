"""The whole benchmark at its smallest: what it measures, that every contestant really trains, and its tables."""

import json

import pytest
import torch

from k1.benchmark import __main__ as benchmark
from k1.benchmark.contestants import K1, REFERENCE, TRAINER, other_ways
from k1.benchmark.setting import SHAPES
from k1.benchmark.summary import format_benchmark
from k1.errors import K1Error
from k1.experiment import ARMS
from tests.conftest import Finished, assert_one_clear_line, run_script
from tests.study.records import rows_of

pytestmark = [pytest.mark.xdist_group("benchmark"), pytest.mark.slow]

SMOKE = SHAPES["smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Finished, dict]:
    """The benchmark in one round, as a command, and what it wrote: every median is the one value that was measured."""
    file = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    finished = run_script("-m k1.benchmark", "--shapes", "smoke", "--rounds", 1, "--json", file, starts_processes=True)
    assert finished.status == 0, finished.stderr
    return finished, json.loads(file.read_text())


@pytest.fixture(scope="module")
def record(finished) -> dict:
    """What was measured of the shape."""
    return finished[1]["shapes"]["smoke"]


def test_the_tables_go_to_stdout_and_the_progress_to_stderr(finished):
    command, results = finished
    assert command.stdout == format_benchmark(results) + "\n"
    assert "smoke: steps in turn" in command.stderr


def test_the_steps_of_every_contestant_are_compared_with_the_baseline(record):
    steps = record["steps"]
    assert list(steps) == [*ARMS.values(), "bare PyTorch loop", "LoRA (peft)", "plain GPT", TRAINER]
    for name in {*steps} - {TRAINER}:
        ratio = steps[name]["seconds"]["median"] / steps[REFERENCE]["seconds"]["median"]
        assert steps[name]["ratio"]["median"] == pytest.approx(ratio)
    assert steps[TRAINER]["ratio"]["median"] > 0
    # Rewriting is counted for those that rehearse.
    assert [name for name in steps if "rewriting" in steps[name]] == [ARMS["baseline_rehearsal"], K1]
    figures = {key: steps[K1][key]["median"] for key in ("ratio", "rewriting", "in_sum")}
    assert figures["in_sum"] == pytest.approx(figures["ratio"] + figures["rewriting"]) and figures["rewriting"] > 0


def test_a_stage_is_the_sum_of_its_parts(record):
    stage = record["stage"]
    seconds = {
        name: {part: spread["median"] for part, spread in parts.items()} for name, parts in stage["seconds"].items()
    }
    assert set(seconds[REFERENCE]) == {"training", "evaluation", "checkpoint", "sum"}
    sums = {name: parts.pop("sum") for name, parts in seconds.items()}
    assert sums == pytest.approx({name: sum(parts.values()) for name, parts in seconds.items()})
    assert stage["ratio"]["median"] == pytest.approx(sums[K1] / sums[REFERENCE])
    assert stage["checkpoint_bytes"][K1] > stage["checkpoint_bytes"][REFERENCE] > 4 * record["parameters"]


def test_what_sparse_updates_add_is_measured(record):
    optimizer = record["optimizer"]
    extra, alone = (optimizer[key]["median"] for key in ("extra_seconds", "adamw_seconds"))
    assert optimizer["ratio"]["median"] == pytest.approx(1 + extra / alone)
    step = record["steps"][REFERENCE]["seconds"]["median"]
    assert optimizer["step_ratio"]["median"] == pytest.approx(1 + extra / step)
    # A copy of 49% of the parameters, 4 bytes each, and little else.
    assert 1.5 < optimizer["bytes_per_parameter"] < 5


def test_other_ways_to_train_learn():
    torch.manual_seed(0)
    for name, step in other_ways(SMOKE, SMOKE.read()[1]).items():
        losses = [step() for _ in range(40)]
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.1, name


def test_the_tables_have_medians_and_quartiles_and_a_row_for_each_contestant_stage_and_shape():
    def spread(value):
        return {"median": value, "low": 0.5 * value, "high": 2 * value}

    optimizer = {
        "adamw_seconds": spread(0.004), "extra_seconds": spread(0.002), "ratio": spread(1.5),
        "bytes_per_parameter": 2.0,
    }  # fmt: skip
    steps = {
        REFERENCE: {"seconds": spread(0.5), "ratio": spread(1.0)},
        K1: {"seconds": spread(0.6), "ratio": spread(1.2), "rewriting": spread(0.3), "in_sum": spread(1.5)},
    }
    stage = {
        "seconds": {
            REFERENCE: {"training": spread(50.0), "sum": spread(50.0)},
            K1: {"training": spread(60.0), "writing": spread(5.0), "sum": spread(65.0)},
        },
        "ratio": spread(1.3), "checkpoint_bytes": {REFERENCE: 5_000_000, K1: 5_250_000},
    }  # fmt: skip
    quick = {"parameters": 1_000, "tokens_per_step": 1_024, "steps": steps, "stage": stage}
    shapes = {
        "quick": quick | {"optimizer": optimizer | {"step_ratio": spread(1.004)}},
        "full": {"parameters": 2_000, "tokens_per_step": 8_192, "optimizer": optimizer},
    }
    text = format_benchmark({"threads": 1, "cores": 2, "versions": {}, "shapes": shapes})
    steps, stages, shapes = (rows_of(text, [head]) for head in ("Training", "Later stage, seconds", "Shape"))
    assert steps[REFERENCE] == ["2,048", "1.00 (0.50 to 2.00)", "", ""]
    assert steps[K1] == ["1,707", "1.20 (0.60 to 2.40)", "0.30 (0.15 to 0.60)", "1.50 (0.75 to 3.00)"]
    assert stages[REFERENCE] == ["50.00", "", "50.00", "", "5.00"]
    assert stages[K1] == ["60.00", "5.00", "65.00", "1.30 (0.65 to 2.60)", "5.25"]
    alone = ["4.0 (2.0 to 8.0)", "1.50 (0.75 to 3.00)"]
    assert shapes["`quick`"] == ["1,000", *alone, "1.004 (0.502 to 2.008)", "2.00"]
    assert shapes["`full`"] == ["2,000", *alone, "", "2.00"]


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda package: None)
    monkeypatch.setattr("sys.argv", ["benchmark"])
    with pytest.raises(K1Error, match="needs accelerate and peft; run pip install -r requirements-dev.txt"):
        benchmark.main.__wrapped__()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--rounds", 0, "--rounds: must be at least 1, not 0"),
        ("--json", "/nowhere/file.json", "/nowhere/file.json is not"),
    ],
)
def test_flags_that_cannot_be_are_refused(flag, value, message):
    assert_one_clear_line(run_script("-m k1.benchmark", flag, value), 2, message)
