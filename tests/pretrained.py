"""Small pretrained models as folders, of five architectures, with a tokenizer of their own."""

import json
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
