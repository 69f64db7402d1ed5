"""Splits, fingerprints, packing and order."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from k1.config import settings_of
from k1.data.batches import batches_in_order, batches_of_blocks
from k1.data.cache import SPLITS
from k1.data.loader import DataLoader, load_datasets, split_documents
from k1.data.tokenizer import END_OF_DOCUMENT, load_tokenizer, train_tokenizer
from k1.errors import K1Error


@pytest.fixture
def arguments():
    return settings_of("k1", "smoke", data_source="bundled", seq_length=16)


def as_splits(**splits):
    return DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in splits.items()})


def texts_of(splits):
    return {split: list(splits[split]["text"]) for split in SPLITS}


@given(st.lists(st.text(min_size=1), min_size=3, max_size=80), st.randoms())
@settings(max_examples=100, deadline=None)
def test_no_document_is_in_two_splits_and_none_is_lost(documents, random):
    if len(set(documents)) < 3:
        with pytest.raises(K1Error, match="needs at least 3"):
            split_documents(as_splits(train=documents), "x")
        return
    texts = texts_of(split_documents(as_splits(train=documents), "x"))
    together = [text for split in SPLITS for text in texts[split]]
    assert sorted(together) == sorted(set(documents))
    assert all(texts.values())
    held_out = max(1, round(0.05 * len(set(documents))))
    assert len(texts["validation"]) == len(texts["test"]) == held_out
    # The choice depends on the texts, not on the order they come in.
    random.shuffle(documents)
    again = texts_of(split_documents(as_splits(train=documents), "x"))
    assert again["validation"] == texts["validation"] and again["test"] == texts["test"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            dict(train=["a", "b", "c", "c"], validation=["b", "v"], test=["v", "t"]),
            dict(train=["a", "c"], validation=["b"], test=["t", "v"]),
        ),
        (dict(train=["a", "b"], validation=["v"]), dict(train=["a"], validation=["v"], test=["b"])),
    ],
    ids=["all", "no test"],
)
def test_splits_of_the_source_are_kept_cleaned_of_what_is_held_out_and_filled(source, expected):
    texts = texts_of(split_documents(as_splits(**source), "x"))
    assert {split: sorted(found) for split, found in texts.items()} == expected


def test_a_split_that_holds_out_much_of_the_text_is_said(capsys):
    short = [f"document {number}" for number in range(100)]
    split_documents(as_splits(train=short, test=["a test"]), "short")
    assert capsys.readouterr().err == ""
    split_documents(as_splits(train=short, test=["a long test " * 100]), "long")
    assert capsys.readouterr().err == "long: split test holds out 52% of the text\n"


def test_text_of_only_held_out_documents_is_refused():
    with pytest.raises(K1Error, match="no training document"):
        split_documents(as_splits(train=["v", "t"], validation=["v"], test=["t", "u"]), "x")


def test_blocks_hold_every_token_of_the_documents_in_order(corpora, arguments):
    loader = DataLoader(str(corpora[0]), arguments)
    tokenizer = train_tokenizer(loader.text("train"), 300)
    dataset = loader.tokenize(tokenizer)
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    for split in SPLITS:
        expected = [i for text in loader.text(split) for i in [*tokenizer.encode(text).ids, end]]
        rows = [row.tolist() for row in dataset.blocks[split][:]["input_ids"]]
        packed = [token for row in rows for token in row]
        assert all(len(row) == 16 for row in rows[:-1])
        if split == "train":
            assert packed == expected[: len(expected) // 16 * 16]
        else:
            assert packed == expected or packed == expected[:-1]
        assert dataset.tokens[split] == len(packed)


def test_a_changed_text_is_not_the_one_that_a_checkpoint_was_trained_with(tmp_path, arguments):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"text": f"Document {i} says something about {i * i}."}) for i in range(40)]
    path.write_text("\n".join(lines))
    first = DataLoader(str(path), arguments)
    tokenizer = train_tokenizer(first.text("train"), 300)
    record = first.tokenize(tokenizer).record()
    assert DataLoader(str(path), arguments).fingerprint == first.fingerprint
    path.write_text("\n".join([*lines[:-1], json.dumps({"text": "Something else."})]))
    with pytest.raises(K1Error, match="not the one the checkpoint was trained with"):
        load_datasets([record], tokenizer, arguments)


def test_too_little_training_text_for_one_block(tmp_path, arguments):
    path = tmp_path / "short.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "two", "three")))
    loader = DataLoader(str(path), replace(arguments, seq_length=128))
    with pytest.raises(K1Error, match="fewer than 128 tokens"):
        loader.tokenize(train_tokenizer(loader.text("train"), 300))


def blocks_of(count):
    return Dataset.from_dict({"input_ids": [[i, i] for i in range(count)]}).with_format("torch")


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_each_epoch_is_a_seeded_permutation(count, batch_size, seed):
    def order(seed):
        batches = islice(batches_of_blocks(blocks_of(count), batch_size, seed), 3 * count)
        return torch.cat(list(batches))[:, 0].tolist()

    indices = order(seed)
    for epoch in range(3):
        assert sorted(indices[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert indices == order(seed)
    if count > 20:
        assert indices != order(seed + 1)


@given(st.integers(0, 40), st.integers(0, 7), st.integers(8, 400))
@settings(max_examples=50, deadline=None)
def test_held_out_blocks_are_read_once_up_to_the_limit(whole, tail, max_tokens):
    rows = [[7] * 8] * whole + ([[7] * tail] if tail > 1 else [])
    if not rows:
        return
    batches = list(batches_in_order(Dataset.from_dict({"input_ids": rows}).with_format("torch"), 8, max_tokens))
    read = [length for batch in batches for length in [batch.shape[1]] * batch.shape[0]]
    assert read == [len(row) for row in rows[: max(1, max_tokens // 8)]]


def test_any_text_survives_the_tokenizer():
    tokenizer = train_tokenizer(["plain words only"], 300)

    @given(st.text())
    @settings(max_examples=100, deadline=None)
    def round_trip(text):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_to_id(END_OF_DOCUMENT) not in ids

    round_trip()
    ids = load_tokenizer(tokenizer.to_str()).encode(END_OF_DOCUMENT).ids
    assert tokenizer.token_to_id(END_OF_DOCUMENT) not in ids
