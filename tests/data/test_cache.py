"""Cached Arrow files: complete or absent, built again when damaged, clear lines when the disk refuses."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import DatasetDict

from k1.data.cache import cached, write_dataset
from k1.errors import K1Error


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("K1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(calls):
    calls.append(1)
    return DatasetDict(train=write_dataset("text", pa.string(), ["a", "b"]))


def test_an_entry_is_built_once(folder):
    calls = []
    for _ in range(2):
        assert list(cached("documents", "key", lambda: build(calls))["train"]["text"]) == ["a", "b"]
    assert len(calls) == 1
    assert os.listdir(folder / "documents") == ["key"]


def test_the_entry_of_another_process_that_was_first_is_taken(folder):
    def build_late():
        """Another process builds and stores the same entry meanwhile."""
        cached("documents", "key", lambda: build([]))
        return build([])

    found = cached("documents", "key", build_late)["train"]
    assert list(found["text"]) == ["a", "b"]
    assert Path(found.cache_files[0]["filename"]).is_relative_to(folder)


def test_an_entry_that_lacks_a_file_is_built_again(folder):
    calls = []
    cached("documents", "key", lambda: build(calls))
    next((folder / "documents" / "key" / "train").glob("*.arrow")).unlink()
    assert list(cached("documents", "key", lambda: build(calls))["train"]["text"]) == ["a", "b"]
    assert len(calls) == 2


def test_a_flipped_bit_in_any_file_is_noticed(folder):
    calls = []
    cached("documents", "key", lambda: build(calls))
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(names) == 5
    for number, name in enumerate(names, start=2):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        assert list(cached("documents", "key", lambda: build(calls))["train"]["text"]) == ["a", "b"]
        assert len(calls) == number
    cached("documents", "key", lambda: build(calls))
    assert len(calls) == len(names) + 1


def test_a_failed_build_leaves_nothing(folder):
    def fail():
        raise K1Error("no text")

    with pytest.raises(K1Error, match="no text"):
        cached("documents", "key", fail)
    assert not folder.exists()


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("K1_CACHE", str(tmp_path / "file"))
    with pytest.raises(K1Error, match="set K1_CACHE to another"):
        cached("documents", "key", lambda: build([]))


def test_an_error_of_the_source_is_not_taken_for_one_of_the_disk():
    def broken():
        yield "a"
        raise ConnectionError("the hub went away")

    with pytest.raises(ConnectionError):
        write_dataset("text", pa.string(), broken())
