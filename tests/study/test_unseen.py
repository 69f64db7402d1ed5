"""The stream that nothing was tuned on: three corpora of other domains, each text once."""

import json

import pytest

from tests.conftest import run_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen")
    finished = run_script("-m k1.study.unseen", folder / "texts")
    assert finished.status == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 3
    return folder / "texts"


@pytest.mark.parametrize(
    "name, least, expected",
    [("source", 500, "def "), ("licences", 50, "Redistribution"), ("documentation", 2_000, "tensor")],
)
def test_each_corpus_has_its_domain(folder, name, least, expected):
    texts = [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    assert len(texts) >= least and len(set(texts)) == len(texts)
    assert any(expected in text for text in texts)
    assert ("def " in texts[len(texts) // 2]) == (name == "source")
