"""What tests of local data share: files with the same two texts in each format, and how they are loaded."""

import json

import pyarrow as pa
import pytest

from k1.data.sources import load_documents
from k1.errors import K1Error
from tests.data.hub import jsonl, parquet

TWO = ["first\nsecond line", "  indented \u00e9\u2028"]
FILES = {
    **{f"a{end}": jsonl(*({"text": text} for text in TWO)) for end in (".JSONL", ".ndjson", ".ldjson", ".jsonlines")},
    "a.jsonl": jsonl(*({"text": text, "n": 1} for text in TWO)),
    "a.json": json.dumps([{"body": text} for text in TWO], indent=1).encode(),
    "list.json": json.dumps(TWO).encode(),
    "lines.json": jsonl(*({"text": text} for text in TWO)),
    "a.csv": 'id,text\n1,"first\nsecond line"\n2,  indented \u00e9\u2028\n'.encode(),
    "a.tsv": 'id\tprose\n1\t"first\nsecond line"\n2\t  indented \u00e9\u2028\n'.encode(),
    "a.parquet": parquet(text=TWO, content=["x", "y"]),
    "a.pq": parquet(**{"document text": TWO}),
    "odd [1]*?.parquet": parquet(text=pa.array(TWO, pa.large_string())),
    "dictionary.parquet": parquet(text=pa.array(TWO).dictionary_encode()),
}


def load(path, **options):
    """The texts of each split."""
    documents, source = load_documents(str(path), **options)
    assert source == "local"
    return {split: documents[split]["text"][:] for split in documents}


def texts(path, **options):
    """The texts, all of split train."""
    [(split, found)] = load(path, **options).items()
    assert split == "train"
    return found


def failure(name, *arguments):
    """The one line of the `K1Error` that loading ends with."""
    with pytest.raises(K1Error) as caught:
        load_documents(str(name), *arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
