"""Small pretrained models as folders, of six architectures, with a tokenizer of their own."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

LENGTH, ROWS, VOCABULARY = 32, 320, 300
END = "</s>"
SHAPE = {"vocab_size": ROWS, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
POSITIONS = {"max_position_embeddings": LENGTH}
LLAMA = {**SHAPE, **POSITIONS, "intermediate_size": 40, "num_key_value_heads": 1}
# Of dropout, GPT-2 and OPT have some by default.
CONFIGS = {
    "gpt2": ("gpt2", {**SHAPE, **POSITIONS}),
    "llama": ("llama", {**LLAMA, "tie_word_embeddings": False}),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {**SHAPE, **POSITIONS, "intermediate_size": 40}),
    "opt": ("opt", {**SHAPE, **POSITIONS, "ffn_dim": 40, "word_embed_proj_dim": 24}),
    "gemma3": ("gemma3_text", {**LLAMA, "head_dim": 12}),
}


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
