"""The tokenizer: byte-level BPE, trained on dataset 1 only, or that of a pretrained model.

Later datasets must not shape what came before them. The post-processor of a
tokenizer says which token ends a document, and which one begins a text, if any;
a tokenizer without is of `train_tokenizer`.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

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
    return as_plain_text_encoder(tokenizer)


def pretrained_tokenizer(tokenizer_json: str, end: str) -> Tokenizer:
    """The tokenizer of a pretrained model from its JSON, with `end` as the token that ends a document.

    Its post-processor then says so, and the token that it put before every text still stands there.
    Raises `ValueError` if `end` is none of its tokens.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.token_to_id(end) is None:
        raise ValueError(f"its end-of-document token {end!r:.40} is none of its tokens")
    tokens, plain = (tokenizer.encode("a", add_special_tokens=added).tokens for added in (True, False))
    front = tokens[: tokens.index(plain[0])] if plain else []
    if not plain or len(front) > 1:
        raise ValueError("its tokenizer knows no letters, or puts several tokens before a text")
    template = [*front, "$A", end]
    special = [(token, tokenizer.token_to_id(token)) for token in {*template} - {"$A"}]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return as_plain_text_encoder(tokenizer)


def end_of_document(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    if tokenizer.post_processor is None:
        return tokenizer.token_to_id(END_OF_DOCUMENT)
    return tokenizer.encode("").ids[-1]


def beginning_of_text(tokenizer: Tokenizer) -> list[int]:
    """The token that a pretrained model expects before every text, as a list of its id; empty if it expects none."""
    return tokenizer.encode("").ids[:-1]


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: how many rows an embedding needs."""
    return 1 + max(tokenizer.get_vocab().values())


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer that a checkpoint keeps as JSON."""
    return as_plain_text_encoder(Tokenizer.from_str(tokenizer_json))


def as_plain_text_encoder(tokenizer: Tokenizer) -> Tokenizer:
    """Encode "<|endoftext|>" inside a document as the characters it consists of."""
    tokenizer.encode_special_tokens = True
    return tokenizer
