"""Byte-level BPE, trained on dataset 1 only: later datasets must not shape what came before them."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from k1.errors import K1Error

END_OF_DOCUMENT = "<|endoftext|>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 characters that stand for bytes


def train_tokenizer(documents: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on `documents`.

    The vocabulary is smaller than `vocabulary_size` where the text has too few
    distinct pairs to merge; it always holds the 256 bytes and the end-of-document
    token, so any text can be encoded.
    """
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return as_plain_text_encoder(tokenizer)


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer that a checkpoint keeps as JSON.

    It is built anew from its merges alone, and raises `K1Error` where the JSON is not
    exactly that of the result: the library, which can panic, sees nothing that
    `train_tokenizer` could not have made.
    """
    try:
        content = json.loads(tokenizer_json)
        merges = [(first, second) for first, second in content["model"]["merges"]]
        tokens = [END_OF_DOCUMENT, *BYTES, *(first + second for first, second in merges)]
        vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
        if not all(first in vocabulary and second in vocabulary for first, second in merges):
            raise ValueError("a merge of unknown tokens")
        tokenizer = byte_level(models.BPE(vocabulary, merges))
        tokenizer.add_special_tokens([END_OF_DOCUMENT])
        is_same = json.loads(tokenizer.to_str()) == content
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise K1Error("the tokenizer in the checkpoint cannot be read; train again with --overwrite") from error
    if not is_same:
        raise K1Error(
            "the tokenizer in the checkpoint is not one that train_tokenizer makes; train again with --overwrite"
        )
    return as_plain_text_encoder(tokenizer)


def byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def as_plain_text_encoder(tokenizer: Tokenizer) -> Tokenizer:
    """Encode "<|endoftext|>" inside a document as the characters it consists of."""
    tokenizer.encode_special_tokens = True
    return tokenizer
