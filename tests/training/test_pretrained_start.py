"""The scripts with --init_from: both methods start from the same model, also without training on dataset 1."""

import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from k1.checkpoints import load_checkpoint, restore_initial_model, restore_model
from k1.config import parse_training_flags
from k1.data.initial import load_pretrained
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error, UsageError
from k1.experiment import FILES
from tests.conftest import assert_one_clear_line, run_script, signed, train
from tests.pretrained import END, LENGTH, fresh_model, train_own_tokenizer, write_model

pytestmark = pytest.mark.slow

SHORT = ["--seq_length", LENGTH]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, corpora):
    """Folders of three pretrained models: tied with Conv1D, untied, and of another seed."""
    texts = [json.loads(line)["text"] for line in corpora[0].read_text().splitlines()]
    tokenizer = train_own_tokenizer(texts)
    kinds = {"gpt2": ("gpt2", 0), "gpt_neox": ("gpt_neox", 0), "other": ("gpt2", 1)}
    return {
        name: write_model(tmp_path_factory.mktemp(name), kind, tokenizer, seed) for name, (kind, seed) in kinds.items()
    }


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, corpora, folders):
    """The folder of both methods' checkpoints, and what was printed, if dataset 1 is not trained on."""
    models_dir, printed = tmp_path_factory.mktemp("untrained"), []
    for stage, corpus in enumerate(corpora, start=1):
        steps = ["--init_from", folders["gpt2"], "--max_steps", 0] if stage == 1 else ["--max_steps", 3]
        printed.append(train(f"train_k1_dataset{stage}.py", models_dir, [corpus], *SHORT, *steps))
    steps = ["--init_from", folders["gpt2"], "--max_steps", 0, 3, 3]
    printed.append(train("train_baseline_all.py", models_dir, corpora, *SHORT, *steps))
    assert [finished.returncode for finished in printed] == [0] * 4, [finished.stderr for finished in printed]
    return models_dir, printed


def test_without_steps_stage_1_is_the_pretrained_model(untrained, folders):
    models_dir, printed = untrained
    assert "dropout of" in printed[0].stderr and "starting from" in printed[0].stderr
    assert printed[0].stdout.startswith("K-1 after stage 1, not trained, as it is in ")
    k1, baseline = (load_checkpoint(models_dir / FILES[method][0], method, 1) for method in ("k1", "baseline"))
    initial = load_pretrained(str(folders["gpt2"]), seed=0)
    assert k1.start == baseline.start == initial.start and not k1.history and not baseline.history
    assert k1.arguments["max_steps"] == baseline.arguments["max_steps"] == 0
    for name, value in initial.build("cpu").state_dict().items():
        assert torch.equal(baseline.model[name], value) and torch.equal(k1.model[name], value), name
    (name,) = baseline.evaluations[0]
    assert baseline.evaluations[0][name]["test"] == baseline.initial_evaluation[name]["test"]


def test_later_stages_measure_forward_transfer_against_the_pretrained_model(untrained, folders):
    models_dir, _ = untrained
    k1, baseline = (load_checkpoint(models_dir / FILES[method][-1], method, 3) for method in ("k1", "baseline"))
    assert k1.initial_evaluation == baseline.initial_evaluation and len(k1.initial_evaluation) == 3
    assert len(baseline.evaluations[0]) == 2
    for name, splits in baseline.evaluations[0].items():
        assert splits["test"] == k1.initial_evaluation[name]["test"]
    assert len(k1.history) == len(baseline.history) == 3
    for entry in k1.history:
        assert entry["updated_fraction"] == pytest.approx(0.51, abs=0.01)
    initial = restore_initial_model(k1, "cpu")
    theirs = fresh_model("gpt2").float()
    for name, value in theirs.state_dict().items():
        assert torch.equal(initial.state_dict()[name], value), name


def test_the_report_compares_them(untrained, tmp_path):
    models_dir, _ = untrained
    flags = ["--json", tmp_path / "r.json", "--plots", tmp_path]
    finished = run_script("-m k1.report", "--models_dir", models_dir, *flags)
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    size = sum(parameter.numel() for parameter in fresh_model("gpt2").parameters())
    assert report["parameters"] == size and f"{size:,} parameters" in finished.stdout
    start = report["start"]
    # By the name of its folder, as where that lies says nothing on another machine.
    assert f"started from {os.path.basename(start['name'])}, SHA-256 {start['sha256'][:12]}" in finished.stdout
    for result in report["models"].values():
        assert result["accuracy_matrix"][0][0] == result["accuracy_matrix"][1][0]


def test_the_end_can_be_exported_and_started_from_again(untrained, tmp_path):
    models_dir, _ = untrained
    finished = run_script("-m k1.export", models_dir / "k1_final.pt", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    checkpoint = load_checkpoint(models_dir / "k1_final.pt", "k1", 3)
    own = load_tokenizer(checkpoint.tokenizer)
    text = "River water flows north."
    assert tokenizer.eos_token == END and tokenizer(text)["input_ids"] == own.encode(text, add_special_tokens=False).ids
    again = load_pretrained(str(tmp_path / "out"), seed=0)
    assert again.tokenizer.to_str() == checkpoint.tokenizer
    ids = torch.arange(LENGTH).unsqueeze(0)
    models = (
        again.build("cpu"), restore_model(checkpoint, "cpu"), AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
    )  # fmt: skip
    with torch.no_grad():
        first, *others = [model.eval()(input_ids=ids).logits for model in models]
    for logits in others:
        torch.testing.assert_close(logits, first, rtol=0, atol=1e-4)


def test_text_is_generated_as_long_as_the_model_can(untrained):
    models_dir, _ = untrained
    flags = ["--models_dir", models_dir, "--prompt", "River water", "--max_new_tokens"]
    finished = run_script("generate_k1.py", *flags, 20)
    assert finished.returncode == 0 and finished.stdout.startswith("=== prompt 1: River water\n"), finished.stderr
    assert_one_clear_line(run_script("generate_k1.py", *flags, 60), 1, f"the {LENGTH} positions of the model")


def test_with_steps_dataset_1_is_learned_from_its_weights(corpora, folders, tmp_path):
    flags = [*SHORT, "--init_from", folders["gpt_neox"], "--max_steps", 4]
    finished = train("train_k1_dataset1.py", tmp_path, [corpora[0]], *flags)
    assert finished.returncode == 0, finished.stderr
    first = load_checkpoint(tmp_path / "k1_dataset1.pt", "k1", 1)
    assert len(first.history) == 4 and first.evaluations[0] != first.initial_evaluation
    initial = restore_initial_model(first, "cpu").state_dict()
    untouched = first.model["gpt_neox.embed_in.weight"] == initial["gpt_neox.embed_in.weight"]
    # What a window left alone in each of four steps.
    assert 0.01 < untouched.float().mean() < 0.2


def test_a_finished_stage_from_another_model_is_not_gone_on_from(untrained, corpora, folders, tmp_path):
    models_dir, _ = untrained
    shutil.copy(models_dir / "baseline_dataset1.pt", tmp_path)
    flags = [*SHORT, "--rehearsal", 0.25, "--init_from", folders["other"], "--max_steps", 0, 3, 3]
    finished = train("train_baseline_all.py", tmp_path, corpora, *flags)
    assert finished.returncode == 1 and "has pretrained model" in finished.stderr.splitlines()[-1], finished.stderr


def test_a_pretrained_model_that_has_changed_since_is_one_clear_line(untrained, folders, tmp_path):
    content = torch.load(untrained[0] / "k1_dataset1.pt", weights_only=True)
    content["start"]["name"] = str(folders["other"])
    torch.save(signed(content), tmp_path / "k1_dataset1.pt")
    checkpoint = load_checkpoint(tmp_path / "k1_dataset1.pt", "k1", 1)
    with pytest.raises(K1Error, match="is no longer the model that stage 1 started from"):
        restore_initial_model(checkpoint, "cpu")


def test_steps_can_be_given_for_each_stage():
    flags = parse_training_flags("", "baseline", ["--init_from", "a", "--max_steps", "0", "7", "9"])
    assert [flags.resolve(stage).max_steps for stage in (1, 2, 3)] == [0, 7, 9]
    flags = parse_training_flags("", "k1", ["--init_from", "a", "--max_steps", "0"])
    first = flags.resolve(1)
    with pytest.raises(UsageError, match="--init_from is for stage 1"):
        flags.resolve(2, first.as_dict())
