"""The streams that nothing was tuned on: three corpora each, of other domains, each text once."""

import json
import re

import pytest

from tests.conftest import run_script

pytestmark = [pytest.mark.xdist_group("unseen"), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen")
    for flags in ([], ["--second"]):
        finished = run_script("-m k1.study.unseen", folder / "texts", *flags)
        assert finished.returncode == 0, finished.stderr
        assert len(finished.stdout.splitlines()) == 3
    return folder / "texts"


@pytest.mark.parametrize(
    "name, least, expected",
    [
        ("source", 500, "def "),
        ("licences", 50, "Redistribution"),
        ("documentation", 2_000, "tensor"),
        ("stubs", 200, "-> None: ..."),
        ("headers", 500, "#include"),
        ("guides", 2_000, "DataFrame"),
    ],
)
def test_each_corpus_has_its_domain(folder, name, least, expected):
    content = (folder / f"{name}.jsonl").read_text()
    texts = [json.loads(line)["text"] for line in content.splitlines()]
    assert len(content) >= 1_000_000 or name == "licences"
    assert len(texts) >= least and len(set(texts)) == len(texts)
    assert any(expected in text for text in texts)
    assert bool(re.search(r"^ *def ", texts[len(texts) // 2], re.M)) == (name in ("source", "stubs"))
