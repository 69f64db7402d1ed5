"""The study runs every method through the loop of the scripts, records each run, and resumes where it was stopped."""

import json
import sys
from dataclasses import make_dataclass
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from k1.checkpoints import load_checkpoint
from k1.config import PRESETS
from k1.errors import K1Error
from k1.experiment import ARM_FILES
from k1.report.metrics import accuracy_matrix, backward_transfer, own_and_end
from k1.study.grid import execute_all, learn_later_datasets
from k1.study.methods import (
    GRIDS,
    METHODS,
    consolidation,
    fisher_information,
    low_rank_adapter,
    mixture,
    orthogonal_subspace,
    require_packages,
)
from tests.conftest import assert_one_clear_line, run_script, train_all, write_corpus
from tests.study.records import record

pytestmark = [pytest.mark.xdist_group("study"), pytest.mark.slow]

# Methods of all three grids.
STUDIED = (
    "baseline", "k1", "baseline_rehearsal", "ewc", "lora", "replay", "joint", "momentum_0.1_0.25", "windows_0.51_0.25",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, corpora):
    out = tmp_path_factory.mktemp("study")
    flags = ["--grid", "stream", "--preset", "smoke", "--seeds", 0, "--dataset_names", *corpora, "--out", out]
    flags += ["--learning_rates", 1e-2, "--methods", *STUDIED]
    finished = run_script("-m k1.study", *flags)
    assert finished.returncode == 0, finished.stderr
    return flags, out, finished


@pytest.fixture(scope="module")
def runs(study):
    return json.loads((study[1] / "results.json").read_text())["runs"]


def test_all_methods_of_the_study_continue_one_model(runs):
    assert len({tuple(run["loss_matrix"][1]) for run in runs.values() if run["method"] in GRIDS["study"][:-1]}) == 1


def test_every_run_is_recorded_and_shown(study, runs, corpora):
    _, out, finished = study
    dials = {"ewc": ["-strength1.7", "-strength5"], "lora": ["-rank4", "-rank16"]}
    assert set(runs) == {f"{name}-seed0-0.01{dial}" for name in STUDIED for dial in dials.get(name, [""])}
    for method, share in (("baseline", 1), ("k1", 0.51), ("momentum_0.1_0.25", 0.1)):
        assert runs[f"{method}-seed0-0.01"]["updated_fraction"] == pytest.approx(share, abs=2e-3)
    for method in STUDIED:
        assert f"| {METHODS[method].label} " in finished.stdout
    assert all(run["datasets"] == [path.name for path in corpora] for run in runs.values())
    assert finished.stdout == (out / "results.md").read_text()
    for picture in ("frontier.png", "accuracy.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def test_what_holds_the_model_makes_it_forget_less(runs):
    forgotten = {name.replace("-seed0-0.01", ""): backward_transfer(run["loss_matrix"]) for name, run in runs.items()}
    dense = forgotten["baseline"]
    assert max(forgotten[name] for name in ("k1", "baseline_rehearsal", "momentum_0.1_0.25")) < dense / 2
    assert max(forgotten[name] for name in ("replay", "ewc-strength5", "ewc-strength1.7")) < dense
    assert forgotten["joint"] == 0


def test_wise_ft_keeps_a_share_of_the_change_of_each_stage(study):
    _, out, _ = study
    settings = json.loads((out / "results.json").read_text())["settings"]
    run = {"method": "wise_ft", "learning_rate": 1e-2, "setting": {"keep": 0}}
    _, one, two, three = learn_later_datasets(run, out / "first" / "baseline-seed0.pt", settings)["loss_matrix"]
    assert one[0] == two[0] == three[0]


def test_a_recorded_run_is_not_repeated_and_a_missing_one_is(study):
    flags, out, first = study
    recorded = json.loads((out / "results.json").read_text())
    removed = recorded["runs"].pop("baseline-seed0-0.01")
    recorded["runs"]["joint-seed0-0.01"]["loss_matrix"][-1] = [9.999] * 3
    (out / "results.json").write_text(json.dumps(recorded))
    second = run_script("-m k1.study", *flags)
    assert second.stdout.count("-> 9.999") == 3
    again = json.loads((out / "results.json").read_text())["runs"]["baseline-seed0-0.01"]
    assert again["validation_loss_matrix"] == removed["validation_loss_matrix"]


@pytest.mark.parametrize(("method", "script"), [("windows_0.51_0.25", "k1"), ("baseline", "baseline")])
def test_the_study_computes_what_the_scripts_compute(runs, trained_fully, method, script):
    final = load_checkpoint(trained_fully / ARM_FILES[script][-1], script)
    for score in ("loss", "accuracy"):
        computed, expected = runs[f"{method}-seed0-0.01"][f"{score}_matrix"], accuracy_matrix(final, score)
        # The scripts also evaluate each dataset before its stage.
        for stage in range(1, 4):
            assert computed[stage] == [*expected[stage][:stage], *[None] * (3 - stage)]


@pytest.fixture(scope="module")
def trained_fully(corpora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_all(folder, corpora)
    return folder


def test_four_datasets_are_learned_one_after_another(corpora, tmp_path):
    """The last is of words that no other has; the rates are the preset's."""
    words = "cloud rain storm thunder wind frost hail fog sunny humid breeze drizzle sleet gale".split()
    path = write_corpus(tmp_path, "weather", words)
    flags = ["--grid", "stream", "--methods", "k1", "--preset", "smoke", "--seeds", 0, "--jobs", 1, "--out", tmp_path]
    flags += ["--dataset_names", *corpora, path]
    finished = run_script("-m k1.study", *flags)
    assert finished.returncode == 0, finished.stderr
    (run,) = json.loads((tmp_path / "results.json").read_text())["runs"].values()
    # Each dataset is learned in its own stage: an even guess among 512 tokens costs 6.2 nats.
    assert run["datasets"][-1] == path.name and max(own_and_end(run["loss_matrix"])[0]) < 4
    assert run["learning_rate"] == PRESETS["smoke"].learning_rate["k1"][1]
    # Other text under the same name.
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert_one_clear_line(run_script("-m k1.study", *flags), 1, "was recorded with another", "text; choose another")


@pytest.mark.parametrize(
    ("flags", "status", "fragment"),
    [
        (["--dataset_names", "code"], 2, "takes at least two names"),
        (["--dataset_names", "code", "science", "code"], 1, "'code' comes twice"),
        (["--dataset_names", "nothing.jsonl", "code"], 1, "nothing.jsonl: no such file"),
        (["--learning_rates", "0"], 2, "--learning_rates: must be a positive number, not 0"),
        (["--seeds", "-1"], 2, "--seeds: must be at least 0"),
    ],
    ids=["one", "one twice", "missing", "rate of zero", "seed below zero"],
)
def test_bad_input_is_one_line_before_any_training(tmp_path, flags, status, fragment):
    finished = run_script("-m k1.study", "--preset", "smoke", *flags, "--out", tmp_path / "out")
    assert_one_clear_line(finished, status, fragment)
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverged_is_named_and_left_out(tmp_path, capsys):
    """All is recorded already, so that nothing is trained."""
    fine, diverged = ({"method": "k1", "seed": seed, "learning_rate": 1e-3, "setting": {}} for seed in (0, 1))
    records = {"k1-seed0-0.001": record("k1", 1e-3, 0, [4.0]), "k1-seed1-0.001": {"failed": "diverged at step 3"}}
    results = {"settings": {}, "runs": records}
    assert execute_all([fine, diverged], results, tmp_path, 1) == [records["k1-seed0-0.001"]]
    assert "warning: k1-seed1-0.001 is left out: diverged at step 3" in capsys.readouterr().err
    with pytest.raises(K1Error, match="no run finished"):
        execute_all([diverged], results, tmp_path, 1)


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


def test_a_mixture_has_its_share_of_old_blocks():
    blocks_alone = make_dataclass("BlocksAlone", ["blocks"])
    new, old = (blocks_alone({"train": Dataset.from_dict({"input_ids": [[number]] * 2_000})}) for number in (0, 1))
    mixed = mixture([new, old], [0.9, 0.1], SimpleNamespace(stage_seed=0)).blocks["train"]
    assert 0.08 < float(mixed["input_ids"][:].float().mean()) < 0.12


def hide_peft():
    """A name that is None in sys.modules cannot be found or imported."""
    sys.modules["peft"] = None


def test_without_peft_only_the_methods_that_need_it_are_refused_and_before_any_training(tmp_path, monkeypatch):
    finished = run_script("-m k1.study", "--out", tmp_path / "out", prepare=hide_peft)
    assert_one_clear_line(finished, 1, "lora, osf, lora_rehearsal, osf_rehearsal need peft; run pip install -r")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "peft", None)
    require_packages(GRIDS["map"] + GRIDS["stream"])
