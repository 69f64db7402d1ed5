"""Tests of k1.data.readers: a file of each format, read or refused."""

import bz2
import gzip
import lzma

import pyarrow as pa
import pytest
from pyarrow import feather

from tests.data.hub import jsonl
from tests.data.loading import FILES, TWO, failure, texts


@pytest.mark.parametrize("name", FILES)
def test_table_file(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert texts(tmp_path / name) == TWO
    assert texts(tmp_path / name, max_documents=1) == TWO[:1]


def test_arrow_files(tmp_path):
    table = pa.table({"text": TWO})
    feather.write_feather(table, str(tmp_path / "a.feather"))
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    assert texts(tmp_path / "a.feather") == texts(tmp_path / "a.arrow") == TWO


@pytest.mark.parametrize(("ending", "module"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_compressed_files(tmp_path, ending, module):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / (name + ending)).write_bytes(module.compress(FILES[name]))
        assert texts(tmp_path / (name + ending)) == TWO


@pytest.mark.parametrize("name", ["a.txt", "a.unknown", "README"])
def test_text_file_is_one_document(tmp_path, name):
    (tmp_path / name).write_bytes("\ufeffcaf\u00e9\r\n\r\nend\n".encode())
    assert texts(tmp_path / name) == ["caf\u00e9\n\nend\n"]


def test_any_character_survives_json_lines(tmp_path):
    documents = ["a\r\nb\rc\u2028d\u2029e\x85f\x1cg\x00h", "\U0001f600 \t end"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": text} for text in documents)))
    assert texts(tmp_path / "a.jsonl") == documents


def test_rows_without_text_are_counted(tmp_path, capsys):
    """Empty texts lose nothing; too many rows without one, such as those of a renamed column, are an error."""
    rows = [{"text": f"text {number}"} for number in range(200)]
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": None}, {"body": "renamed"}, *3 * [{"text": " \n"}], *rows))
    assert len(texts(tmp_path / "a.jsonl")) == 200
    assert capsys.readouterr().err == f"{tmp_path}/a.jsonl: 5 of 205 rows have no text and are left out\n"
    (tmp_path / "b.jsonl").write_bytes(jsonl(*rows, *3 * [{"content": "renamed"}]))
    assert "3 of 203 rows have no text; give each its text, in the same column" in failure(tmp_path / "b.jsonl")
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,\n2,NA\n")
    assert "1 of 2 rows have no text" in failure(tmp_path / "a.csv")


NO_DOCUMENT = {
    **{f"empty{suffix}": b"" for suffix in (".txt", ".jsonl", ".csv", ".parquet")},
    "blank.jsonl": b" \n\n\t\n",
    "header.csv": b"id,text\n",
}


@pytest.mark.parametrize("name", NO_DOCUMENT)
def test_no_document(tmp_path, name):
    (tmp_path / name).write_bytes(NO_DOCUMENT[name])
    assert f"{tmp_path / name}: there is no non-empty document in it" in failure(tmp_path / name)


BAD_FILES = {
    "bytes.txt": (b"caf\xe9 au lait", "cannot be read as text: 'utf-8' codec can't decode byte 0xe9 in position 3"),
    "a.zip": (b"PK\x03\x04", "unpack it"),
    "comma.jsonl": (b'{"text": "a"}\n\n{"text": "b"\n', "cannot be read as json: JSON parse error: Missing a comma"),
    "number.jsonl": (jsonl({"text": 5}), 'column "text" holds no text but int64'),
    "mixed.jsonl": (jsonl({"text": "a"}, {"text": 5}), 'column "text" holds no text but'),
    "columns.jsonl": (jsonl({"title": "a", "body": "b"}), 'title, body; rename the one with the documents to "text"'),
    "cut.jsonl.gz": (gzip.compress(FILES["a.jsonl"])[:-12], "cannot be read as json"),
    "fields.csv": (b"id,text\n1,a\n2,b,c\n", "Expected 2 fields in line 3, saw 3"),
    "numbers.csv": (b"id,n\n1,2\n", "id, n; rename"),
    "headless.csv": (b"1,The first text.\n2,The second one.\n", "columns are 1, The first text.; rename"),
    "late.csv": (b"body\n" + 10_000 * b"word\n" + 10_000 * b"5\n", "late.csv: columns are body; rename"),
    "cut.parquet": (FILES["a.parquet"][:-20], "cannot be read as parquet"),
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
