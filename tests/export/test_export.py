"""An exported folder opens with transformers and is the same model and the same tokenizer."""

import json
import os
import re

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from k1.checkpoints import load_checkpoint, restore_model
from k1.data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from k1.errors import K1Error
from k1.export import export
from tests.conftest import assert_one_clear_line, run_script
from tests.pretrained import fresh_model

FILES = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A checkpoint, and the folder that the command line wrote of it."""
    path, folder = trained.models_dir / "k1_final.pt", tmp_path_factory.mktemp("export") / "model"
    finished = run_script("-m k1.export", path, folder)
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr
    assert finished.stderr.splitlines()[-1] == f"wrote {folder}"
    return load_checkpoint(path), folder


def assert_same_logits(folder, model, vocabulary):
    opened = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, vocabulary, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = (m(input_ids=ids).logits for m in (model.eval(), opened))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    return opened


def test_the_folder_is_complete_and_its_model_is_ours(exported):
    checkpoint, folder = exported
    assert set(os.listdir(folder)) == FILES and os.listdir(folder.parent) == [folder.name]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) <= set(checkpoint.model)
    assert_same_logits(folder, restore_model(checkpoint, "cpu"), checkpoint.model_config["vocab_size"])


@pytest.fixture(scope="module")
def tokenizers(exported):
    """Ours, and the same one after transformers has written and read it."""
    checkpoint, folder = exported
    return load_tokenizer(checkpoint.tokenizer), AutoTokenizer.from_pretrained(folder)


def test_the_code_on_the_card_runs(exported, monkeypatch, capsys):
    _, folder = exported
    monkeypatch.chdir(folder.parent)
    code = ModelCard.load(folder / "README.md").text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["prompt"]["input_ids"][0, 0] == names["tokenizer"].bos_token_id
    assert "Once" in capsys.readouterr().out


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
@example(text="  a<|endoftext|>b\r\n")
def test_any_text_has_the_same_tokens_and_comes_back(tokenizers, text):
    ours, opened = tokenizers
    ids = ours.encode(text, add_special_tokens=False).ids
    assert opened(text)["input_ids"] == opened.encode(text, add_special_tokens=False) == ids
    assert opened.decode(ids) == ours.decode(ids, skip_special_tokens=False) == text


def test_the_end_of_a_document_is_a_token_of_its_own_that_nothing_adds(exported, tokenizers):
    checkpoint, folder = exported
    ours, opened = tokenizers
    end, config = ours.token_to_id(END_OF_DOCUMENT), GenerationConfig.from_pretrained(folder)
    for found in (opened, config):
        assert found.eos_token_id == found.bos_token_id == found.pad_token_id == end
    assert end not in opened("a<|endoftext|>b")["input_ids"] and end not in opened("a")["input_ids"]
    assert opened.decode([end]) == END_OF_DOCUMENT and opened.decode([end], skip_special_tokens=True) == ""
    assert opened.model_max_length == checkpoint.arguments["seq_length"]
    # An embedding of padding would never be trained.
    config = AutoConfig.from_pretrained(folder)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (end, end, None) and config.use_cache


@pytest.mark.parametrize(("kind", "is_tied"), [("llama-tied", True), ("gpt_neox", False)])
def test_models_of_other_kinds(trained, tmp_path, kind, is_tied):
    checkpoint, model = load_checkpoint(trained.models_dir / "k1_final.pt"), fresh_model(kind)
    vocabulary = load_tokenizer(checkpoint.tokenizer).get_vocab_size()
    model.resize_token_embeddings(vocabulary)
    checkpoint.model_config, checkpoint.model = json.loads(model.config.to_json_string(False)), model.state_dict()
    export(checkpoint, tmp_path / "model")
    opened = assert_same_logits(tmp_path / "model", model, vocabulary)
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) == is_tied


def test_the_card_tells_of_the_run_and_of_no_folder(exported, trained):
    checkpoint, folder = exported
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.tags == ["k1", "continual-learning"]
    text = " ".join(card.text.split())
    for dataset in checkpoint.datasets:
        assert f"| {dataset['tokens']['train']:,} | `{dataset['fingerprint']}` |" in text
    assert f"`{checkpoint.sha256}`" in text and f"| torch | {checkpoint.versions['torch']} |" in text
    assert all(f"| {name} | " in text for name in checkpoint.arguments)
    shown = [re.split(r" *\| *", line) for line in card.text.splitlines() if line.startswith("| rivers.jsonl ")][0]
    evaluations = [checkpoint.initial_evaluation, *checkpoint.evaluations]
    scores = [row[checkpoint.datasets[0]["name"]]["test"]["accuracy"] for row in evaluations]
    assert shown == ["", "rivers.jsonl", *(f"{100 * score:.1f}" for score in scores), ""]
    assert str(trained.corpora[0].parent) not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("target", "fragment"),
    [
        ("file", "file exists already and is not an empty folder; name a new one"),
        ("full", "full exists already and is not an empty folder; name a new one"),
        ("missing/out", "missing does not exist; make it first"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, target, fragment):
    (tmp_path / "full").mkdir()
    for file in ("file", "full/mine"):
        (tmp_path / file).write_text("mine")
    finished = run_script("-m k1.export", tmp_path / "k1_final.pt", tmp_path / target)
    assert_one_clear_line(finished, 1, fragment)
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "file", "mine"}


def test_a_failed_export_leaves_nothing(trained, tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def full_disk(self, place, *_, **__):
        (place / "half").write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full_disk)
    with pytest.raises(K1Error, match="cannot write .*No space left"):
        export(load_checkpoint(trained.models_dir / "k1_final.pt"), folder)
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_is_filled(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(load_checkpoint(trained.models_dir / "baseline_final.pt"), tmp_path)
    assert set(os.listdir(tmp_path)) == FILES
