"""Text that a model knows, as a user has it: token ids, texts, chats or a dataset of them, made into token ids."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from k1.errors import K1Error

COLUMNS = ("input_ids", "messages", "text")
KINDS = "batches or lists of token ids, texts, chats, or a dataset with a column input_ids, messages or text"


def texts_of(known: Any, tokenizer: Any = None, seed: int = 0) -> Iterator[Tensor]:
    """Yield the token ids, (length,), of each text of `known`; of a list or a dataset in the order that `seed` draws.

    A chat is a list of {"role", "content"}. Raises `K1Error` for what is none of this,
    and for texts without a `tokenizer` of transformers, or chats without its template.
    """
    if isinstance(known, Mapping) and "input_ids" in known:
        known = [known]
    if isinstance(known, (str, Mapping)) or not isinstance(known, Iterable) and not hasattr(known, "__getitem__"):
        raise K1Error(f"known must be {KINDS}, not one {type(known).__name__}")
    items = known
    if hasattr(known, "__getitem__") and hasattr(known, "__len__"):
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
        items = (known[number] for number in order)
    # Of a processor of texts and pictures.
    inner = getattr(tokenizer, "tokenizer", None)
    for item in items:
        yield from texts_in(item, inner if callable(inner) else tokenizer)


def texts_in(item: Any, tokenizer: Any, mask: Any = None) -> Iterator[Tensor]:
    """Yield the token ids of each text in one item of what is known, see `texts_of`; padding, `mask` 0, is left out."""
    if isinstance(item, Mapping):
        column = next((name for name in COLUMNS if name in item), None)
        if column is None:
            raise K1Error(f"known must be {KINDS}; this one has {', '.join(map(str, item)) or 'no column'}")
        yield from texts_in(item[column], tokenizer, item.get("attention_mask"))
    elif isinstance(item, str) or is_chat(item):
        if tokenizer is None:
            raise K1Error(
                "known is text; give its tokenizer too: Trainer(..., processing_class=tokenizer), or tokenizer="
            )
        if isinstance(item, str):
            yield torch.tensor(tokenizer(item, verbose=False)["input_ids"], dtype=torch.long)
        elif tokenizer.chat_template is None:
            raise K1Error("known has chats, and the tokenizer has no chat template; set it, or give texts")
        else:
            yield torch.tensor(tokenizer.apply_chat_template(item, return_dict=False), dtype=torch.long)
    elif not hasattr(item, "__getitem__"):
        raise K1Error(f"known must be {KINDS}, not {type(item).__name__}s")
    elif isinstance(item, Tensor) and item.dim() == 1 or len(item) and isinstance(item[0], Integral):
        text = torch.as_tensor(item).cpu().long()
        yield text if mask is None else text[torch.as_tensor(mask).cpu() != 0]
    else:
        for number, part in enumerate(item):
            yield from texts_in(part, tokenizer, None if mask is None else mask[number])


def is_chat(item: object) -> bool:
    """Whether `item` is a list of messages."""
    return isinstance(item, Sequence) and len(item) > 0 and isinstance(item[0], Mapping) and "role" in item[0]


def beginnings(texts: Iterable[Tensor], given: int, every: int, begin: Tensor, end: Tensor, enough: int) -> Tensor:
    """The first `given` tokens of each `every` tokens of each text, until there are `enough`: (beginnings, given).

    `begin`, the token that begins a text, if the model has one, is left out. Texts that
    are shorter are put together, each with `end`, the token that ends one, after it.
    Raises `K1Error` if there is no beginning.
    """
    found, short = [], begin[:0]
    for text in texts:
        text = text[len(begin) :] if len(begin) and text[:1].equal(begin) else text
        if len(text) < given:
            short = torch.cat([short, text, end])
            if len(short) >= given:
                found.append(short[:given])
                short = begin[:0]
        found += [text[start : start + given] for start in range(0, len(text) - given + 1, every)]
        if len(found) >= enough:
            break
    if not found:
        raise K1Error(
            f"known has fewer than {given} tokens to continue; give more text or a smaller length, "
            "and no iterator that was read before"
        )
    return torch.stack(found)
