"""Tests of k1.sources; nothing here leaves the machine: the hub is a small HTTP server on loopback."""

import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k1 import cache, local_files, sources
from k1.errors import K1Error
from k1.local_files import cut_into_sections
from k1.sources import PRESETS, load_documents, wikitext_articles

ROOT = Path(__file__).parent.parent


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


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


TWO = ["first\nsecond line", "  indented \u00e9\u2028"]
FILES = {
    "a.jsonl": jsonl(*({"text": text, "n": 1} for text in TWO)),
    "a.JSONL": jsonl(*({"text": text} for text in TWO)),
    "a.jsonl.gz": gzip.compress(jsonl(*({"content": text, "title": "x"} for text in TWO))),
    "a.json": json.dumps([{"body": text} for text in TWO], indent=1).encode(),
    "lines.json": jsonl(*({"text": text} for text in TWO)),
    "a.json.gz": gzip.compress(jsonl(*({"text": text} for text in TWO))),
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


@pytest.mark.parametrize(
    "name, data",
    [(f"{kind}{suffix}", data) for suffix in (".txt", ".jsonl", ".json", ".csv") for kind, data in
     (("empty", b""), ("blank", b" \n\n\t\n"))]
    + [
        ("empty.parquet", b""),
        ("none.parquet", parquet(text=pa.array([None, " "]))),
        ("null.parquet", parquet(text=pa.nulls(2))),
        ("null.jsonl", jsonl({"text": None})),
        ("list.json", b"[]"),
        ("header.csv", b"id,text\n"),
        ("empty.jsonl.gz", gzip.compress(b"")),
    ],
)  # fmt: skip
def test_no_document(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
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
    "cut.jsonl.gz": (gzip.compress(FILES["a.jsonl"])[:-12], "cannot be read as json"),
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


@pytest.mark.parametrize("name", ["wikitex", "", "a/b/c", "a b", "owner/name:", "x\0y"])
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


LINES = [
    "", " = Alpha = \n", "", " First = one . \n", "", " = = Part = = \n", "", " Second . \n", " = = = Detail = = = \n",
    " Third . \n", "", " = Beta = Gamma = \n", "", " = = Empty = = \n", " = Delta = \n", " Fourth . \n",
]  # fmt: skip


def test_wikitext_articles():
    articles = [article for article in wikitext_articles(LINES) if article]
    assert articles == ["First = one .\nSecond .\nThird .", "Fourth ."]


# What follows runs in processes of their own: the hub's address is read when the libraries are imported.

CHILD = """
import json, sys, time
from k1 import sources
sources.bundled_documents = lambda name: iter([f"stand-in {name}"])
results = []
for arguments in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        documents, source = sources.load_documents(*arguments)
        result = {"source": source, **{name: split["text"][:] for name, split in documents.items()}}
    except sources.K1Error as error:
        result = {"error": str(error)}
    results.append({**result, "seconds": time.monotonic() - start})
print(json.dumps(results))
"""


def child(home, endpoint, loads, **environment):
    """Load in a new process; what each load gave, and the lines on stderr. Only the results are on stdout."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", CHILD, json.dumps(loads)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=80)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout), finished.stderr.splitlines()


@pytest.mark.parametrize("hangs", [False, True])
def test_no_network(tmp_path, hangs):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if hangs:
            silent.listen()  # takes connections, never answers
        endpoint = "http://127.0.0.1:%d" % silent.getsockname()[1]
        loads = [("wikitext",), ("wikitext", "hub"), ("stories",)] + [("wikitext",), ("owner/name",)] * (not hangs)
        (auto, hub, stories, *more), warnings = child(tmp_path, endpoint, loads)
    reason = f"no answer from {endpoint} within" if hangs else f"no connection to {endpoint}"
    assert (auto["source"], auto["train"]) == ("bundled", ["stand-in wikitext"])
    assert len(warnings) == 1 and warnings[0].startswith("warning: wikitext: ") and reason in warnings[0]
    for result, name in ((hub, "wikitext"), (stories, "stories")):
        assert result["error"].startswith(f"{name} cannot be loaded from the hub: {reason}")
    assert max(auto["seconds"], hub["seconds"], stories["seconds"]) < (8 if hangs else 3)
    if more:
        assert more[0]["source"] == "bundled" and reason in more[1]["error"]


@contextmanager
def hub_server(repositories):
    """The part of the hub that `datasets` asks for, for datasets given as {id: {path: bytes}}; yields its address."""
    commit = "a" * 40

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": len(body), "X-Repo-Commit": commit, **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            for name, files in repositories.items():
                if re.fullmatch(f"/api/datasets/{name}(/revision/[^/]+)?", path):
                    info = {"id": name, "sha": commit, "private": False, "tags": [], "siblings": []}
                    return self.answer(200, json.dumps(info).encode())
                if match := re.fullmatch(f"/api/datasets/{name}/tree/{commit}/?(.*)", path):
                    return self.tree(files, match[1] + "/" if match[1] else "")
                if match := re.fullmatch(f"/datasets/{name}/resolve/[^/]+/(.+)", path):
                    return self.file(files.get(match[1]))
            self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def tree(self, files, folder):
            entries = {}
            for path, body in files.items():
                if path.startswith(folder):
                    name, *below = path.removeprefix(folder).split("/")
                    kind = {"type": "directory"} if below else {"type": "file", "size": len(body)}
                    entries[name] = {"path": folder + name, "oid": "0" * 40, **kind}
            if not entries:
                return self.answer(404, X_Error_Code="EntryNotFound")
            self.answer(200, json.dumps(list(entries.values())).encode())

        def file(self, body):
            if body is None:
                return self.answer(404, X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(match[1]), min(int(match[2] or len(body)), len(body) - 1)
                content_range = f"bytes {start}-{end}/{len(body)}"
                return self.answer(206, body[start : end + 1], ETag=etag, Content_Range=content_range)
            self.answer(200, body, ETag=etag, Accept_Ranges="bytes")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


CONFIGS = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
CODE = [f"  def f{number}(): pass\n" for number in range(5)]
REPOSITORIES = {
    "Salesforce/wikitext": {
        "README.md": "---\nconfigs:\n{}---\n".format(
            "".join(
                f"- config_name: {config}\n  data_files:\n"
                + "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in sources.SPLITS)
                for config in CONFIGS
            )
        ).encode(),
        **{
            f"{config}/{split}-00000-of-00001.parquet": parquet(text=[*LINES, f" {config} {split} \n"])
            for config in CONFIGS
            for split in sources.SPLITS
        },
    },
    "codeparrot/codeparrot-clean-valid": {
        "README.md": b"# Code\n",
        "file-000000000001.json.gz": gzip.compress(jsonl(*({"repo_name": "a/b", "content": text} for text in CODE))),
    },
    "CShorten/ML-ArXiv-Papers": {
        "ML-Arxiv-Papers.csv": b',title,abstract\n0,On A,"  The problem\n"\n1,,\n2,On B,We\n',
    },
    "roneneldan/TinyStories": {
        f"data/{split}-00000-of-00001.parquet": parquet(text=["Once", "", "upon", "a", "time"])
        for split in ("train", "validation")
    },
    "open-web-math/open-web-math": {"data/train-00000-of-00001.parquet": parquet(words=["no text column"])},
}


def test_hub_and_then_its_cache(tmp_path):
    wikitext = ["First = one .\nSecond .\nThird .", "Fourth .\nwikitext-2-raw-v1 %s"]
    expected = {name: [wikitext[0], wikitext[1] % name] for name in sources.SPLITS}
    loads = [
        ("wikitext", "hub"), ("code", "auto", 2), ("science",), ("stories", "auto", 3), ("math",),
        ("codeparrot/codeparrot-clean-valid",), ("Salesforce/wikitext:wikitext-2-raw-v1", "hub", 1),
        ("Salesforce/wikitext",), ("owner/name",),
    ]  # fmt: skip
    with hub_server(REPOSITORIES) as endpoint:
        results, lines = child(tmp_path, endpoint, loads)
    for result in results:
        del result["seconds"]
    assert results[0] == {"source": "hub", **expected}
    assert results[1] == {"source": "hub", "train": CODE[:2]}
    assert results[2] == {"source": "hub", "train": ["On A\n\nThe problem", "On B\n\nWe"]}
    assert results[3] == {"source": "hub", "train": ["Once", "upon", "a"]}
    assert results[4]["error"].startswith("math cannot be loaded from the hub: ") and "text" in results[4]["error"]
    assert results[5] == {"source": "hub", "train": CODE}
    assert results[6]["train"] == [" = Alpha = \n"] and len(results[6]["test"]) == 11
    assert "wikitext-103-raw-v1" in results[7]["error"]
    assert f"{endpoint} has no public dataset owner/name" in results[8]["error"]
    assert lines == []

    # The server is gone now: the cached copy takes its place, and no stand-in.
    loads = [("wikitext",), ("code", "hub")]
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        (cached, code, stories), lines = child(tmp_path, endpoint, [*loads, ("stories",)], **environment)
        assert {name: cached[name] for name in ("source", *expected)} == {"source": "hub", **expected}
        assert code["train"] == CODE and lines == []
        assert ("HF_HUB_OFFLINE" if environment else "no connection") in stories["error"]
