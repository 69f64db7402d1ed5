"""A small run of the whole benchmark: what it measures, and that every contestant really trains."""

import json

import pytest

from k1.benchmark import contestants
from k1.benchmark.boundaries import stage_seconds
from k1.benchmark.contestants import CONTESTANTS, LATER, NEEDED, REFERENCE, STAGE_1, contestants_at, missing_packages
from k1.benchmark.growth import FACTORS
from k1.benchmark.optimizer import KINDS
from k1.benchmark.setting import SHAPES, made_up_documents
from k1.benchmark.startup import COMMANDS
from k1.benchmark.tables import boundary_share, format_benchmark
from k1.study.speed import format_benchmark_page, format_speed
from tests.conftest import Finished, assert_one_clear_line, run_script

STEPS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Finished, dict]:
    """The benchmark at its smallest, as a command, and what it wrote."""
    file = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    flags = ["--shapes", "smoke", "--steps", STEPS, "--json", file]
    finished = run_script("-m k1.benchmark", *flags, starts_processes=True)
    assert finished.status == 0, finished.stderr
    return finished, json.loads(file.read_text())


@pytest.fixture(scope="module")
def trained(finished) -> dict[str, dict]:
    """What was measured of each contestant."""
    return finished[1]["shapes"]["smoke"]["training"]["contestants"]


def test_the_tables_go_to_stdout_and_the_progress_to_stderr(finished):
    command, results = finished
    assert command.stdout == format_benchmark(results) + "\n"
    assert [line for line in command.stderr.splitlines() if " s: smoke: " not in line] == [
        line for line in command.stderr.splitlines()[-1:] if line.endswith(" s: start-up")
    ]
    assert "smoke: memory of plain GPT" in command.stderr


def test_every_contestant_takes_part(finished, trained):
    assert finished[1]["missing"] == {}
    assert list(trained) == contestants_at(SHAPES["smoke"])
    assert all(f"| {name} " in finished[0].stdout for name in trained)


def test_compiled_contestants_take_part_where_compiling_does_not_take_longer_than_all_else():
    left_out = set(CONTESTANTS) - set(contestants_at(SHAPES["smoke"]))
    assert left_out == {"baseline, compiled", "K-1, later stages, compiled"}
    assert contestants_at(SHAPES["quick"]) == list(CONTESTANTS)


def test_every_contestant_learns(trained):
    losses = {name: record["losses"] for name, record in trained.items()}
    assert {name: (before, after) for name, (before, after) in losses.items() if after >= before} == {}


def test_the_models_are_of_one_size(trained):
    size = trained[REFERENCE]["parameters"]
    assert {name for name, record in trained.items() if abs(record["parameters"] / size - 1) > 0.02} == set()


def test_every_contestant_has_a_time_for_each_round(trained):
    for record in trained.values():
        assert len(record["seconds"]) == STEPS and min(record["seconds"]) > 0
        for figure in ("tokens_per_second", "time_ratio"):
            assert 0 < record[figure]["low"] <= record[figure]["median"] <= record[figure]["high"]
    assert trained[REFERENCE]["time_ratio"] == {"low": 1, "median": 1, "high": 1}


def test_a_training_keeps_what_its_method_needs(trained):
    kept = {
        name: {kind: size / record["parameters"] for kind, size in record["kept_bytes"].items()}
        for name, record in trained.items()
    }
    for name in (REFERENCE, "bare PyTorch loop", "Hugging Face Trainer", "plain GPT"):
        assert (kept[name]["weights"], kept[name]["gradients"], kept[name]["importance"]) == (4, 4, 0)
        assert 8 <= kept[name]["optimizer"] < 8.1
    assert kept[LATER]["importance"] == 2 and kept[LATER]["teacher"] >= 4
    assert kept[LATER]["bases"] > kept[STAGE_1]["bases"]
    assert kept["LoRA (peft)"]["gradients"] < 2
    assert all(record["peak_bytes"] > 0 for record in trained.values())


def test_the_optimizer_alone_is_measured_beside_adamw(finished):
    found = finished[1]["shapes"]["smoke"]["optimizer"]
    assert list(found["kinds"]) == list(KINDS)
    assert all(record["time_ratio"]["median"] > 0 for record in found["kinds"].values())
    bases = {name: record["kept_bytes"]["bases"] for name, record in found["kinds"].items()}
    assert bases[LATER] > bases[REFERENCE]


def test_text_grows_and_memory_stays(finished):
    growth = finished[1]["surroundings"]["growth"]
    assert list(growth) == [str(factor) for factor in FACTORS]
    first, *_, last = growth.values()
    assert last["bytes"] > 40 * first["bytes"]
    assert last["seconds"]["tokenizing and packing"] > first["seconds"]["tokenizing and packing"]
    assert all(record["encode_batch_ratio"] > 0 for record in growth.values())
    assert last["peak_bytes"] - first["peak_bytes"] < 100e6


def test_generation_boundaries_and_starts_are_measured(finished):
    results = finished[1]
    assert all(way["tokens_per_second"]["median"] > 0 for way in results["surroundings"]["generation"]["ways"].values())
    stages = results["shapes"]["smoke"]["training"]["stages"]
    assert min(stages["seconds"].values()) > 0
    assert stages["checkpoint_bytes"]["k1"] > stages["checkpoint_bytes"]["baseline"] > 0
    assert min(results["surroundings"]["starts"].values()) > 0
    assert list(results["start_up"]) == list(COMMANDS)


def test_the_pages_show_what_was_measured(finished):
    results = finished[1]
    assert format_benchmark_page(results) == format_benchmark(results)
    head, _, row = format_speed(results).splitlines()
    ratios = [f"{record['time_ratio']['median']:.2f}" for name, record in list(
        results["shapes"]["smoke"]["training"]["contestants"].items())[1:]]  # fmt: skip
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ratios
    assert [cell.strip() for cell in head.split("|")[2:-1]] == contestants_at(SHAPES["smoke"])[1:]


def test_a_missing_package_is_named_and_its_contestant_left_out(monkeypatch, finished):
    monkeypatch.setattr(contestants, "find_spec", lambda package: None)
    assert missing_packages() == NEEDED
    text = format_benchmark({**finished[1], "missing": NEEDED})
    assert "LoRA (peft) was left out: it needs peft; run pip install -r requirements-dev.txt" in text


def test_boundaries_are_those_of_the_scripts():
    seconds = {
        "evaluation": 1.0, "evaluation on test text": 0.5, "evaluation in the eigenbasis": 2.0,
        "eigenbasis": 4.0, "importance": 8.0,
        "summing importance": 0.5, "writing rehearsed text": 16.0, "rewriting rehearsed text": 3.0,
        "checkpoint of k1": 0.25, "checkpoint of baseline": 0.125,
    }  # fmt: skip
    step = {"baseline": 0.1, "k1_first": 0.2, "k1_later": 0.3}
    stages = stage_seconds(seconds, rewritings=2, step=step, steps=(100, 50, 50))
    around = {name: sum(stage["boundaries"].values()) for name, stage in stages.items()}
    assert around["K-1, stage 1"] == 0.5 + 2 + 4 + 8 + 16 + 0.25
    assert around["K-1, stage 2"] == 2 * 0.5 + 2 * 2 + 2 * 8 + 0.5 + 16 + 0.25
    assert (around["baseline, stage 1"], around["baseline, stage 2"]) == (17.625, 3.125)
    assert (stages["K-1, stage 2"]["training"], stages["K-1, stage 2"]["rewriting"]) == (15, 6)
    assert boundary_share(stages["K-1, stage 1"]) == pytest.approx(100 * 30.75 / 50.75)


def test_made_up_text_is_the_same_each_time_and_as_long_as_asked():
    texts = list(made_up_documents(50_000))
    assert texts == list(made_up_documents(50_000)) != list(made_up_documents(50_000, seed=1))
    assert 50_000 <= sum(map(len, texts)) < 60_000
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", 0], "--steps must be at least 1, not 0"),
        (["--threads", 0], "--threads must be at least 1, not 0"),
        (["--json", "/nowhere/file.json"], "--json /nowhere/file.json is not a file in an existing folder"),
    ],
    ids=["steps", "threads", "json"],
)
def test_flags_that_cannot_be_are_refused(flags, message):
    assert_one_clear_line(run_script("-m k1.benchmark", *flags), 2, message)
