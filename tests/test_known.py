"""What a model knows, in every form that a user has it in, becomes the same token ids."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from k1.errors import K1Error
from k1.known import beginnings, texts_of

WORDS = ["<pad>", "<s>", "</s>", "user:", "assistant:", *"abcdefghijkl"]
TEXTS = ["a b c d e", "f g", "h i j k l a b c"]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "a"}] for text in TEXTS]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"


def tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a word."""
    model = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, chat_template=chat_template, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


IDS = [[WORDS.index(word) for word in text.split()] for text in TEXTS]
OF_CHATS = [[3, *ids, 4, 5] for ids in IDS]
PADDED = DataCollatorWithPadding(tokenizer())
KNOWN = {
    "texts": (TEXTS, IDS),
    "chats": (CHATS, OF_CHATS),
    "lists of ids": (IDS, IDS),
    "tensors": ([torch.tensor(ids) for ids in IDS], IDS),
    "batches": ([torch.tensor(IDS[:1]), torch.tensor(IDS[1:2]), torch.tensor(IDS[2:])], IDS),
    "a table": (torch.tensor([IDS[0], IDS[0]]), [IDS[0]] * 2),
    "a padded batch": (PADDED([{"input_ids": ids} for ids in IDS]), IDS),
    "a tokenizer's lists": (dict(tokenizer()(TEXTS)), IDS),
    "dictionaries": ([{"input_ids": torch.tensor([ids])} for ids in IDS], IDS),
    "an iterator": (iter([torch.tensor([ids]) for ids in IDS]), IDS),
    "dataset of ids": (Dataset.from_dict({"input_ids": IDS}), IDS),
    "dataset of arrays": (Dataset.from_dict({"input_ids": IDS}).with_format("numpy"), IDS),
    "dataset of tensors": (Dataset.from_dict({"input_ids": IDS, "labels": IDS}).with_format("torch"), IDS),
    "dataset of texts": (Dataset.from_dict({"text": TEXTS, "source": TEXTS}), IDS),
    "dataset of chats": (Dataset.from_dict({"messages": CHATS}), OF_CHATS),
    "streamed dataset": (Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(), IDS),
    "data loader": (DataLoader([{"input_ids": ids} for ids in IDS], batch_size=2, collate_fn=PADDED), IDS),
    "data loader of texts": (DataLoader(TEXTS, batch_size=2), IDS),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_every_form_gives_the_token_ids_of_each_text(kind):
    known, expected = KNOWN[kind]
    found = list(texts_of(known, tokenizer()))
    assert sorted(text.tolist() for text in found) == sorted(expected)
    assert all(text.dtype == torch.long and text.dim() == 1 for text in found)


def test_the_order_is_drawn_by_the_seed():
    texts = [[number] for number in range(50)]
    first, again, other = ([int(text) for text in texts_of(texts, seed=seed)] for seed in (1, 1, 2))
    assert first == again != other and sorted(first) == list(range(50))


@pytest.mark.parametrize(
    ("known", "reader", "message"),
    [
        (TEXTS, None, "known is text; give its tokenizer"),
        (CHATS, None, "known is text; give its tokenizer"),
        (CHATS, tokenizer(chat_template=None), "no chat template"),
        (TEXTS[0], tokenizer(), "not one str"),
        ({"train": TEXTS}, tokenizer(), "not one dict"),
        (7, None, "not one int"),
        ([7.5], None, "not floats"),
        (Dataset.from_dict({"content": TEXTS}), tokenizer(), "input_ids, messages or text; this one has content"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(known, reader, message):
    with pytest.raises(K1Error, match=message) as raised:
        list(texts_of(known, reader))
    assert "\n" not in str(raised.value)


def rows(*texts: list[int], given: int, every: int = 100, begin=(), end=(), enough: int = 100) -> list[list[int]]:
    tensors = [torch.tensor(ids, dtype=torch.long) for ids in (*texts, list(begin), list(end))]
    return beginnings(tensors[:-2], given, every, *tensors[-2:], enough).tolist()


def test_beginnings_are_those_of_every_stretch_of_a_text():
    assert rows([*range(1, 8)], [*range(8, 11)], given=2, every=4) == [[1, 2], [5, 6], [8, 9]]
    assert rows([*range(1, 8)], [*range(8, 11)], given=2, every=4, enough=2) == [[1, 2], [5, 6]]


def test_the_token_that_begins_a_text_is_left_out():
    assert rows([1, 5, 6, 7], [5, 6], given=2, begin=[1]) == [[5, 6], [5, 6]]


def test_short_texts_are_put_together():
    assert rows([5], [6], [7, 8, 9, 10], [11], given=4, end=[2]) == [[5, 2, 6, 2], [7, 8, 9, 10]]
    with pytest.raises(K1Error, match="fewer than 4 tokens to continue"):
        rows([5], [6], given=4)
