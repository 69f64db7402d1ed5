"""The transformer: a Hugging Face causal language model built from a configuration."""

import ctypes
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    StaticCache,
)  # fmt: skip

from k1.config import Arguments

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
KEPT_BYTES = 2**28


def configure_torch(threads: int | None = None) -> None:
    """Fix what the bits of a result depend on: deterministic kernels and, if given, the number of threads."""
    # cuBLAS is deterministic only with a fixed workspace, which it reads when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is filled with NaN first, which helps to find code that reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensors, where it is glibc.

    By default it hands large pieces back, and the system fills every page with
    zeros before it comes again: 5 to 10% of a step.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(option, KEPT_BYTES)


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


def static_cache(model: PreTrainedModel, length: int) -> StaticCache | None:
    """A key-value cache for `length` tokens that is not copied for every new one; None if `model` has to do without.

    Not every model can use one: some keep a state instead, under autocast (which accelerate
    can put around the forward pass) keys and values are of two kinds, and kernels of flash
    attention read the empty rest.
    """
    is_autocast = torch.is_autocast_enabled(model.device.type) or hasattr(model, "_original_forward")
    can_use = model._can_compile_fullgraph and not model._is_stateful and not is_autocast
    is_masked = model.config._attn_implementation in ("eager", "sdpa")
    return StaticCache(model.config, length) if can_use and is_masked else None


def build_model(config: dict, seed: int, device: str = "cpu") -> PreTrainedModel:
    """A model with fresh weights that depend on `config` and `seed` alone.

    The weights are drawn on the CPU from a generator of their own, so they are
    the same on every device and whatever was drawn before.
    """
    with seeded(seed):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    # What a configuration says of sampling must not reach the text that a model writes.
    model.generation_config = GenerationConfig()
    return model.to(device)


def empty_model(config: dict) -> PreTrainedModel:
    """A model of `config` that takes no memory for its parameters (they are on the device `meta`)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def known_positions(config: dict) -> int | None:
    """The longest sequence that a model of `config` knows, in tokens; None if the configuration does not say."""
    positions = getattr(AutoConfig.for_model(**config), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters, each counted once if two layers share it."""
    return sum(parameter.numel() for parameter in model.parameters())
