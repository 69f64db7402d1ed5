"""Tests of k1.data.sources without the hub, which test_hub.py has."""

import pytest

from k1.data import sources
from k1.data.sources import PRESETS, dataset_labels, load_documents
from tests.data.loading import failure, texts


def test_home_and_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("short")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert texts("~/a.txt") == texts("./a.txt") == texts("a.txt") == ["short"]


def test_local_path_ignores_data_source(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    for data_source in ("auto", "hub", "bundled"):
        assert texts(tmp_path / "a.txt", data_source=data_source) == ["short"]


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


def test_bundled(tmp_path, monkeypatch):
    # The stand-in must not reach the cache of other tests.
    monkeypatch.setenv("K1_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "bundled_documents", lambda name: (f"{name} {n}" for n in range(9)))
    documents, source = load_documents("code", "bundled", 2)
    assert source == "bundled" and documents["train"]["text"][:] == ["code 0", "code 1"]
    assert len(load_documents("code", "bundled")[0]["train"]) == 9


def test_files_of_the_same_name_are_told_apart_by_their_folders():
    names = ["/texts/a/x.txt", "/texts/b/x.txt", "/other/b/x.txt", "/texts/y.txt", "wikitext", "/wikitext"]
    labels = ["a/x.txt", "texts/b/x.txt", "other/b/x.txt", "y.txt", "wikitext", "/wikitext"]
    assert dataset_labels(names) == labels
    assert dataset_labels(["/texts/a\nb.txt"]) == ["a\ufffdb.txt"]
