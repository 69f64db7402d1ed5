"""Reads a pretrained causal language model from a folder as `save_pretrained` writes it, and runs nothing from it.

Weights are read from safetensors alone. What the files ask for is compared with their
size before memory is taken for it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedModel

from k1.data.messages import quiet_libraries
from k1.data.tokenizer import pretrained_tokenizer
from k1.errors import K1Error
from k1.model import MOST_LAYERS, check_settings, count_parameters, empty_model
from k1.parallel import is_main_process

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SETTINGS, MAX_TOKENIZER = 2**24, 2**27  # bytes
FLOATS = {"F64", "F32", "F16", "BF16"}
OTHERS = {"BOOL", "U8", "I32", "I64"}  # masks, which older versions kept with the weights


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


def read_settings(path: Path, most: int = MAX_SETTINGS) -> dict:
    """The JSON object in the file at `path`; raises `ValueError` if there is none, or more than `most` bytes."""
    if not path.is_file():
        raise ValueError(f"it has no {path.name}")
    if path.stat().st_size > most:
        raise ValueError(f"its {path.name} is larger than {most:,} bytes")
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {path.name} is damaged") from error
    if not isinstance(settings, dict):
        raise ValueError(f"its {path.name} is damaged")
    return settings


def read_model(folder: Path, name: str) -> tuple[dict, dict[str, Tensor], dict]:
    """The configuration and the weights (in float32) of the model in `folder`, and the settings in its config.json.

    Dropout is switched off, as training must be repeatable to the bit. Raises `K1Error`, which
    calls the model `name`, where it is no causal language model, or its files are not what they should be.
    """
    with refusals(name):
        settings = read_settings(folder / "config.json")
        files = weight_files(folder)
        tensors, elements = stated_sizes(files)
        config, dropout = training_config(settings, tensors)
        if (parameters := count_parameters(empty_model(config, tensors))) > elements:
            raise ValueError(f"its configuration asks for {parameters:,} parameters, its files hold {elements:,}")
        model = fitted_model(config, read_weights(files), name)
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError("a weight is not finite")
        require_causal(model)
    if dropout and is_main_process():
        print(f"dropout of {name} is switched off: {', '.join(dropout)}", file=sys.stderr)
    return config, model.state_dict(), settings


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights; raises `ValueError` if there is none in the format safetensors."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"it has no {WEIGHTS}, and files of other formats can run code; convert it with save_pretrained"
        )
    names = sorted(set(read_settings(folder / INDEX)["weight_map"].values()))
    if not all(Path(file).name == file and (folder / file).is_file() for file in names):
        raise ValueError(f"its {INDEX} names a file that is not there")
    return [folder / file for file in names]


def stated_sizes(files: list[Path]) -> tuple[int, int]:
    """The number of tensors in `files`, and of the elements in those of floating-point numbers; reads no tensor."""
    tensors = elements = 0
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():
                part = file.get_slice(key)
                if part.get_dtype() not in FLOATS | OTHERS:
                    raise ValueError(f"its weights are of type {part.get_dtype()}; convert them to float32")
                tensors += 1
                elements += torch.Size(part.get_shape()).numel() if part.get_dtype() in FLOATS else 0
    return tensors, elements


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors in `files`, those of floating-point numbers in float32."""
    weights = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():
                tensor = file.get_tensor(key)
                weights[key] = tensor.float() if tensor.is_floating_point() else tensor
    return weights


def training_config(settings: dict, tensors: int) -> tuple[dict, list[str]]:
    """The configuration to train with, float32 and without dropout, and the settings of dropout that it switches off.

    Raises `ValueError` for what is no causal language model, or loads code.
    """
    check_settings(settings, max(MOST_LAYERS, tensors))
    settings = {key: value for key, value in settings.items() if key not in ("torch_dtype", "dtype")}
    parsed = AutoConfig.for_model(**settings)
    if type(parsed) not in MODEL_FOR_CAUSAL_LM_MAPPING or parsed.is_encoder_decoder:
        raise ValueError(f"a model of type {parsed.model_type} is no causal language model")
    config = json.loads(parsed.to_json_string(use_diff=False))
    if type(config.get("vocab_size")) is not int:
        raise ValueError("its configuration states no vocab_size; models of several kinds of input are not known")
    dropout = [key for key, value in config.items() if "drop" in key and type(value) is float and value]
    # They would end a text, and generation, before its end.
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    rest = {"dtype": "float32", "use_cache": False, "return_dict": True}
    return {**config, **dict.fromkeys(dropout, 0.0), **tokens, **rest}, dropout


def fitted_model(config: dict, weights: dict[str, Tensor], name: str) -> PreTrainedModel:
    """The model of `config` with `weights`, which may have the names of older versions of transformers.

    Raises `ValueError` if weights are missing or of another shape, and warns of those that no layer takes.
    """
    parsed = AutoConfig.for_model(**config)
    model, found = MODEL_FOR_CAUSAL_LM_MAPPING[type(parsed)].from_pretrained(
        None, config=parsed, state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    for problem, keys in (("lack", found["missing_keys"]), ("have another shape of", found["mismatched_keys"])):
        if keys:
            raise ValueError(f"its weights {problem} {', '.join(map(str, sorted(keys)))}")
    if found["unexpected_keys"] and is_main_process():
        print(f"warning: no layer of {name} takes {', '.join(sorted(found['unexpected_keys'])):.200}", file=sys.stderr)
    return model


@torch.no_grad()
def require_causal(model: PreTrainedModel) -> None:
    """Raise `ValueError` unless `model` gives each position finite logits that do not depend on later tokens."""
    rows = model.config.vocab_size
    first, second = (model.eval()(input_ids=torch.tensor([[0, 1, 0, last]])).logits[0] for last in (0, 1))
    if first.shape != (4, rows) or not first.isfinite().all():
        raise ValueError("it does not give finite logits for every token")
    if not torch.allclose(first[:-1], second[:-1], rtol=1e-3, atol=1e-4):
        raise ValueError("its predictions depend on later tokens, so it is no causal language model")


def read_tokenizer(folder: Path, name: str, settings: dict) -> Tokenizer:
    """The tokenizer in `folder`; a document ends with the token that ends a text by its files, or by `settings`.

    Raises `K1Error`, which calls the model `name`, where there is no tokenizer.json, it cannot be read, or no
    such token is named.
    """
    with refusals(name):
        content = json.dumps(read_settings(folder / "tokenizer.json", MAX_TOKENIZER))
        return pretrained_tokenizer(content, end_token(folder, settings, content))


def end_token(folder: Path, settings: dict, tokenizer_json: str) -> str:
    """The token that ends a text; raises `ValueError` if no file names one."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            named = read_settings(folder / file).get("eos_token")
            named = named.get("content") if isinstance(named, dict) else named
            if isinstance(named, str):
                return named
    number = settings.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    for token in json.loads(tokenizer_json).get("added_tokens", []):
        if number is not None and token["id"] == number:
            return token["content"]
    raise ValueError("its tokenizer names no token that ends a text (eos_token)")
