"""The streams that nothing was tuned on: three corpora each, of other domains, each text once."""

import json
import re
from itertools import islice

import pytest

from k1.study.unseen import CORPORA, SECOND
from tests.conftest import run_script

pytestmark = [pytest.mark.xdist_group("unseen"), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen") / "texts"
    finished = run_script("-m k1.study.unseen", folder, "--second")
    assert finished.returncode == 0, finished.stderr
    assert [line.partition(":")[0] for line in finished.stdout.splitlines()] == [
        str(folder / f"{name}.jsonl") for name in SECOND
    ]
    return folder


@pytest.mark.parametrize(
    "name, least, expected",
    [("stubs", 200, "-> None: ..."), ("headers", 500, "#include"), ("guides", 2_000, "DataFrame")],
)
def test_each_corpus_has_its_domain(folder, name, least, expected):
    content = (folder / f"{name}.jsonl").read_text()
    texts = [json.loads(line)["text"] for line in content.splitlines()]
    assert len(content) >= 1_000_000
    assert len(texts) >= least and len(set(texts)) == len(texts)
    assert any(expected in text for text in texts)
    assert bool(re.search(r"^ *def ", texts[len(texts) // 2], re.M)) == (name == "stubs")


@pytest.mark.parametrize(
    "name, expected", [("source", "def "), ("licences", "Redistribution"), ("documentation", "tensor")]
)
def test_the_corpora_of_the_first_stream_begin_with_their_domain(name, expected):
    """All of the documentation takes a minute to parse."""
    texts = list(islice(CORPORA[name](), 1_000))
    assert len(texts) >= 50 and any(expected in text for text in texts)
