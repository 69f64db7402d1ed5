"""Damaged and hostile files: a part of the fuzz command, and that it notices what it looks for."""

import gzip
import os
import shutil
import sys
import time
from random import Random

import pytest
import torch

from k1.checkpoints.storage import load_checkpoint
from k1.data.compressed import check_expansion, gzip_sizes
from k1.data.local_files import local_splits
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error
from tests.faults.checkpoint_mutations import ARCHIVES, TENSORS, in_tensors
from tests.faults.fuzz import MORE_MEMORY, Workspace
from tests.faults.fuzz_kinds import KINDS, Kind, read_cache
from tests.faults.mutations import MARKER
from tests.faults.text_mutations import SAVED_REFUSED

CASES = 110


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    threads = torch.get_num_threads()
    yield Workspace(tmp_path_factory.mktemp("fuzz"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("number", range(CASES))
def test_a_damaged_file_is_read_or_refused(workspace, number):
    outcome = workspace.run(seed=1, number=number)
    assert outcome.failure is None, outcome


def test_every_kind_is_among_the_cases(workspace):
    assert {workspace.turns[number % len(workspace.turns)][0].name for number in range(CASES)} == {
        kind.name for kind in KINDS
    }


def fail(error: Exception) -> None:
    raise error


PLANTED = {
    "a traceback": (lambda path: fail(ValueError("x")), "ended with status 70"),
    "a hang": (lambda path: time.sleep(60), "killed after too long"),
    "a crash": (lambda path: os.abort(), "ended with status -6"),
    "all memory": (lambda path: len(bytearray(2 * MORE_MEMORY)), "it took all memory"),
    "code": (lambda path: os.mkdir(f"../{MARKER}"), "code in the file was run"),
    "code in the folder": (lambda path: os.mkdir(MARKER), "code in the file was run"),
    "another result": (lambda path: str(os.getpid()), "read, but not as it was written"),
    "a second error line": (lambda path: print("error: x", file=sys.stderr) or "", "status 0 and 1 error lines"),
    "other output": (lambda path: print("panicked", file=sys.stderr) or "", "other output on stderr"),
    "a refusal": (lambda path: fail(K1Error("x")), "refused, although it must be read"),
    "no refusal": (lambda path: "", "read, although it must be refused"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_failure_is_noticed(workspace, name):
    read, failure = PLANTED[name]
    refused = {"nothing": lambda path, random: None}
    kind = Kind("text.txt", read, refused if name == "no refusal" else {}, same=True, rebuilt=name == "a refusal")
    before = workspace.turns, workspace.expected
    workspace.turns, workspace.expected = [(kind, 1, 1)], {"text.txt": ""}
    try:
        assert workspace.run(seed=0, number=0, seconds=2).failure == failure
    finally:
        workspace.turns, workspace.expected = before


def damaged(workspace, tmp_path, name, mutation):
    """A copy of a good file after `mutation`."""
    source = workspace.folder / "good" / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    mutation(tmp_path / name, Random(0))
    return tmp_path / name


@pytest.mark.parametrize("name", [name for name in ARCHIVES if "pickle" in name])
def test_code_in_a_checkpoint_is_not_run(workspace, tmp_path, monkeypatch, name):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    path = damaged(workspace, tmp_path, "checkpoint.pt", ARCHIVES[name])
    with pytest.raises(K1Error, match="damaged or is not a checkpoint"):
        load_checkpoint(path, "k1")
    assert not (tmp_path / MARKER).exists() and not (tmp_path / "inner" / MARKER).exists()


def test_the_code_of_these_tests_would_run(workspace, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    path = damaged(workspace, tmp_path, "checkpoint.pt", ARCHIVES["os.mkdir in the pickle"])
    torch.load(path, weights_only=False)
    assert (tmp_path / MARKER).exists()


def test_a_tensor_larger_than_its_data_is_refused(workspace, tmp_path):
    mutation = in_tensors("model", TENSORS["zero strides of 10^12 elements"])
    with pytest.raises(K1Error, match="larger than its data"):
        load_checkpoint(damaged(workspace, tmp_path, "checkpoint.pt", mutation), "k1")


@pytest.mark.parametrize("name", ["a file above the folder", "a file by its absolute path", "a split above the folder"])
def test_a_saved_dataset_that_points_outside_is_refused(workspace, tmp_path, name):
    with pytest.raises(K1Error, match="not a file inside the folder"):
        local_splits(damaged(workspace, tmp_path, "saved", SAVED_REFUSED[name]))


def test_a_compressed_file_that_expands_is_refused_early(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * 2**27 + b'"}\n', mtime=0))
    with pytest.raises(ValueError, match="expands to more than 100 times"):
        check_expansion(path, gzip_sizes(path))
    with pytest.raises(K1Error, match="expands"):
        list(local_splits(path)["train"])


def test_a_flipped_bit_in_the_cache_gives_the_same_tokens(workspace, tmp_path, monkeypatch):
    for name in ("tokenizer.json", "lines.jsonl"):
        damaged(workspace, tmp_path, name, lambda path, random: None)
    monkeypatch.setenv("K1_CACHE", "")
    path = damaged(workspace, tmp_path, "cache", lambda path, random: None)
    expected = read_cache(path)
    for file in sorted(path.rglob("*.arrow")):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert read_cache(path) == expected == workspace.expected["cache"]


@pytest.mark.parametrize(
    "tokenizer_json",
    ["", "null", "[]", '{"model": {"merges": null}}', '{"model": {"merges": [["a"]]}}', "[" * 100_000, "9" * 5000],
)
def test_what_is_not_a_tokenizer_is_refused(tokenizer_json):
    with pytest.raises(K1Error, match="the tokenizer in the checkpoint"):
        load_tokenizer(tokenizer_json)


def test_a_long_document_is_read_in_pieces(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "one two three\n" * 200_000
    path.write_text('{"text": "%s"}' % text.replace("\n", "\\n"))
    pieces = list(local_splits(path)["train"])
    assert "".join(pieces) == text and len(pieces) == 3
    assert all(piece.startswith("\n") for piece in pieces[1:])
