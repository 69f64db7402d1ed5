"""The model that stage 1 starts from: fresh weights and a trained tokenizer, or a pretrained model with its own."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from k1.config import Arguments
from k1.data.messages import refusals, say_once
from k1.data.tokenizer import beginning_of_text, load_tokenizer, train_tokenizer, vocabulary_size
from k1.errors import K1Error, user_path
from k1.files import content_digest
from k1.model import build_model, known_positions, model_config
from k1.parallel import main_process_first

# Of a model on the hub; none of them could hold code.
MODEL_FILES = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model*.safetensors*",
]  # fmt: skip


@dataclass(frozen=True)
class InitialModel:
    """An architecture, its tokenizer, and the weights; they are fresh if `weights` is None.

    `start` says which pretrained model it is, None for fresh weights: its `name` (the path of a folder, or the
    name on the hub), `revision` (the commit on the hub, empty for a folder) and `sha256` of its configuration,
    weights and tokenizer.
    """

    config: dict
    tokenizer: Tokenizer
    seed: int
    weights: dict[str, Tensor] | None = None
    start: dict[str, str] | None = None

    def build(self, device: str) -> PreTrainedModel:
        """A new model with the initial weights, the same each time."""
        model = build_model(self.config, self.seed, device)
        if self.weights is not None:
            model.load_state_dict(self.weights)
        return model


def initial_model(init_from: str | None, arguments: Arguments, text: Iterable[str]) -> InitialModel:
    """What stage 1 starts from: the pretrained model `init_from`, or fresh weights and a tokenizer trained on `text`.

    Raises `K1Error` if the pretrained model cannot be had, is refused (see `load_pretrained`), or does not
    know sequences as long as `arguments.seq_length`.
    """
    if init_from is None:
        tokenizer = train_tokenizer(text, arguments.vocabulary_size)
        return InitialModel(model_config(arguments, tokenizer.get_vocab_size()), tokenizer, arguments.seed)
    initial = load_pretrained(init_from, arguments.seed)
    positions = known_positions(initial.config)
    if positions is not None and arguments.seq_length > positions:
        raise K1Error(
            f"--seq_length {arguments.seq_length} is more than the {positions} positions that {init_from} knows; "
            f"lower it"
        )
    if initial.start:
        say_once(f"starting from {init_from}, SHA-256 {initial.start['sha256'][:12]}")
    return initial


def load_pretrained(name: str, seed: int, revision: str = "") -> InitialModel:
    """Read the model of transformers in the folder `name`, or of that name on the hub, at `revision` if one is given.

    No code of it is run. Its weights are float32, and dropout is switched off, as training must be repeatable to the
    bit. Raises `K1Error` if it cannot be had, if it is no causal language model, if its files are not what they
    should be, or if it has no tokenizer.json or no token that ends a text.
    """
    folder = user_path(name)
    if folder.is_dir() and not revision:
        folder = folder.resolve()
        name = str(folder)
    else:
        problem = f"there is no folder {name}, and no model of this name can be had from the hub"
        with main_process_first(), refusals(problem, "name another --init_from"):
            folder = Path(
                huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=MODEL_FILES)
            )
        revision = folder.name
    with refusals(f"{name} cannot be used as a pretrained model", "name another --init_from"):
        settings = json.loads((folder / "config.json").read_bytes())
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError("its weights are quantized; save it without quantization_config")
        dropout = [
            key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float) and value
        ]
        # Tokens that end a text would end generation before its end.
        tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        rest = {"dtype": "float32", "use_cache": False, "return_dict": True}
        for key, value in {**dict.fromkeys(dropout, 0.0), **tokens, **rest}.items():
            setattr(config, key, value)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
        model, found = loaded  # its annotation knows of no second value
        if found["missing_keys"]:
            raise ValueError(f"its weights lack {', '.join(sorted(found['missing_keys']))}")
        weights = model.state_dict()
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("a weight is not finite")
        require_causal(model)
        tokenizer = read_tokenizer(folder, settings)
        if (size := vocabulary_size(tokenizer)) > config.vocab_size:
            raise ValueError(f"its tokenizer has {size} tokens, its model knows {config.vocab_size}")
    if found["unexpected_keys"]:
        say_once(f"warning: no layer of {name} takes {', '.join(sorted(found['unexpected_keys'])):.200}")
    if dropout:
        say_once(f"dropout of {name} is switched off: {', '.join(dropout)}")
    config.bos_token_id = next(iter(beginning_of_text(tokenizer)), None)
    # Of the settings as they are in the file: other versions of transformers add others.
    sha256 = content_digest({"config": json.dumps(settings), "tokenizer": tokenizer.to_str(), "weights": weights})
    start = {"name": name, "revision": revision, "sha256": sha256}
    return InitialModel(json.loads(config.to_json_string(use_diff=False)), tokenizer, seed, weights, start)


@torch.no_grad()
def require_causal(model: PreTrainedModel) -> None:
    """Raise `ValueError` unless the logits that `model` gives a position do not depend on later tokens."""
    first, second = (model.eval()(input_ids=torch.tensor([[0, 1, 0, last]])).logits[0] for last in (0, 1))
    if not torch.allclose(first[:-1], second[:-1], rtol=1e-3, atol=1e-4):
        raise ValueError("its predictions depend on later tokens, so it is no causal language model")


def read_tokenizer(folder: Path, settings: dict) -> Tokenizer:
    """Read the tokenizer in `folder`; a document ends with the token that ends a text by its files, or by `settings`.

    Its post-processor then says so, and the token that it put before every text still stands there.
    Raises `ValueError` if no such token is named, and what the libraries raise if it cannot be read.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    named = PreTrainedTokenizerFast.from_pretrained(folder)
    numbers = settings.get("eos_token_id")
    number = numbers[0] if isinstance(numbers, list) and numbers else numbers
    end = named.eos_token or (isinstance(number, int) and tokenizer.id_to_token(number))
    if not end or tokenizer.token_to_id(end) is None:
        raise ValueError("its tokenizer names no token that ends a text (eos_token)")
    tokens, plain = (tokenizer.encode("a", add_special_tokens=added).tokens for added in (True, False))
    front = tokens[: tokens.index(plain[0])] if plain else []
    if not plain or len(front) > 1:
        raise ValueError("its tokenizer knows no letters, or puts several tokens before a text")
    special = [(token, tokenizer.token_to_id(token)) for token in {*front, end}]
    tokenizer.post_processor = processors.TemplateProcessing(single=[*front, "$A", end], special_tokens=special)
    return load_tokenizer(tokenizer.to_str())
