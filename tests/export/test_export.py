"""An exported folder opens with transformers and is the same model and the same tokenizer."""

import json
import os

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from k1.checkpoints import load_checkpoint, restore_model, save_checkpoint
from k1.data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from k1.errors import K1Error
from k1.export.card import accuracy_table
from k1.export.folder import export, pretrained_tokenizer
from k1.files import write_folder_atomically
from k1.model import build_model
from tests.conftest import assert_one_clear_line, run_script

FILES = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def token_ids(vocabulary, rows=3, length=16):
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["k1_final.pt", "baseline_dataset1.pt"])
def exported(request, trained, tmp_path_factory):
    """A checkpoint, and the folder that the command line wrote of it."""
    path, folder = trained.models_dir / request.param, tmp_path_factory.mktemp("export") / "model"
    finished = run_script("-m k1.export", path, folder)
    assert (finished.status, finished.stdout) == (0, ""), finished.stderr
    assert finished.stderr.splitlines()[-1] == f"wrote {folder}"
    return load_checkpoint(path), folder


def assert_same_logits(folder, model, vocabulary):
    opened = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = token_ids(vocabulary)
    with torch.no_grad():
        expected, found = (m(input_ids=ids).logits for m in (model.eval(), opened))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_folder_is_complete_and_its_model_is_ours(exported):
    checkpoint, folder = exported
    assert set(os.listdir(folder)) == FILES and os.listdir(folder.parent) == [folder.name]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) <= set(checkpoint.model)
    assert_same_logits(folder, restore_model(checkpoint, "cpu"), checkpoint.model_config["vocab_size"])


def test_the_folder_generates(exported):
    checkpoint, folder = exported
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    end = load_tokenizer(checkpoint.tokenizer).token_to_id(END_OF_DOCUMENT)
    config = GenerationConfig.from_pretrained(folder)
    assert config.eos_token_id == config.pad_token_id == config.bos_token_id == model.config.eos_token_id == end
    # An embedding of padding would never be trained.
    assert model.config.pad_token_id is None and model.get_input_embeddings().padding_idx is None
    prompts = tokenizer(["River water", "Bread"], padding=True, padding_side="left", return_tensors="pt")
    written = model.generate(**prompts, max_new_tokens=5)
    assert written.shape[0] == 2 and written.shape[1] > prompts["input_ids"].shape[1]


def test_the_code_on_the_card_runs(exported, monkeypatch, capsys):
    _, folder = exported
    monkeypatch.chdir(folder.parent)
    code = ModelCard.load(folder / "README.md").text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["prompt"]["input_ids"][0, 0] == names["tokenizer"].bos_token_id
    assert "Once" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tokenizers(trained, tmp_path_factory):
    """Ours, and the same one after transformers has written and read it."""
    checkpoint = load_checkpoint(trained.models_dir / "k1_final.pt")
    folder = tmp_path_factory.mktemp("tokenizer")
    pretrained_tokenizer(load_tokenizer(checkpoint.tokenizer), 128).save_pretrained(folder)
    return load_tokenizer(checkpoint.tokenizer), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
@example(text="  a<|endoftext|>b\r\n")
def test_any_text_has_the_same_tokens_and_comes_back(tokenizers, text):
    ours, opened = tokenizers
    ids = ours.encode(text, add_special_tokens=False).ids
    assert opened(text)["input_ids"] == opened.encode(text, add_special_tokens=False) == ids
    assert opened.decode(ids) == ours.decode(ids, skip_special_tokens=False) == text


def test_the_end_of_a_document_is_a_token_of_its_own_that_nothing_adds(tokenizers):
    ours, opened = tokenizers
    end = ours.token_to_id(END_OF_DOCUMENT)
    assert opened.eos_token_id == opened.bos_token_id == opened.pad_token_id == end
    assert end not in opened("a<|endoftext|>b")["input_ids"] and end not in opened("a")["input_ids"]
    assert opened.decode([end]) == END_OF_DOCUMENT and opened.decode([end], skip_special_tokens=True) == ""
    assert opened.model_max_length == 128


LLAMA = {
    "model_type": "llama", "hidden_size": 12, "intermediate_size": 17, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 128}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_models_of_other_kinds(trained, tmp_path, architecture, tied):
    checkpoint = load_checkpoint(trained.models_dir / "k1_final.pt")
    vocabulary = load_tokenizer(checkpoint.tokenizer).get_vocab_size()
    checkpoint.model_config = {**architecture, "vocab_size": vocabulary, "tie_word_embeddings": tied}
    model = build_model(checkpoint.model_config, seed=0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    checkpoint.model = model.state_dict()
    save_checkpoint(tmp_path / "k1_final.pt", checkpoint)
    export(load_checkpoint(tmp_path / "k1_final.pt"), tmp_path / "model")
    assert_same_logits(tmp_path / "model", model, vocabulary)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) == tied


def test_the_card_tells_of_the_run_and_of_no_folder(exported, trained):
    checkpoint, folder = exported
    card = ModelCard.load(folder / "README.md")
    text = " ".join(card.text.split())
    for dataset in checkpoint.datasets:
        assert dataset["fingerprint"] in text and f"{dataset['tokens']['train']:,}" in text
    assert checkpoint.sha256 in text and checkpoint.versions["torch"] in text
    for name in checkpoint.arguments:
        assert f"| {name} |" in text
    last = checkpoint.evaluations[-1]
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {
        (name.rpartition("/")[2], metric): last[name]["test"][metric]
        for name in last
        for metric in ("accuracy", "perplexity")
    }
    assert accuracy_table(checkpoint) in card.text
    assert len(accuracy_table(checkpoint).splitlines()) == 3 + checkpoint.stage
    assert str(trained.corpora[0].parent) not in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["file", "folder with a file", "no parent"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder with a file":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target = tmp_path / "missing" / "out"
    before = sorted(tmp_path.rglob("*"))
    finished = run_script("-m k1.export", tmp_path / "k1_final.pt", target)
    is_missing = kind == "no parent"
    fragment = "does not exist; make it first" if is_missing else "is not an empty folder; name a new one"
    assert_one_clear_line(finished, 1, fragment)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_cannot_be_read_is_one_line_and_leaves_nothing(tmp_path):
    finished = run_script("-m k1.export", tmp_path / "k1_final.pt", tmp_path / "out")
    assert_one_clear_line(finished, 1, "does not exist; run train_k1_dataset3.py first")
    assert os.listdir(tmp_path) == []


def test_a_failed_export_leaves_nothing(trained, tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def full_disk(self, place, *_, **__):
        (place / "half").write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full_disk)
    with pytest.raises(K1Error, match="cannot write .*No space left"):
        export(load_checkpoint(trained.models_dir / "k1_final.pt"), folder)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_fills_meanwhile_is_not_replaced(tmp_path):
    def write(place):
        (place / "new").write_text("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(K1Error, match="cannot write"):
        write_folder_atomically(tmp_path / "out", write)
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_empty_folder_is_filled(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(load_checkpoint(trained.models_dir / "baseline_final.pt"), tmp_path)
    assert set(os.listdir(tmp_path)) == FILES
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is True
