"""The transformer: a Hugging Face causal language model built from a configuration."""

import json
import os
import platform
from importlib.metadata import version

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedModel
from transformers.utils import logging

from k1.arguments import Arguments
from k1.parallel import join_processes

# generate() has advice on stderr for library users.
logging.set_verbosity_error()


def configure_torch(threads: int | None = None) -> None:
    """Fix what the bits of a result depend on: deterministic kernels and, where given, the number of threads.

    Started by torchrun, the process also joins the others.
    """
    # cuBLAS is deterministic only with a fixed workspace, which it reads when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    if threads is not None:
        torch.set_num_threads(threads)
    join_processes()


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that the bits of a result depend on."""
    libraries = ("torch", "transformers", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def model_config(arguments: Arguments, vocabulary_size: int) -> dict:
    """The configuration of a Llama model with untied embeddings, as plain values."""
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads,
        max_position_embeddings=arguments.seq_length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return json.loads(config.to_json_string(use_diff=False))


def build_model(config: dict, seed: int, device: str = "cpu") -> PreTrainedModel:
    """A model with fresh weights that depend on `config` and `seed` alone.

    The weights are drawn on the CPU from a generator of their own, so they are
    the same on every device and whatever was drawn before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return model.to(device)


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters, each counted once where two layers share it."""
    return sum(parameter.numel() for parameter in model.parameters())


def sample_tokens(
    model: PreTrainedModel,
    prompts: Tensor,
    new_tokens: int,
    seed: int,
    end: int,
    temperature: float = 1.0,
    top_k: int = 0,
    stop_at_end: bool = False,
) -> Tensor:
    """Continue `prompts`, (rows, length) token ids, by `new_tokens`; returns prompts and continuations.

    The sampling is seeded: the same call gives the same tokens. `temperature` 0
    takes the most probable token each time; `top_k` 0 samples from the whole
    vocabulary. With `stop_at_end` a row ends at the token `end` and is filled up
    with it; otherwise it goes on, into the next document.
    """
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=new_tokens, pad_token_id=end, eos_token_id=end if stop_at_end else None, use_cache=True,
        **sampling,
    )  # fmt: skip
    devices = [prompts.device] if prompts.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
