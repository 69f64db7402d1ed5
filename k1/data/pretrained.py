"""Reads a pretrained causal language model of transformers from a folder, and runs no code of it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from k1.data.messages import quiet_libraries
from k1.data.tokenizer import pretrained_tokenizer
from k1.errors import K1Error
from k1.parallel import is_main_process


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turn whatever the libraries raise on files that make no sense into a `K1Error` of one line; keep them quiet."""
    try:
        with quiet_libraries():
            yield
    except (K1Error, MemoryError):
        raise
    except Exception as error:  # what it is depends on where the damage is
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise K1Error(f"{name} cannot be used as a pretrained model: {lines[-1].strip():.200}") from error


def read_json(path: Path) -> dict:
    """The JSON object in the file at `path`; raises `ValueError` if there is none."""
    if not path.is_file():
        raise ValueError(f"it has no {path.name}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"its {path.name} is damaged") from error


def read_model(folder: Path, name: str) -> tuple[dict, dict[str, Tensor], dict]:
    """The configuration and the weights (in float32) of the model in `folder`, and the settings in its config.json.

    Dropout is switched off, as training must be repeatable to the bit. Raises `K1Error`, which
    calls the model `name`, if it is no causal language model, or its files are not what they should be.
    """
    with refusals(name):
        settings = read_json(folder / "config.json")
        config, dropout = training_config(folder)
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
        if found["missing_keys"]:
            raise ValueError(f"its weights lack {', '.join(sorted(found['missing_keys']))}")
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError("a weight is not finite")
        require_causal(model)
    if found["unexpected_keys"] and is_main_process():
        print(f"warning: no layer of {name} takes {', '.join(sorted(found['unexpected_keys'])):.200}", file=sys.stderr)
    if dropout and is_main_process():
        print(f"dropout of {name} is switched off: {', '.join(dropout)}", file=sys.stderr)
    return json.loads(config.to_json_string(use_diff=False)), model.state_dict(), settings


def training_config(folder: Path) -> tuple[PretrainedConfig, list[str]]:
    """The configuration to train with, float32 and without dropout, and the settings of dropout that it switches off.

    Raises `ValueError` for what is no causal language model.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise ValueError(f"a model of type {config.model_type} is no causal language model")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("its weights are quantized; save it without quantization_config")
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise ValueError("its configuration states no vocab_size; models of several kinds of input are not known")
    dropout = [key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float) and value]
    # Tokens that end a text would end generation before its end.
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    rest = {"dtype": "float32", "use_cache": False, "return_dict": True}
    for key, value in {**dict.fromkeys(dropout, 0.0), **tokens, **rest}.items():
        setattr(config, key, value)
    return config, dropout


@torch.no_grad()
def require_causal(model: PreTrainedModel) -> None:
    """Raise `ValueError` unless the logits that `model` gives a position do not depend on later tokens."""
    first, second = (model.eval()(input_ids=torch.tensor([[0, 1, 0, last]])).logits[0] for last in (0, 1))
    if not torch.allclose(first[:-1], second[:-1], rtol=1e-3, atol=1e-4):
        raise ValueError("its predictions depend on later tokens, so it is no causal language model")


def read_tokenizer(folder: Path, name: str, settings: dict) -> Tokenizer:
    """The tokenizer in `folder`; a document ends with the token that ends a text by its files, or by `settings`.

    Raises `K1Error`, which calls the model `name`, if there is no tokenizer.json, it cannot be read, or no
    such token is named.
    """
    with refusals(name):
        content = json.dumps(read_json(folder / "tokenizer.json"))
        return pretrained_tokenizer(content, end_token(folder, settings, content))


def end_token(folder: Path, settings: dict, tokenizer_json: str) -> str:
    """The token that ends a text; raises `ValueError` if no file names one."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            named = read_json(folder / file).get("eos_token")
            named = named.get("content") if isinstance(named, dict) else named
            if isinstance(named, str):
                return named
    number = settings.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    for token in json.loads(tokenizer_json).get("added_tokens", []):
        if number is not None and token["id"] == number:
            return token["content"]
    raise ValueError("its tokenizer names no token that ends a text (eos_token)")
