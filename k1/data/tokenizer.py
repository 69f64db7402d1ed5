"""The tokenizer: byte-level BPE, trained on dataset 1 only, or that of a pretrained model.

Later datasets must not shape what came before them. The post-processor of a
tokenizer says which token ends a document, and which one begins a text, if any;
a tokenizer without is of `train_tokenizer`.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_DOCUMENT = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on `documents`.

    The vocabulary is smaller than `vocabulary_size` if the text has too few
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
    return load_tokenizer(tokenizer.to_str())


def end_of_document(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    if tokenizer.post_processor is None:
        return tokenizer.get_vocab()[END_OF_DOCUMENT]
    return tokenizer.encode("").ids[-1]


def beginning_of_text(tokenizer: Tokenizer) -> list[int]:
    """The token that a pretrained model expects before every text, as a list of its id; empty if it expects none."""
    return tokenizer.encode("").ids[:-1]


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: how many rows an embedding needs."""
    return 1 + max(tokenizer.get_vocab().values())


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer that a checkpoint keeps as JSON; "<|endoftext|>" inside a document is the characters it has."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer
