"""The benchmark at its smallest: what it measures, that every contestant really trains, and its tables."""

import json
import time

import pytest
import torch

from k1 import benchmark
from k1.benchmark import ADAMW, BASELINE, CONTESTANTS, K1, SHAPES, SPARSE, format_benchmark, other_ways, with_spread
from k1.data.loader import DataLoader
from k1.data.tokenizer import train_tokenizer
from k1.errors import K1Error
from tests.conftest import run_script
from tests.study.records import rows_of

SMOKE = SHAPES["smoke"]


@pytest.mark.slow
def test_all_is_measured_in_one_round_and_shown(tmp_path):
    file = tmp_path / "benchmark.json"
    finished = run_script("-m k1.benchmark", "--shapes", "smoke", "--rounds", 1, "--json", file)
    assert finished.returncode == 0, finished.stderr
    results = json.loads(file.read_text())
    assert finished.stdout == format_benchmark(results) + "\n"
    record = results["shapes"]["smoke"]
    assert all(len(values) == 1 and values[0] > 0 for values in record["seconds"].values())
    assert {*CONTESTANTS, ADAMW, SPARSE} < set(record["seconds"])
    assert set(record["stage"][BASELINE]) == {"training", "evaluation", "checkpoint"}
    # 30 steps, of which 5 are timed together; the text is rewritten before the first one alone.
    for part, thing, often in (("training", K1, 6), ("rewriting", "rewriting", 1), ("evaluation", "evaluation", 2)):
        assert record["stage"][K1][part] == pytest.approx([often * value for value in record["seconds"][thing]])
    assert record["checkpoint_bytes"][K1] > record["checkpoint_bytes"][BASELINE] > 4 * record["parameters"]
    # A copy of 49% of the parameters, 4 bytes each, and little else.
    assert 1.5 < record["additional_bytes"] / record["parameters"] < 5


@pytest.mark.slow
def test_other_ways_to_train_learn():
    torch.manual_seed(0)
    text = DataLoader("wikitext", SMOKE.arguments("baseline"))
    dataset = text.tokenize(train_tokenizer(text.text("train"), SMOKE.arguments("baseline").vocabulary_size))
    for name, step in other_ways(SMOKE, dataset).items():
        losses = [float(step()) for _ in range(40)]
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.1, name


def test_the_tables_have_medians_and_quartiles_of_ratios_in_the_same_round():
    assert with_spread([5.0, 1.0, 4.0, 2.0, 3.0], 1) == "3.0 (2.0 to 4.0)"
    assert with_spread([7.0]) == "7.00 (7.00 to 7.00)"
    seconds = {name: [1.0, 10.0, 1.0] for name in CONTESTANTS}
    seconds |= {K1: [2.0, 20.0, 8.0], ADAMW: [0.004] * 3, SPARSE: [0.0048, 0.006, 0.0072]}
    stage = {BASELINE: {"training": [50.0] * 3}, K1: {"training": [60.0] * 3, "writing": [5.0, 15.0, 40.0]}}
    found = {
        "parameters": 1_000, "tokens_per_step": 1_024, "seconds": seconds, "stage": stage,
        "checkpoint_bytes": {BASELINE: 5_000_000, K1: 5_250_000}, "additional_bytes": 2_000,
    }  # fmt: skip
    alone = found | {"stage": {}, "seconds": {name: seconds[name] for name in (ADAMW, SPARSE)}}
    text = format_benchmark({"threads": 1, "cores": 2, "versions": {}, "shapes": {"quick": found, "full": alone}})
    steps, stages, shapes = (rows_of(text, [head]) for head in ("Training", "Later stage, seconds", "Shape"))
    assert list(steps)[2:] == [*CONTESTANTS]
    assert steps[BASELINE] == ["5,120", "1.00 (1.00 to 1.00)"] and steps[K1] == ["640", "2.00 (2.00 to 5.00)"]
    assert stages[BASELINE] == ["50.00", "", "50.00", "", "5.00"]
    assert stages[K1] == ["60.00", "15.00", "75.00", "1.50 (1.40 to 1.75)", "5.25"]
    both = ["1,000", "4.0 (4.0 to 4.0)", "1.50 (1.35 to 1.65)"]
    assert shapes["`quick`"] == [*both, "1.010 (1.007 to 1.013)", "2.00"] and shapes["`full`"] == [*both, "", "2.00"]


def test_each_takes_one_turn_a_round_and_the_first_round_is_not_counted(monkeypatch):
    now, called, lengths = [0], [], iter([100] * 3 + [1, 2, 3, 4, 5, 6])

    def take(name):
        called.append(name)
        now[0] += next(lengths)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    seconds = benchmark.alternate({name: lambda name=name: take(name) for name in "abc"}, rounds=2)
    assert "".join(called) == "abcbcacab"
    assert seconds == {"b": [1, 6], "c": [2, 4], "a": [3, 5]}


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda package: None)
    monkeypatch.setattr("sys.argv", ["benchmark"])
    with pytest.raises(K1Error, match="needs peft; run pip install -r requirements-dev.txt"):
        benchmark.main.__wrapped__()
