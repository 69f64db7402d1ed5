"""The tokenizer: byte-level BPE, trained on dataset 1 only, or that of a pretrained model.

Later datasets must not shape what came before them. The post-processor of a
tokenizer says which token ends a document; one without is of `train_tokenizer`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from k1.errors import K1Error

END_OF_DOCUMENT = "<|endoftext|>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 characters that stand for bytes


def train_tokenizer(documents: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on `documents`.

    The vocabulary is smaller than `vocabulary_size` if the text has too few
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


def pretrained_tokenizer(tokenizer_json: str, end: str | None = None) -> Tokenizer:
    """The tokenizer of a pretrained model from its JSON, with `end` as the token that ends a document.

    If `end` is None its post-processor, as this function has set it, says which. Raises `ValueError` if
    the JSON is no tokenizer, or `end` none of its tokens.
    """
    with panics_as_errors():
        tokenizer = Tokenizer.from_str(tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if end is not None:
            number = tokenizer.token_to_id(end)
            if number is None:
                raise ValueError(f"its end-of-document token {end!r:.40} is none of its tokens")
            tokenizer.post_processor = processors.TemplateProcessing(single=["$A", end], special_tokens=[(end, number)])
        if tokenizer.id_to_token(end_of_document(tokenizer)) is None:
            raise ValueError("its end-of-document token is none of its tokens")
    return as_plain_text_encoder(tokenizer)


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn whatever the library raises on JSON that is no tokenizer, a panic too, into `ValueError`."""
    # A panic first writes a trace to stderr, from below Python.
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"its tokenizer cannot be read ({error!s:.100})") from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def end_of_document(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    if tokenizer.post_processor is None:
        return tokenizer.token_to_id(END_OF_DOCUMENT)
    return tokenizer.encode("").ids[-1]


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: how many rows an embedding needs."""
    return 1 + max(tokenizer.get_vocab().values())


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer that a checkpoint keeps as JSON; raises `K1Error` if it cannot be read.

    One of `train_tokenizer` is built again from its merges alone, and the JSON must be
    exactly that of the result: the library, which can panic, sees nothing that
    `train_tokenizer` could not have made.
    """
    try:
        content = json.loads(tokenizer_json)
        if content["post_processor"] is not None:
            if content["post_processor"]["type"] != "TemplateProcessing":
                raise ValueError("a post-processor that says of no token that it ends a document")
            return pretrained_tokenizer(tokenizer_json)
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
