"""Pretrained models: read as they are, whatever the architecture, and refused with one line if they are not."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM

from k1.config import settings_of
from k1.data.initial import initial_model, load_pretrained
from k1.data.loader import DataLoader
from k1.data.tokenizer import beginning_of_text, end_of_document, load_tokenizer, vocabulary_size
from k1.errors import K1Error
from k1.model import count_parameters
from k1.report.generation import generate
from k1.report.quality import token_stream
from tests.pretrained import CONFIGS, END, LENGTH, ROWS, VOCABULARY, fresh_model, train_own_tokenizer, write_model


@pytest.fixture(scope="module")
def tokenizer(corpora):
    texts = [json.loads(line)["text"] for line in corpora[0].read_text().splitlines()]
    return train_own_tokenizer(texts)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """kind -> folder of a pretrained model."""
    return {kind: write_model(tmp_path_factory.mktemp(kind), kind, tokenizer) for kind in CONFIGS}


@pytest.fixture
def llama(folders, tmp_path):
    """A copy of the folder of a Llama, to damage."""
    return shutil.copytree(folders["llama"], tmp_path / "llama")


def ids(rows=4, seed=0):
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=ids(seed=9)).logits


def arguments_with(length=LENGTH):
    return settings_of("k1", "smoke", seq_length=length, threads=1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pretrained_model_is_read_as_transformers_reads_it(kind, folders):
    theirs = AutoModelForCausalLM.from_pretrained(folders[kind]).eval()
    initial = load_pretrained(str(folders[kind]), seed=0)
    ours = initial.build("cpu")
    assert theirs(input_ids=ids(seed=9)).logits.std() > 0.1
    # Without dropout, also in train mode.
    torch.testing.assert_close(logits_of(ours.train()), logits_of(theirs), rtol=0, atol=1e-4)
    assert torch.equal(logits_of(ours.train()), logits_of(ours.eval()))
    assert count_parameters(ours) == count_parameters(theirs)
    assert initial.start == {"name": str(folders[kind]), "revision": "", "sha256": initial.start["sha256"]}
    assert load_pretrained(str(folders[kind]), seed=5).start == initial.start
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), initial.build("cpu").parameters()))


def test_weights_in_bfloat16_in_shards_and_under_old_names_are_read(folders, tmp_path, tokenizer):
    fresh_model("gpt2").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = load_pretrained(str(tmp_path), seed=0).build("cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    whole = load_pretrained(str(folders["gpt2"]), seed=0).build("cpu")
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.bfloat16().float()), name
    # Models on the hub have names without the first part, and masks among the weights.
    old = shutil.copytree(folders["gpt2"], tmp_path / "old")
    weights = {name.removeprefix("transformer."): v for name, v in load_file(old / "model.safetensors").items()}
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}, old / "model.safetensors")
    assert torch.equal(logits_of(load_pretrained(str(old), seed=0).build("cpu")), logits_of(whole))


def test_text_is_read_whole_and_ends_with_the_end_of_the_model_s_own_tokenizer(folders, corpora, tokenizer):
    ours = load_pretrained(str(folders["llama"]), seed=0).tokenizer
    assert ours.id_to_token(end_of_document(ours)) == END and vocabulary_size(ours) == VOCABULARY < ROWS
    text = "River water flows, </s> and more than eight tokens of it."
    assert ours.decode(ours.encode(text, add_special_tokens=False).ids) == text
    stored = load_tokenizer(ours.to_str())
    assert stored.to_str() == ours.to_str()
    assert stored.encode(text, add_special_tokens=False).ids == ours.encode(text, add_special_tokens=False).ids
    loader = DataLoader(str(corpora[0]), arguments_with())
    blocks = loader.tokenize(stored).blocks["train"]["input_ids"]
    documents = list(loader.text("train"))
    assert (torch.stack(list(blocks)) == end_of_document(ours)).sum() in range(len(documents) - 3, len(documents) + 1)


def test_the_token_that_a_model_expects_before_a_text_is_before_all_that_it_reads(llama, tokenizer, corpora):
    """As Gemma's tokenizer puts it there: in blocks and in prompts."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(llama)
    initial = load_pretrained(str(llama), seed=0)
    plain = load_tokenizer(initial.tokenizer.to_str())
    assert (beginning_of_text(plain), plain.id_to_token(end_of_document(plain))) == ([1], END)
    dataset = DataLoader(str(corpora[0]), arguments_with()).tokenize(plain)
    for split in ("train", "test"):
        rows = [row["input_ids"] for row in dataset.blocks[split]]
        assert all(len(row) <= LENGTH and row[0] == 1 and (row[1:] != 1).all() for row in rows)
        stream = token_stream(dataset, split, 10**6).tolist()
        documents = plain.encode_batch(dataset.documents[split]["text"], add_special_tokens=False)
        text = [token for document in documents for token in (*document.ids, end_of_document(plain))]
        assert stream == text[: len(stream)] and len(text) - len(stream) < (LENGTH if split == "train" else 2)
    model = initial.build("cpu")
    seen = []
    model.register_forward_pre_hook(lambda _, inputs, named: seen.append(named["input_ids"]), with_kwargs=True)
    generate(model, plain, [[5, 6, 7]], 2, 0, 0, seed=0)
    assert seen[0].tolist() == [[1, 5, 6, 7]]


def in_config(**settings: object) -> Callable[[Path], object]:
    """A change of settings in config.json."""
    return in_json("config.json", lambda content: content.update(settings))


def in_json(name: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def in_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """A change of the tensors in model.safetensors."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


def pickled(folder: Path) -> None:
    """Weights that are a pickle, as older models have them."""
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def code_beside(folder: Path) -> None:
    """Code that a configuration names for a model that transformers does not know; it makes a file when it is run."""
    (folder / "model.py").write_text("open(__file__ + '.was-run', 'w')\n")
    auto_map = {"AutoModelForCausalLM": "model.Model", "AutoConfig": "model.Config"}
    in_config(auto_map=auto_map, model_type="own")(folder)


# What is done to the folder of a Llama, and what the error then says.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "No such file or directory"),
    "code": (code_beside, "cannot be used as a pretrained model"),
    "a quantization": (in_config(quantization_config={"quant_method": "bitsandbytes"}), "quantiz"),
    "no causal model": (in_config(model_type="t5"), "for this kind of AutoModel: AutoModelForCausalLM"),
    "pickled weights": (pickled, "cannot be used as a pretrained model"),
    "weights cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "cannot be used as a pretrained model",
    ),
    "a weight missing": (in_weights(lambda weights: weights.pop("model.norm.weight")), "lack model.norm.weight"),
    "a weight that is not finite": (
        in_weights(lambda weights: weights["model.norm.weight"].fill_(float("nan"))), "a weight is not finite",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "No such file or directory"),
    "no end": (
        lambda folder: [
            in_json("tokenizer_config.json", lambda content: content.pop("eos_token"))(folder),
            in_config(eos_token_id=None)(folder),
        ],
        "names no token that ends a text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_refused_with_one_clear_line(kind, llama, capfd):
    damage, message = DAMAGES[kind]
    damage(llama)
    with pytest.raises(K1Error) as refused:
        load_pretrained(str(llama), seed=0)
    assert message in str(refused.value) and str(llama) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    assert not list(llama.glob("*.was-run"))


def test_a_model_that_looks_ahead_is_refused(folders, tmp_path, tokenizer):
    shape = {"vocab_size": ROWS, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", **shape, intermediate_size=40)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(K1Error, match="depend on later tokens"):
        load_pretrained(str(tmp_path), seed=0)


def test_weights_that_no_layer_takes_are_a_warning(llama, capsys):
    in_config(num_hidden_layers=1)(llama)
    load_pretrained(str(llama), seed=0)
    assert "warning: no layer of" in capsys.readouterr().err


def test_longer_sequences_than_the_model_knows_are_refused(folders):
    arguments = arguments_with(LENGTH + 1)
    with pytest.raises(K1Error, match=f"--seq_length {LENGTH + 1} is more than the {LENGTH} positions"):
        initial_model(str(folders["gpt2"]), arguments, [])


def test_what_is_neither_a_folder_nor_a_name_on_the_hub_is_refused():
    with pytest.raises(K1Error, match="there is no folder /no/such"):
        load_pretrained("/no/such", seed=0)
