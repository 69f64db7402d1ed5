"""Any causal language model of transformers rehearses, any model of torch takes sparse updates."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

import k1
from k1.errors import K1Error

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "sliding_window": 6,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2 = {
    "vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA2 = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "state_size": 8,
    "n_groups": 1, "chunk_size": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LANGUAGE_MODELS = {
    "llama untied": ("llama", SIZES | {"tie_word_embeddings": False}),
    "llama tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    **{name: (name, SIZES) for name in ("qwen3", "gemma3_text", "mistral", "phi3", "olmo2")},
    **{name: (name, SIZES | EXPERTS) for name in ("mixtral", "qwen3_moe", "gpt_oss")},
    "gpt2": ("gpt2", GPT2),
    "mamba2": ("mamba2", MAMBA2),
}
KNOWN = torch.randint(3, 50, (8, 16), generator=torch.Generator().manual_seed(0))


def step_and_count(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> int:
    """Take a step; returns how many single parameters it changed."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return sum(int((old != new).sum()) for old, new in zip(before, model.parameters()))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_causal_language_model_rehearses(name):
    kind, sizes = LANGUAGE_MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    k1.sparse_updates(optimizer)
    rehearsal = k1.Rehearsal(model, KNOWN, sequences=4, length=12, interval=1)
    model.eval()  # without dropout, which GPT-2 has
    budget = round(0.51 * sum(parameter.numel() for parameter in model.parameters()))
    divergences = []
    for _ in range(2):
        divergence = rehearsal.loss(model)
        loss = model(input_ids=KNOWN, labels=KNOWN).loss + 3 * divergence
        assert 0 < step_and_count(model, optimizer, loss) <= budget
        divergences.append(float(divergence.detach()))
    assert divergences[0] == pytest.approx(0, abs=1e-5) and divergences[1] > 1e-4
    assert rehearsal.predicted_forgetting(model)[0] > 1e-4


T5 = {"vocab_size": 50, "d_ff": 16, "num_layers": 1, "d_model": 16, "d_kv": 8, "num_heads": 2}
OTHERS = {
    "T5": (
        lambda: T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **T5)),
        lambda model: model(input_ids=KNOWN, labels=KNOWN).loss,
    ),
    "plain": (lambda: torch.nn.Linear(5, 7), lambda model: model(torch.ones(2, 5)).square().mean()),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_model_takes_sparse_updates_and_is_told_that_it_cannot_rehearse(name):
    build, loss_of = OTHERS[name]
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    k1.sparse_updates(optimizer)
    budget = round(0.51 * sum(parameter.numel() for parameter in model.parameters()))
    for _ in range(2):
        assert 0 < step_and_count(model, optimizer, loss_of(model)) <= budget
    with pytest.raises(K1Error, match="for causal language models of transformers, not") as raised:
        k1.Rehearsal(model, KNOWN)
    assert "\n" not in str(raised.value)
