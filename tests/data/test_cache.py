"""Arrow files of the cache: whole or absent, written again if cut, a clear line if they cannot be written."""

import os

import pyarrow as pa
import pytest

from k1.data.cache import stored
from k1.errors import K1Error


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("K1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(name="", read=("a", "b")):
    """The values in the dataset, and those that were read to write it."""
    seen = []
    dataset = stored("text", pa.string(), (seen.append(value) or value for value in read), name)
    return dataset["text"][:], seen


def test_a_name_is_written_once_and_again_if_its_file_is_cut(folder):
    assert store("key") == (["a", "b"], ["a", "b"])
    assert store("key") == (["a", "b"], [])
    assert os.listdir(folder) == ["key.arrow"]
    for size in (100, 0):
        os.truncate(folder / "key.arrow", size)
        assert store("key") == (["a", "b"], ["a", "b"])


def test_without_a_name_nothing_stays(folder):
    assert store() == (["a", "b"], ["a", "b"])
    assert store("", ()) == ([], [])
    assert os.listdir(folder) == []


def test_the_name_appears_only_when_all_is_written(folder):
    def broken():
        yield from ["a"] * 1000
        assert os.listdir(folder) != []
        raise ConnectionError("the hub went away")

    with pytest.raises(ConnectionError):
        store("key", broken())
    assert os.listdir(folder) == []


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("K1_CACHE", str(tmp_path / "file"))
    with pytest.raises(K1Error, match=f"{tmp_path}/file.*; set K1_CACHE to another"):
        store("key")
    monkeypatch.delenv("K1_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(K1Error, match="home folder.*; set K1_CACHE to another"):
        store("key")
