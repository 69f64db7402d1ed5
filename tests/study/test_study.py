"""The study runs every method through the loop of the scripts, records each run, and resumes where it was stopped."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from k1.checkpoints import load_checkpoint
from k1.config import Arguments
from k1.data.loader import load_datasets
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error
from k1.experiment import ARM_FILES
from k1.report.tables import dataset_label
from k1.study.frontier import equal_learning_table, interpolated, ratios_at_equal_learning, undominated
from k1.study.grid import Run, execute_in_turn
from k1.study.methods import (
    METHODS,
    consolidation,
    fisher_information,
    low_rank_adapter,
    orthogonal_subspace,
    require_packages,
)
from k1.study.points import best_point, forgotten_nats, new_dataset_loss, points_of
from k1.study.sequence import learn_later_datasets, with_replay
from tests.conftest import assert_one_clear_line, run_script, train_all
from tests.study.records import record

pytestmark = [pytest.mark.xdist_group("study"), pytest.mark.slow]

STUDIED = ("baseline", "k1", "stage", "ewc", "lora", "replay", "joint")


@pytest.fixture(scope="module")
def study(tmp_path_factory, corpora):
    out = tmp_path_factory.mktemp("study")
    flags = [
        "--preset", "smoke", "--methods", *STUDIED, "--seeds", 0, "--learning_rates", 1e-2,
        "--dataset_names", *corpora, "--out", out,
    ]  # fmt: skip
    finished = run_script("-m k1.study", *flags, starts_processes=True)
    assert finished.status == 0, finished.stderr
    return flags, out, finished


def test_every_run_is_recorded_and_shown(study):
    _, out, finished = study
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert set(runs) == {
        "first-baseline-seed0-0.01", "first-k1-seed0-0.01", "baseline-seed0-0.01", "k1-seed0-0.01",
        "stage-seed0-0.01", "ewc-seed0-0.01-strength1.7", "ewc-seed0-0.01-strength5", "lora-seed0-0.01-rank4",
        "lora-seed0-0.01-rank16", "replay-seed0-0.01", "joint-seed0-0.01",
    }  # fmt: skip
    for method in ("k1", "stage"):
        assert runs[f"{method}-seed0-0.01"]["updated_fraction"] == pytest.approx(0.51, abs=2e-3)
    for method in STUDIED:
        assert f"| {METHODS[method].label} " in finished.stdout
    assert finished.stdout == (out / "results.md").read_text()
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_what_holds_the_model_makes_it_forget_less(study):
    _, out, _ = study
    runs = json.loads((out / "results.json").read_text())["runs"]
    forgotten = {name: forgotten_nats(run) for name, run in runs.items() if not name.startswith("first")}
    dense = forgotten["baseline-seed0-0.01"]
    assert forgotten["k1-seed0-0.01"] < dense / 2 and forgotten["replay-seed0-0.01"] < dense
    assert max(forgotten[f"ewc-seed0-0.01-strength{strength}"] for strength in ("5", "1.7")) < dense
    assert forgotten["joint-seed0-0.01"] == 0


def test_wise_ft_keeps_a_share_of_the_change_of_each_stage(study):
    _, out, _ = study
    settings = json.loads((out / "results.json").read_text())["settings"]
    first = out / "first" / "first-baseline-seed0-0.01.pt"
    one, two, three = learn_later_datasets("wise_ft", 1e-2, {"keep": 0}, first, settings)["evaluations"]
    for name, scores in one.items():
        assert two[name] == three[name] == scores


def test_a_recorded_run_is_not_repeated_and_a_missing_one_is(study):
    flags, out, first = study
    recorded = json.loads((out / "results.json").read_text())
    removed = recorded["runs"].pop("baseline-seed0-0.01")
    kept = recorded["runs"]["joint-seed0-0.01"]["evaluations"][-1]
    kept.update({name: {split: [9.999, 0.0] for split in splits} for name, splits in kept.items()})
    (out / "results.json").write_text(json.dumps(recorded))
    second = run_script("-m k1.study", *flags, starts_processes=True)
    assert second.stdout.count("-> 9.999") == 3
    again = json.loads((out / "results.json").read_text())["runs"]["baseline-seed0-0.01"]
    assert again["evaluations"] == removed["evaluations"]
    assert_one_clear_line(run_script("-m k1.study", *flags, "--data_source", "hub"), 1, "another data_source")


def test_the_study_computes_what_the_scripts_compute(study, corpora, tmp_path):
    _, out, _ = study
    runs = json.loads((out / "results.json").read_text())["runs"]
    train_all(tmp_path, corpora)
    for arm in ("k1", "baseline"):
        final = load_checkpoint(tmp_path / ARM_FILES[arm][-1], arm)
        for row, expected in zip(runs[f"{arm}-seed0-0.01"]["evaluations"], final.evaluations, strict=True):
            expected = {dataset_label(path): splits for path, splits in expected.items()}
            # The scripts also evaluate the next dataset, before its stage.
            assert list(row) == list(expected)[: len(row)]
            for dataset, splits in row.items():
                for split, scores in splits.items():
                    assert scores == [expected[dataset][split][score] for score in ("loss", "accuracy")]


def test_a_run_that_diverged_is_named_and_left_out(tmp_path, capsys):
    """All is recorded already, so that nothing is trained."""
    first, fine, diverged = Run("first-k1", 0, 1e-3), Run("k1", 0, 1e-3), Run("k1", 1, 1e-3)
    other = replace(first, seed=1)
    runs = {run.name: record(run.method, 1e-3, run.seed, [4.0]) for run in (first, other, fine)}
    results = {"settings": {}, "runs": {**runs, diverged.name: {"failed": "diverged at step 3"}}}
    for run in (first, other):
        run.model_path(tmp_path).parent.mkdir(exist_ok=True)
        run.model_path(tmp_path).touch()
    arguments = SimpleNamespace(out=tmp_path, jobs=1)
    finished = execute_in_turn({fine: "k1", diverged: "k1"}, {"k1": [1e-3]}, results, arguments)
    assert finished == {fine.name: runs[fine.name]}
    assert "warning: k1-seed1-0.001 is left out: diverged at step 3" in capsys.readouterr().err
    with pytest.raises(K1Error, match="no run finished"):
        execute_in_turn({diverged: "k1"}, {"k1": [1e-3]}, results, arguments)
    results["runs"][other.name] = {"failed": "diverged at step 2"}
    with pytest.raises(K1Error, match="no training on dataset 1 finished: diverged at step 2"):
        execute_in_turn({diverged: "k1"}, {"k1": [1e-3]}, results, arguments)


def test_importance_is_the_squared_gradient_of_text(tiny_model):
    row = torch.arange(9) % 37
    blocks = Dataset.from_dict({"input_ids": [row.tolist()] * 20}).with_format("torch")
    found = fisher_information(tiny_model, SimpleNamespace(blocks={"train": blocks}), SimpleNamespace(stage_seed=0))
    # Every batch is of the same row, so that all have its gradient.
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    tiny_model(input_ids=row[None], labels=row[None]).loss.backward()
    for value, parameter in zip(found, tiny_model.parameters(), strict=True):
        assert torch.allclose(value, parameter.grad.square(), rtol=1e-4, atol=1e-9)


def test_consolidation_pulls_back_as_strongly_as_new_text_pulls(tiny_model):
    parameters = list(tiny_model.parameters())
    importance = [torch.full_like(parameter, 0.5) for parameter in parameters]
    responsibility = [torch.full_like(parameter, 0.09) for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    consolidation(tiny_model, importance, responsibility, strength=4)(optimizer)
    start = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.data += 1 / 4
        parameter.grad = torch.full_like(parameter, -0.3)
    optimizer.step()
    # At a distance of 1 / strength: sqrt(0.09) against a gradient of 0.3.
    assert all(torch.allclose(p, value + 1 / 4, atol=1e-5) for p, value in zip(parameters, start, strict=True))


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
    final = load_checkpoint(trained.models_dir / ARM_FILES["k1"][-1], "k1")
    arguments = Arguments(**final.arguments)
    first, second, third = load_datasets(final.datasets, load_tokenizer(final.tokenizer), arguments)
    repeated = replace(
        third, blocks={"train": third.blocks["train"].select(list(range(len(third.blocks["train"]))) * 40)}
    )
    mixed = with_replay(repeated, [first, second], 0.05, arguments).blocks["train"]
    old = {tuple(block.tolist()) for dataset in (first, second) for block in dataset.blocks["train"]["input_ids"]}
    share = sum(tuple(block.tolist()) in old for block in mixed["input_ids"]) / len(mixed)
    assert 0.01 < share < 0.12


def test_forgetting_at_equal_learning_is_read_off_the_line_of_the_baseline():
    runs = {
        "a": record("baseline", 1e-3, 0, [4], [4.5, 3.0], [4.8, 3.4, 3.0]),
        "b": record("baseline", 2e-3, 0, [4], [5.5, 2.0], [5.8, 2.6, 2.0]),
        "c": record("k1", 1e-3, 0, [4], [4.4, 2.5], [4.6, 2.7, 2.5]),
        "d": record("k1", 9e-3, 0, [4], [4.4, 2.5], [5.6, 2.7, 2.5]),
        "e": record("ewc", 1e-3, 0, [4], [4.4, 1.5], [4.6, 2.7, 1.5]),
    }
    points = points_of(runs)
    assert new_dataset_loss(runs["c"]) == 2.5 and forgotten_nats(runs["c"]) == pytest.approx(0.4)
    # Its line at a loss of 2.5 is between 0.6 and 1.2.
    assert ratios_at_equal_learning(points["k1"][0], points["baseline"], "test") == pytest.approx([0.4 / 0.9])
    # Better learned than any run of it: no extrapolation.
    assert ratios_at_equal_learning(points["ewc"][0], points["baseline"], "test") == [None]
    assert equal_learning_table(points).rows[1:] == [["K-1", "0.001", "1", "0.44"]]
    assert best_point(points["baseline"]).learning_rate == 2e-3


def test_lines_are_interpolated_and_of_positions_those_are_drawn_that_no_other_beats():
    line = [(2.0, 10.0), (1.0, 20.0), (3.0, 0.0)]
    assert [interpolated(line, x) for x in (1.5, 3.0, 0.99, 3.01)] == [15, 0, None, None]
    assert undominated([(3, 1), (1, 3), (2, 3.5), (2, 2), (4, 1.5)]) == [(1, 3), (2, 2), (3, 1)]


def hide_peft():
    """A name that is None in sys.modules cannot be found or imported."""
    sys.modules["peft"] = None


def test_without_peft_only_the_methods_that_need_it_are_refused_and_before_any_training(tmp_path, monkeypatch):
    finished = run_script("-m k1.study", "--out", tmp_path / "out", prepare=hide_peft)
    assert_one_clear_line(finished, 1, "for LoRA and OSF and LoRA + rehearsal", "install -r requirements-dev.txt")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "peft", None)
    require_packages([name for name in METHODS if not METHODS[name].adapter])
