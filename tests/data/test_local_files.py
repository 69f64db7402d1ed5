"""Tests of k1.data.local_files: folders of files, saved datasets, and texts that are cut."""

import os

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k1.data import local_files
from k1.data.local_files import cut_into_sections
from k1.data.sources import load_documents
from tests.data.loading import FILES, TWO, failure, texts


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
