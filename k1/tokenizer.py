"""Byte-level BPE, trained on dataset 1 only: later datasets must not shape what came before them."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from k1.errors import K1Error

END_OF_DOCUMENT = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on `documents`.

    The vocabulary is smaller than `vocabulary_size` where the text has too few
    distinct pairs to merge; it always holds the 256 bytes and the end-of-document
    token, so any text can be encoded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return as_plain_text_encoder(tokenizer)


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer that a checkpoint keeps as JSON; raises `K1Error` if the JSON is not one."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the Rust library raises bare Exception
        raise K1Error(f"the tokenizer in the checkpoint cannot be read ({error}); train again with --overwrite")
    if tokenizer.token_to_id(END_OF_DOCUMENT) is None:
        raise K1Error(f"the tokenizer in the checkpoint lacks {END_OF_DOCUMENT}; train again with --overwrite")
    return as_plain_text_encoder(tokenizer)


def as_plain_text_encoder(tokenizer: Tokenizer) -> Tokenizer:
    """Encode "<|endoftext|>" inside a document as the characters it consists of."""
    tokenizer.encode_special_tokens = True
    return tokenizer
