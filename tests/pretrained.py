"""Small pretrained models as folders, of five architectures, with a tokenizer of their own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

LENGTH, ROWS, VOCABULARY = 32, 320, 300
END = "</s>"
SHAPE = {"vocab_size": ROWS, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
POSITIONS = {"max_position_embeddings": LENGTH}
LLAMA = {**SHAPE, **POSITIONS, "intermediate_size": 40, "num_key_value_heads": 1}
GPT2 = {"vocab_size": ROWS, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
OPT = {**SHAPE, **POSITIONS, "ffn_dim": 40, "word_embed_proj_dim": 24}
# Of dropout, GPT-2 and OPT have some by default.
CONFIGS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "llama": ("llama", {**LLAMA, "tie_word_embeddings": False}),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {**SHAPE, **POSITIONS, "intermediate_size": 40}),
    "opt": ("opt", OPT),
}
TIED = {"gpt2", "llama-tied", "qwen2", "opt"}


def train_own_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose special tokens are others than those of the project, and which truncates and pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", END, "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def fresh_model(kind: str, seed: int = 0) -> torch.nn.Module:
    """A model of `CONFIGS` whose biases and normalisations are not what they start as, and whose logits vary."""
    model_type, settings = CONFIGS[kind]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **settings, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return model.eval()


def write_model(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    """Save a model of `CONFIGS` and the tokenizer in `folder`, as transformers does."""
    fresh_model(kind, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


def index_elsewhere(folder: Path) -> None:
    """An index that names a file outside of the folder."""
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    content = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def long_header(folder: Path) -> None:
    """Weights whose header claims to be longer than the file."""
    path = folder / "model.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def code_beside(folder: Path) -> None:
    """Code that a configuration names, which makes a file when it is run."""
    (folder / "model.py").write_text("open(__file__ + '.was-run', 'w')\n")
    in_config(auto_map={"AutoModelForCausalLM": "model.Model", "AutoConfig": "model.Config"})(folder)


# What is done to the folder of a Llama, and what the error then says.
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "a configuration of a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged"),
    "nesting": (lambda folder: (folder / "config.json").write_text("[" * 10**6), "config.json is damaged"),
    "code": (code_beside, "the setting auto_map"),
    "a quantization": (in_config(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
    "a kernel of the hub": (in_config(_attn_implementation_internal="owner/name"), "loads code"),
    "an unknown model": (in_config(model_type="no such"), "cannot be used as a pretrained model"),
    "no causal model": (in_config(model_type="t5"), "cannot be used as a pretrained model"),
    "an encoder": (in_config(model_type="bert"), "cannot be used as a pretrained model"),
    "10^9 layers": (in_config(num_hidden_layers=10**9), "the setting num_hidden_layers"),
    "900 layers": (in_config(num_hidden_layers=900), "asks for more parameters"),
    "3 layers": (in_config(num_hidden_layers=3), "parameters, its files hold"),
    "a hidden size of 10^6": (in_config(hidden_size=10**6), "parameters, its files hold"),
    "10^9 tokens": (in_config(vocab_size=10**9), "parameters, its files hold"),
    "10^30 heads": (in_config(num_attention_heads=10**30), "the setting num_attention_heads"),
    "a size of text": (in_config(hidden_size="24"), "cannot be used as a pretrained model"),
    "another shape": (in_config(intermediate_size=32), "cannot be used as a pretrained model"),
    "an unknown activation": (in_config(hidden_act="os.system"), "cannot be used as a pretrained model"),
    "fewer rows than tokens": (in_config(vocab_size=VOCABULARY - 40), "cannot be used"),
    "pickled weights": (pickled, "files of other formats can run code"),
    "weights elsewhere": (index_elsewhere, "names a file that is not there"),
    "weights cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "cannot be used as a pretrained model",
    ),
    "a long header": (long_header, "cannot be used as a pretrained model"),
    "a weight missing": (in_weights(lambda weights: weights.pop("model.norm.weight")), "cannot be used"),
    "a weight of integers": (
        in_weights(lambda weights: weights.update({"model.norm.weight": torch.ones(24, dtype=torch.int8)})), "I8",
    ),
    "a weight that is not finite": (
        in_weights(lambda weights: weights["model.norm.weight"].fill_(float("nan"))), "a weight is not finite",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    "a tokenizer that panics": (
        in_json("tokenizer.json", lambda content: content["model"].update(continuing_subword_prefix="abcdefgh")),
        "its tokenizer cannot be read",
    ),
    "an end that is no token": (
        in_json("tokenizer_config.json", lambda content: content.update(eos_token="<no such token>")),
        "none of its tokens",
    ),
    "no end": (
        lambda folder: [
            in_json("tokenizer_config.json", lambda content: content.pop("eos_token"))(folder),
            in_config(eos_token_id=None)(folder),
        ],
        "names no token that ends a text",
    ),
}  # fmt: skip
