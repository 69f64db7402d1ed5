"""Tests of k1.data.sources and k1.data.local_files without the hub; test_hub.py has the hub."""

import gzip
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k1.data import cache, local_files, sources
from k1.data.local_files import cut_into_sections
from k1.data.sources import PRESETS, load_documents, wikitext_articles
from k1.errors import K1Error
from tests.data.hub import LINES, jsonl, parquet


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    """The stand-ins of these tests must not reach the user's cache."""
    monkeypatch.setenv("K1_CACHE", str(tmp_path_factory.mktemp("cache")))


def texts(path, **options):
    documents, source = load_documents(str(path), **options)
    assert source == "local"
    assert list(documents) == ["train"] and documents["train"].column_names == ["text"]
    return documents["train"]["text"][:]


def failure(name, *arguments):
    """The one line of the `K1Error` that loading ends with."""
    with pytest.raises(K1Error) as caught:
        load_documents(str(name), *arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


TWO = ["first\nsecond line", "  indented \u00e9\u2028"]
FILES = {
    "a.jsonl": jsonl(*({"text": text, "n": 1} for text in TWO)),
    "a.JSONL": jsonl(*({"text": text} for text in TWO)),
    "a.jsonl.gz": gzip.compress(jsonl(*({"content": text, "title": "x"} for text in TWO)), mtime=0),
    "a.json": json.dumps([{"body": text} for text in TWO], indent=1).encode(),
    "lines.json": jsonl(*({"text": text} for text in TWO)),
    "a.json.gz": gzip.compress(jsonl(*({"text": text} for text in TWO)), mtime=0),
    "a.csv": 'id,text\n1,"first\nsecond line"\n2,  indented \u00e9\u2028\n'.encode(),
    "a.tsv": 'id\tprose\n1\t"first\nsecond line"\n2\t  indented \u00e9\u2028\n'.encode(),
    "a.parquet": parquet(text=TWO, content=["x", "y"]),
    "odd [1]*?.parquet": parquet(text=pa.array(TWO, pa.large_string())),
    "dictionary.parquet": parquet(text=pa.array(TWO).dictionary_encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_table_file(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert texts(tmp_path / name) == TWO
    assert texts(tmp_path / name, max_documents=1) == TWO[:1]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.tex", "a.py", "a.unknown", "README"])
def test_text_file_is_one_document(tmp_path, name):
    (tmp_path / name).write_bytes("\ufeffcaf\u00e9\r\n\r\nend\n".encode())
    assert texts(tmp_path / name) == ["caf\u00e9\n\nend\n"]


def test_home_and_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("short")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert texts("~/a.txt") == texts("./a.txt") == texts("a.txt") == ["short"]


def test_local_path_ignores_data_source(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    for data_source in ("auto", "hub", "bundled"):
        assert texts(tmp_path / "a.txt", data_source=data_source) == ["short"]


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


def test_folder_is_sorted_recursive_and_without_hidden_files(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    for name in ("b/2.txt", "a.txt", "c.md", ".hidden.txt", "b/.git/config"):
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").touch()
    assert texts(tmp_path) == ["a.txt", "b/2.txt", "c.md"]


@pytest.mark.parametrize("name", FILES)
def test_folder_of_tables(tmp_path, name):
    for part in "123":
        (tmp_path / (part + name)).write_bytes(FILES[name])
    assert texts(tmp_path) == TWO * 3


def test_mixed_folder(tmp_path):
    (tmp_path / "a.csv").write_bytes(FILES["a.csv"])
    (tmp_path / "b.jsonl").write_bytes(FILES["a.jsonl"])
    message = failure(tmp_path)
    assert str(tmp_path) in message and "csv (a.csv)" in message and "json (b.jsonl)" in message


def test_folder_without_files(tmp_path):
    (tmp_path / ".hidden").touch()
    assert str(tmp_path) in failure(tmp_path) and "no file" in failure(tmp_path)


def test_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in failure(tmp_path / "pipe")


def test_few_text_documents_are_cut_at_blank_lines(tmp_path):
    paragraphs = [f"{number} " + "word " * 300 for number in range(12)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    sections = texts(tmp_path / "a.txt")
    assert "\n\n".join(sections).split("\n\n") == paragraphs
    assert len(sections) == 6 and all(len(section) <= 4000 for section in sections)
    assert texts(tmp_path / "a.txt", max_documents=2) == sections[:2]

    for number in range(19):
        (tmp_path / f"b{number:02}.txt").write_text("short")
    assert len(texts(tmp_path)) == 20
    (tmp_path / "b18.txt").unlink()
    assert len(texts(tmp_path)) == 6 + 18


@given(st.text("ab \t\n", max_size=60))
def test_cutting_loses_only_blank_lines(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_files, "SECTION_CHARACTERS", 8)
        sections = list(cut_into_sections(text))
    position = 0
    for section in sections:
        start = text.index(section, position)
        assert not text[position:start].strip()
        position = start + len(section)
    assert not text[position:].strip()


def test_one_paragraph_is_not_cut(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 5000)
    assert texts(tmp_path / "a.txt") == ["word " * 5000]


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


def test_saved_dataset(tmp_path):
    datasets.Dataset.from_dict({"content": [*TWO, " ", None], "n": [1, 2, 3, 4]}).save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == TWO
    splits = ("train", "validation", "test", "more")
    parts = {name: datasets.Dataset.from_dict({"text": [name, "x"]}) for name in splits}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "many")
    documents, source = load_documents(str(tmp_path / "many"), max_documents=1)
    assert source == "local"
    assert {name: split["text"][:] for name, split in documents.items()} == {
        "train": ["train"],
        "validation": ["validation", "x"],
        "test": ["test", "x"],
    }
    datasets.DatasetDict({"more": parts["more"]}).save_to_disk(tmp_path / "other")
    assert "no split train" in failure(tmp_path / "other") and "more" in failure(tmp_path / "other")
    (tmp_path / "one" / "state.json").write_text("{}")
    assert "cannot be read as a saved dataset" in failure(tmp_path / "one")


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


@pytest.mark.parametrize("name", ["no/such.txt", "./nothing", "/no/such/folder", "~/nothing-here", "nothing.jsonl.gz"])
def test_missing_path(name):
    assert failure(name).startswith(f"{name}: no such file or folder")


@pytest.mark.parametrize("name", ["wikitex", "", "a/b/c", "a b", "owner/name:", pytest.param("x\0y", id="null byte")])
def test_unknown_name_lists_the_known_ones(name):
    message = failure(name)
    assert all(preset in message for preset in PRESETS) and "owner/name" in message and "no such path" in message


@pytest.mark.parametrize("name", ["openwebtext", "math", "stories", "owner/name"])
def test_no_bundled_text(name):
    assert failure(name, "bundled").startswith(f"{name} has no bundled text")


def test_bad_arguments():
    assert "auto, hub or bundled" in failure("wikitext", "web")
    assert "max_documents is 0" in failure("wikitext", "bundled", 0)


def test_bundled(monkeypatch):
    monkeypatch.setattr(sources, "bundled_documents", lambda name: iter([f"{name} {n}" for n in range(9)] + [" "]))
    documents, source = load_documents("code", "bundled", 2)
    assert source == "bundled" and documents["train"]["text"][:] == ["code 0", "code 1"]
    assert len(load_documents("code", "bundled")[0]["train"]) == 9


def test_wikitext_articles():
    articles = [article for article in wikitext_articles(LINES) if article]
    assert articles == ["First = one .\nSecond .\nThird .", "Fourth ."]
