"""The study runs every method through the loop of the scripts, records each run, and goes on where it was stopped."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from k1.arguments import Arguments
from k1.checkpoints.storage import load_checkpoint
from k1.data.loader import load_datasets
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error
from k1.presets import FILES
from k1.report.tables import dataset_label
from k1.study.frontier import (
    Point,
    best_point,
    half_interval,
    interpolated,
    learning_and_forgetting,
    least_forgetting,
    mean_and_interval,
    points_of,
    ratios_at_equal_learning,
)
from k1.study.methods import METHODS, low_rank_adapter, orthogonal_subspace, require_packages
from k1.study.plots import undominated
from k1.study.sequence import with_replay
from k1.study.shares import format_shares
from k1.training.optimization import interpolate
from tests.conftest import assert_one_clear_line, run_script, train_all
from tests.study.records import record


@pytest.fixture(scope="module")
def study(tmp_path_factory, corpora):
    out = tmp_path_factory.mktemp("study")
    flags = [
        "--preset", "smoke", "--methods", "dense", "k1", "k1_all", "lora", "replay", "joint", "--seeds", 0,
        "--learning_rates", 1e-2, "--dataset_names", *corpora, "--out", out,
    ]  # fmt: skip
    finished = run_script("-m k1.study", *flags, starts_processes=True)
    assert finished.status == 0, finished.stderr
    return flags, out, finished


def test_every_run_is_recorded_and_shown(study):
    _, out, finished = study
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert set(runs) == {
        "first-baseline-seed0-0.01", "first-k1-seed0-0.01", "dense-seed0-0.01", "k1-seed0-0.01", "k1_all-seed0-0.01",
        "lora-seed0-0.01-rank4", "lora-seed0-0.01-rank16", "replay-seed0-0.01", "joint-seed0-0.01",
    }  # fmt: skip
    assert runs["k1-seed0-0.01"]["updated_fraction"] == pytest.approx(0.51, abs=1e-3)
    # All that have a gradient: of the embedding only the rows of tokens in the batch.
    assert runs["k1_all-seed0-0.01"]["updated_fraction"] > 0.8
    for method in ("dense", "k1", "k1_all", "lora", "replay", "joint"):
        assert f"| {METHODS[method].label} " in finished.stdout
    shares = format_shares(runs)
    assert "51% minus 100%" in shares and (out / "shares.md").read_text() == shares + "\n"
    assert finished.stdout == (out / "results.md").read_text() + "\n" + shares + "\n"
    for name in ("frontier.png", "shares.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_recorded_run_is_not_repeated_and_a_missing_one_is(study):
    flags, out, first = study
    recorded = json.loads((out / "results.json").read_text())
    removed = recorded["runs"].pop("dense-seed0-0.01")
    recorded["runs"]["joint-seed0-0.01"]["evaluations"][-1].update(
        {name: {split: [9.999, 0.0] for split in splits} for name, splits in removed["evaluations"][-1].items()}
    )
    (out / "results.json").write_text(json.dumps(recorded))
    second = run_script("-m k1.study", *flags, starts_processes=True)
    assert second.stdout.count("9.999") == 3
    again = json.loads((out / "results.json").read_text())["runs"]["dense-seed0-0.01"]
    assert again["evaluations"] == removed["evaluations"]
    assert_one_clear_line(run_script("-m k1.study", *flags, "--data_source", "hub"), 1, "another data_source")


def test_the_study_computes_what_the_scripts_compute(study, corpora, tmp_path):
    _, out, _ = study
    runs = json.loads((out / "results.json").read_text())["runs"]
    train_all(tmp_path, corpora)
    for method, name in (("k1", "k1-seed0-0.01"), ("baseline", "dense-seed0-0.01")):
        final = load_checkpoint(tmp_path / FILES[method][-1], method)
        for stage, row in enumerate(runs[name]["evaluations"]):
            expected = {dataset_label(path): splits for path, splits in final.evaluations[stage].items()}
            # The scripts also evaluate the next dataset, before its stage.
            assert list(row) == list(expected)[: len(row)]
            for dataset, splits in row.items():
                for split, (loss, accuracy) in splits.items():
                    scores = expected[dataset][split]
                    assert (loss, accuracy) == (scores["loss"], scores["accuracy"])


@pytest.mark.parametrize(
    "adapter, dial, frozen",
    [
        (low_rank_adapter, {"rank": 2}, ["embed_tokens", "lm_head", "norm"]),
        (orthogonal_subspace, {"embeddings": 0}, ["embed_tokens", "lm_head", "norm"]),
        (orthogonal_subspace, {"embeddings": 1}, []),
    ],
)
def test_adapters_start_from_the_same_function_and_train_what_they_should(tiny_model, adapter, dial, frozen):
    input_ids = torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(0))
    tiny_model.eval()
    before = tiny_model(input_ids).logits.detach()
    adapted = adapter(tiny_model, **dial)
    assert isinstance(adapted, PeftModel)
    assert torch.allclose(adapted(input_ids).logits, before, atol=1e-5)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    start = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    for _ in range(2):
        adapted(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(start[name], p)}
    assert changed
    assert not any(part in name for part in frozen for name in changed)
    if not frozen:
        assert any("embed_tokens" in name for name in changed) and any("lm_head" in name for name in changed)
    trained = adapted(input_ids).logits.detach()
    merged = adapted.merge_and_unload()
    assert torch.allclose(merged(input_ids).logits, trained, atol=1e-4)
    assert not torch.allclose(trained, before, atol=1e-4)


def test_replay_mixes_in_its_share_of_old_blocks(trained):
    final = load_checkpoint(trained.models_dir / FILES["k1"][-1], "k1")
    arguments = Arguments(**final.arguments)
    first, second, third = load_datasets(final.datasets, load_tokenizer(final.tokenizer), arguments)
    repeated = replace(
        third, blocks={"train": third.blocks["train"].select(list(range(len(third.blocks["train"]))) * 40)}
    )
    mixed = with_replay(repeated, [first, second], 0.05, arguments).blocks["train"]
    old = {tuple(block.tolist()) for dataset in (first, second) for block in dataset.blocks["train"]["input_ids"]}
    share = sum(tuple(block.tolist()) in old for block in mixed["input_ids"]) / len(mixed)
    assert 0.01 < share < 0.12


def test_interpolation_keeps_a_share_of_the_change(tiny_model):
    start = {name: torch.zeros_like(p) for name, p in tiny_model.named_parameters()}
    end = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    interpolate(tiny_model, start, 0.25)
    assert all(torch.allclose(p, 0.25 * end[name]) for name, p in tiny_model.named_parameters())


def test_forgetting_at_equal_learning_is_read_off_the_dense_line():
    runs = {
        "a": record("dense", 1e-3, 0, [4], [4.5, 3.0], [4.8, 3.4, 3.0]),
        "b": record("dense", 2e-3, 0, [4], [5.5, 2.0], [5.8, 2.6, 2.0]),
        "c": record("k1", 1e-3, 0, [4], [4.4, 2.5], [4.6, 2.7, 2.5]),
        "d": record("ewc", 1e-3, 0, [4], [4.4, 1.5], [4.6, 2.7, 1.5]),
        "e": {"method": "k1", "seed": 1, "learning_rate": 1.0, "setting": {}, "failed": "diverged"},
    }
    points = points_of(runs)
    (k1,) = points["k1"]
    assert isinstance(k1, Point) and [run["seed"] for run in k1.records] == [0]
    assert learning_and_forgetting(runs["c"], "test")["dataset 2 at the end"] == pytest.approx((2.5, 0.2))
    ratios = ratios_at_equal_learning(k1, points["dense"], "test")
    # The dense line at a loss of 2.5: 1.0 after stage 2; at the end 1.3 of dataset 1 and 0.5 of dataset 2.
    assert ratios["dataset 1 after stage 2"] == pytest.approx([0.4])
    assert ratios["dataset 1 at the end"] == pytest.approx([0.6 / 1.3])
    assert ratios["dataset 2 at the end"] == pytest.approx([0.4])
    # Better learned than any dense run: no extrapolation.
    assert ratios_at_equal_learning(points["ewc"][0], points["dense"], "test")["dataset 1 at the end"] == [None]
    assert least_forgetting(points["ewc"], points["dense"]) is None
    assert least_forgetting(points["k1"], points["dense"]) is k1
    assert best_point(points["dense"]).learning_rate == 2e-3


def test_interpolation_between_points():
    line = [(2.0, 10.0), (1.0, 20.0), (3.0, 0.0)]
    assert interpolated(line, 1.5) == 15
    assert interpolated(line, 3.0) == 0
    assert interpolated(line, 0.99) is None and interpolated(line, 3.01) is None


def test_interval_is_that_of_student():
    from scipy.stats import t

    values = [1.0, 2.0, 4.0]
    low, high = t.interval(0.95, 2, loc=7 / 3, scale=(7 / 3) ** 0.5 / 3**0.5)
    assert mean_and_interval(values) == f"2.333 ± {(high - low) / 2:.3f}"
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert mean_and_interval([1.0]) == "1.000" and half_interval([1.0]) == 0


def test_the_plot_draws_the_settings_that_no_other_beats():
    assert undominated([(3, 1), (1, 3), (2, 3.5), (2, 2), (4, 1.5)]) == [(1, 3), (2, 2), (3, 1)]


@pytest.mark.parametrize(
    ("names", "fragments"),
    [
        (["wikitext", "code"], ["takes 3 names, not 2", "python3 -m k1.study.stream"]),
        (["wikitext", "code", "science", "code"], ["takes 3 names, not 4", "python3 -m k1.study.stream"]),
        (["wikitext", "code", "code"], ["has code twice"]),
    ],
    ids=["two", "four", "one twice"],
)
def test_other_than_three_different_datasets_are_refused_before_any_training(tmp_path, names, fragments):
    finished = run_script("-m k1.study", "--dataset_names", *names, "--out", tmp_path / "out")
    assert_one_clear_line(finished, 2, *fragments)
    assert not (tmp_path / "out").exists()


def hide_peft():
    """A name that is None in sys.modules cannot be found or imported."""
    sys.modules["peft"] = None


def test_without_peft_only_the_methods_that_need_it_are_refused_and_before_any_training(tmp_path, monkeypatch):
    finished = run_script("-m k1.study", "--out", tmp_path / "out", prepare=hide_peft)
    assert_one_clear_line(finished, 1, "peft is missing, for LoRA and OSF", "pip install -r requirements-dev.txt")
    assert not (tmp_path / "out").exists()
    require_packages(METHODS)
    monkeypatch.setitem(sys.modules, "peft", None)
    require_packages([name for name in METHODS if name not in ("lora", "osf")])
    with pytest.raises(K1Error, match="peft is missing, for LoRA; run"):
        require_packages(["dense", "lora"])
