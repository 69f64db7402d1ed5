"""The transformer: a Hugging Face causal language model built from a configuration."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from k1.arguments import Arguments
from k1.parallel import join_processes


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


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from torch's generators as if they began with `seed`; afterwards they are as they were before."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def build_model(config: dict, seed: int, device: str = "cpu") -> PreTrainedModel:
    """A model with fresh weights that depend on `config` and `seed` alone.

    The weights are drawn on the CPU from a generator of their own, so they are
    the same on every device and whatever was drawn before.
    """
    with seeded(seed):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return model.to(device)


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters, each counted once where two layers share it."""
    return sum(parameter.numel() for parameter in model.parameters())
