"""Tests of k1.data.local_files: folders of files, saved datasets, and texts that are cut."""

import gzip
import os

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k1.data import local_files
from k1.data.local_files import sections_of
from tests.data.hub import jsonl
from tests.data.loading import FILES, TWO, failure, load, texts


def test_folder_is_sorted_recursive_and_without_hidden_files(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    for name in ("b/2.txt", "a.txt", "c.md", ".hidden.txt", "b/.git/config"):
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").touch()
    assert texts(tmp_path) == ["a.txt", "b/2.txt", "c.md"]


def test_folders_that_cannot_be_read(tmp_path):
    (tmp_path / ".hidden").touch()
    assert "no file" in failure(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in failure(tmp_path / "pipe")
    (tmp_path / "a.csv").write_bytes(FILES["a.csv"])
    (tmp_path / "b.jsonl").write_bytes(FILES["a.jsonl"])
    assert "csv (a.csv), json (b.jsonl)" in failure(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train-00000-of-00001.jsonl.gz", "dev.ndjson", "test.json"),
        ("train/a.jsonl", "valid/b.jsonl", "test/c.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/my_validation.jsonl", "data/x.eval.jsonl"),
    ],
)
def test_splits_of_a_folder_are_kept(tmp_path, names):
    for name, split in zip(names, ("train", "validation", "test")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = jsonl(*({"text": f"{split} {number}"} for number in range(3)))
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert load(tmp_path, max_documents=1) == {
        "train": ["train 0"],
        **{split: [f"{split} {number}" for number in range(3)] for split in ("validation", "test")},
    }
    (tmp_path / "README.md").write_text("of a copy from the hub")
    assert set(load(tmp_path)) == {"train", "validation", "test"}
    (tmp_path / "extra.jsonl").write_bytes(FILES["a.jsonl"])
    assert "extra.jsonl is in none of the splits" in failure(tmp_path)


def test_splits_without_train_are_trained_on_and_that_is_said(tmp_path, capsys):
    for name in ("test.txt", "dev.txt"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["dev.txt", "test.txt"]
    assert "no split train, so the files of validation, test are trained on as well" in capsys.readouterr().err


def test_names_of_programs_and_a_single_split_divide_nothing(tmp_path):
    for name in ("train.py", "test.py", "model.py"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["model.py", "test.py", "train.py"]
    (tmp_path / "only").mkdir()
    for name in ("train.txt", "more.txt"):
        (tmp_path / "only" / name).write_text(name)
    assert texts(tmp_path / "only") == ["more.txt", "train.txt"]


def test_documents_of_several_files_are_taken_evenly(tmp_path, capsys):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(*({"text": f"{name}{number}"} for number in range(4))))
    assert texts(tmp_path, max_documents=6) == ["a0", "a2", "b0", "b2", "c0", "c2"]
    assert (
        capsys.readouterr().err == f"{tmp_path}: 6 of 12 documents are read, evenly over all files (--max_documents)\n"
    )
    assert len(texts(tmp_path, max_documents=12)) == 12
    assert texts(tmp_path / "b.jsonl", max_documents=2) == ["b0", "b1"]
    assert "b.jsonl: the first 2 documents are read" in capsys.readouterr().err


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


SENTENCE = "A sentence of some words."


@pytest.mark.parametrize(
    ("joint", "text"),
    [
        ("\n", "\n".join([SENTENCE] * 1000)),
        ("\n", "Title\n\n" + "\n".join([SENTENCE] * 1000) + "\n\n"),
        ("\r", "\r".join([SENTENCE] * 1000)),
        (" ", " ".join([SENTENCE] * 1000)),
        (" ", "word " * 5000),
    ],
)
def test_text_without_blank_lines_is_cut_at_ends_of_lines_sentences_or_words(tmp_path, joint, text):
    (tmp_path / "a.txt").write_text(text, newline="")
    sections = texts(tmp_path / "a.txt")
    assert joint.join(sections).split() == text.split()
    long = [section for section in sections if section != "Title"]
    assert all(3900 < len(section) <= 4000 for section in long[:-1])
    if SENTENCE in text:
        assert all(section.strip().startswith("A") and section.endswith("words.") for section in long)


@pytest.mark.parametrize("separator", ["\f", "\n\f", "\r\r", "\n\xa0\n", "\n \u3000\n"])
def test_form_feeds_and_lines_of_any_spaces_separate_sections(tmp_path, separator):
    paragraphs = ["\n".join([SENTENCE] * 100)] * 5
    (tmp_path / "a.txt").write_text(separator.join(paragraphs), newline="")
    assert [section.strip() for section in texts(tmp_path / "a.txt")] == paragraphs


@given(st.text("ab. \t\n\f\r\xa0", max_size=60))
def test_cutting_loses_only_spaces(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_files, "SECTION_CHARACTERS", 8)
        assert "".join("".join(sections_of(text)).split()) == "".join(text.split())


def test_saved_dataset(tmp_path):
    datasets.Dataset.from_dict({"content": [*TWO, " "], "n": [1, 2, 3]}).save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == TWO
    splits = ("train", "validation", "test", "more")
    parts = {name: datasets.Dataset.from_dict({"text": [name, "x"]}) for name in splits}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "many")
    assert load(tmp_path / "many", max_documents=1) == {
        "train": ["train"], "validation": ["validation", "x"], "test": ["test", "x"],
    }  # fmt: skip
    datasets.DatasetDict({"more": parts["more"]}).save_to_disk(tmp_path / "other")
    assert "no split train; it has more" in failure(tmp_path / "other")
    (tmp_path / "one" / "state.json").write_text("{}")
    assert "cannot be read as a saved dataset" in failure(tmp_path / "one")
