"""Tests of k1.data.readers: a file of each format, read or refused."""

import gzip
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k1.data import cache
from tests.data.hub import jsonl, parquet
from tests.data.loading import FILES, TWO, failure, texts


@pytest.mark.parametrize("name", FILES)
def test_table_file(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert texts(tmp_path / name) == TWO
    assert texts(tmp_path / name, max_documents=1) == TWO[:1]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.tex", "a.py", "a.unknown", "README"])
def test_text_file_is_one_document(tmp_path, name):
    (tmp_path / name).write_bytes("\ufeffcaf\u00e9\r\n\r\nend\n".encode())
    assert texts(tmp_path / name) == ["caf\u00e9\n\nend\n"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_jsonl_round_trip(documents):
    documents += ["a\r\nb\rc\u2028d\u2029e\x85f\x1cg\x00h", "end"]
    with tempfile.TemporaryDirectory() as folder:
        for name, ascii_only in (("a.jsonl", True), ("b.jsonl", False)):
            lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in documents]
            Path(folder, name).write_text("".join(lines), encoding="utf-8", newline="")
            assert texts(Path(folder, name)) == [text for text in documents if text.strip()]


def test_blank_and_null_documents_are_dropped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": None}, {"text": " \n\t"}, {"text": "kept"}, {"text": ""}))
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,\n2,NA\n")
    assert texts(tmp_path / "a.jsonl", max_documents=1) == ["kept"]
    assert texts(tmp_path / "a.csv") == ["NA"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_changed_file_is_read_anew(tmp_path, name):
    write = {
        "a.txt": str.encode,
        "a.jsonl": lambda text: jsonl({"text": text}),
        "a.csv": lambda text: f"text\n{text}\n".encode(),
        "a.parquet": lambda text: parquet(text=[text]),
    }[name]
    for text in ("one", "two"):
        (tmp_path / name).write_bytes(write(text))
        os.utime(tmp_path / name, (0, 0))  # the same size and time, as a cache would see it
        assert texts(tmp_path / name) == [text]


NO_DOCUMENT = {
    **{f"empty{suffix}": b"" for suffix in (".txt", ".jsonl", ".json", ".csv", ".parquet")},
    **{f"blank{suffix}": b" \n\n\t\n" for suffix in (".txt", ".jsonl", ".json", ".csv")},
    "none.parquet": parquet(text=pa.array([None, " "])),
    "null.parquet": parquet(text=pa.nulls(2)),
    "null.jsonl": jsonl({"text": None}),
    "list.json": b"[]",
    "header.csv": b"id,text\n",
    "empty.jsonl.gz": gzip.compress(b"", mtime=0),
}


@pytest.mark.parametrize("name", NO_DOCUMENT)
def test_no_document(tmp_path, name):
    (tmp_path / name).write_bytes(NO_DOCUMENT[name])
    message = failure(tmp_path / name)
    assert str(tmp_path / name) in message
    assert "no non-empty document" in message or name == "blank.csv"


BAD_FILES = {
    "bytes.txt": (b"caf\xe9 au lait", "byte 3"),
    "zip.unknown": (b"PK\x03\x04\xff\xfe", "byte 4"),
    "bytes.jsonl": (b'{"text": "caf\xe9"}\n', "UTF-8"),
    "bytes.csv": (b"id,text\n1,caf\xe9\n", "UTF-8"),
    "comma.jsonl": (b'{"text": "a"}\n{"text": "b"\n', "cannot be read as json"),
    "word.jsonl": (b"hello there\n", "cannot be read as json"),
    "string.jsonl": (b'{"text": "a"}\n"b"\n', "cannot be read as json"),
    "deep.json": (b"[" * 100_000, "cannot be read as json"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "cannot be read as json"),
    "cut.jsonl.gz": (gzip.compress(FILES["a.jsonl"], mtime=0)[:-12], "cannot be read as json"),
    "plain.jsonl.gz": (FILES["a.jsonl"], "cannot be read as json"),
    "fields.csv": (b"id,text\n1,a\n2,b,c\n", "cannot be read as csv"),
    "quote.csv": (b'id,text\n1,"a\n2,b\n', "cannot be read as csv"),
    "cut.parquet": (FILES["a.parquet"][:-20], "cannot be read as parquet"),
    "word.parquet": (b"hello there, this is no parquet", "cannot be read as parquet"),
    "number.jsonl": (jsonl({"text": 5}), 'column "text" holds no text'),
    "mixed.jsonl": (jsonl({"text": "a"}, {"text": 5}), 'column "text" holds no text'),
    "list.parquet": (parquet(text=[["a"]]), 'column "text" holds no text'),
    "columns.jsonl": (jsonl({"title": "a", "body": "b"}), 'title, body; rename the one with the documents to "text"'),
    "columns.csv": (b"id,n\n1,2\n", "id, n; rename"),
    "columns.parquet": (parquet(a=["x"], b=["y"]), "a, b; rename"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path, name, capfd):
    data, expected = BAD_FILES[name]
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / name
    path.write_bytes(data)
    for source in (path, path.parent):
        message = failure(source)
        assert str(path) in message and expected in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_permission_denied(name):
    # Not below tmp_path: there the parents, too, would be closed to another user.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, name)
        path.write_bytes(FILES.get(name, b"text"))
        path.chmod(0)
        os.chmod(cache.scratch_folder().name, 0o777)
        with unprivileged():
            message = failure(path)
            assert str(path) in message and "permission denied" in message
        os.chmod(folder, 0)
        with unprivileged():
            assert "cannot be listed: Permission denied" in failure(folder)
        os.chmod(folder, 0o755)


@contextmanager
def unprivileged():
    """File modes do not bind root, so be someone else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
