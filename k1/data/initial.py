"""The model that stage 1 starts from: fresh weights and a trained tokenizer, or a pretrained model with its own."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from k1.config import Arguments
from k1.data.hub import download_model
from k1.data.pretrained import read_model, read_tokenizer
from k1.data.tokenizer import beginning_of_text, train_tokenizer, vocabulary_size
from k1.errors import K1Error, user_path
from k1.files import content_digest
from k1.model import build_model, known_positions, model_config
from k1.parallel import is_main_process, main_process_first

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


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
        model = build_model(self.config, self.seed)
        if self.weights is not None:
            model.load_state_dict(self.weights)
        return model.to(device)


def initial_model(init_from: str | None, arguments: Arguments, text: Iterable[str]) -> InitialModel:
    """What stage 1 starts from: the pretrained model `init_from`, or fresh weights and a tokenizer trained on `text`.

    Raises `K1Error` if the pretrained model cannot be had, is refused (see `k1.data.pretrained`), or does not
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
    if is_main_process():
        print(f"starting from {init_from}, SHA-256 {initial.start['sha256'][:12]}", file=sys.stderr)
    return initial


def load_pretrained(name: str, seed: int, revision: str = "") -> InitialModel:
    """The pretrained model in the folder `name`, or of that name on the hub, at `revision` if one is given.

    Raises `K1Error` if it cannot be had or is refused, see `k1.data.pretrained`.
    """
    folder = user_path(name)
    if folder.is_dir() and not revision:
        folder = folder.resolve()
        name = str(folder)
    elif HUB_NAME.fullmatch(name):
        with main_process_first():
            folder = download_model(name, revision or None)
        revision = folder.name
    else:
        raise K1Error(f"there is no folder {name}, and it is no name on the hub (owner/name); name another --init_from")
    config, weights, settings = read_model(folder, name)
    tokenizer = read_tokenizer(folder, name, settings)
    if vocabulary_size(tokenizer) > config["vocab_size"]:
        raise K1Error(
            f"{name} cannot be used: its tokenizer has {vocabulary_size(tokenizer)} tokens, its model knows "
            f"{config['vocab_size']}"
        )
    config["bos_token_id"] = next(iter(beginning_of_text(tokenizer)), None)
    # Of the settings as they are in the file: other versions of transformers add others.
    sha256 = content_digest({"config": json.dumps(settings), "tokenizer": tokenizer.to_str(), "weights": weights})
    return InitialModel(config, tokenizer, seed, weights, {"name": name, "revision": revision, "sha256": sha256})
