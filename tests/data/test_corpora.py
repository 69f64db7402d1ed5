"""The bundled corpora: clean text of the expected kind and size."""

import gc
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from k1.data import corpora
from k1.data.corpora import clean_wikitext
from k1.errors import K1Error

MIN_CHARS = {"wikitext": 2_000_000, "code": 5_000_000, "science": 2_000_000}


@pytest.fixture(scope="module")
def texts():
    gc.freeze()  # the collector would scan all of torch again and again while trees are built
    return {name: list(corpora.bundled_documents(name)) for name in corpora.BUNDLED_CORPORA}


@pytest.mark.slow
def test_names_sizes_and_versions(texts):
    assert list(texts) == ["wikitext", "code", "science"]
    for name, documents in texts.items():
        assert sum(map(len, documents)) > MIN_CHARS[name]
        assert len(set(documents)) > 0.99 * len(documents)
    assert min(map(len, texts["wikitext"])) >= 500
    assert min(map(len, texts["science"])) >= 300
    assert re.fullmatch(r"gensim \S+, mwparserfromhell \S+", corpora.bundled_version("wikitext"))
    assert re.fullmatch(r"Python 3\.\S+", corpora.bundled_version("code"))
    assert re.fullmatch(r"numpy \S+, scipy \S+", corpora.bundled_version("science"))


@pytest.mark.slow
def test_order_does_not_depend_on_the_file_system(texts, monkeypatch):
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: reversed(list(rglob(path, pattern))))
    assert list(corpora.bundled_documents("code")) == texts["code"]


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("wikitext", "science"):
        with pytest.raises(K1Error, match=r"pip install -r requirements\.txt$"):
            next(corpora.bundled_documents(name))
        with pytest.raises(K1Error, match=r"pip install -r requirements\.txt$"):
            corpora.bundled_version(name)


@pytest.mark.slow
def test_wikitext_is_prose_without_markup(texts):
    paragraphs = [line for document in texts["wikitext"] for line in document.split("\n\n")]
    markup = r"\[\[|\]\]|\{|\}|''|==|\||<|>|https?:|thumb\||\d+px|^[*#:;!]|\(\s*[,;:]*\s*\)|\(\s|\s\)|  |\s[,;.](\s|$)"
    assert [p for p in paragraphs if re.search(markup + r"|\n|[\ue000-\uf8ff]", p)] == []
    assert [p for p in paragraphs if not re.search(r"[.!?][\"”’')\]]*$", p)] == []
    assert [p for p in paragraphs if re.match(r"\W*[a-z]", p) or len(p) < 80] == []


@pytest.mark.slow
def test_code_is_code_without_machine_paths(texts):
    with_definitions = sum(bool(re.search(r"^\s*(def|class|import|from) ", text, re.M)) for text in texts["code"])
    assert with_definitions > 0.95 * len(texts["code"])
    assert not [text for text in texts["code"] if text.startswith("# system configuration generated")]
    assert not [t for t in texts["code"] if sys.base_prefix in t and len(sys.base_prefix) > len("/usr/local")]


def test_tests_tables_and_machine_files_are_skipped(tmp_path, monkeypatch):
    kept = ["a.py", "pkg/b.py", "unittest/case.py"]
    skipped = ["test/c.py", "pkg/tests/d.py", "pkg/test_e.py", "site-packages/f.py", "encodings/cp037.py"]
    skipped += ["_sysconfigdata__linux_x.py", "pydoc_data/topics.py", "html/entities.py"]
    for name in kept + skipped:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"name = {name!r}\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    monkeypatch.setattr(corpora.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert list(corpora.bundled_documents("code")) == [f"name = {name!r}" for name in kept]


@pytest.mark.slow
def test_science_is_documentation_with_formulas(texts):
    whole = "\n".join(texts["science"])
    scaffolding = (
        r"^\s*>>>|^\s*\+[-=]+\+|^[-=]{3,}\s*$|^\s*={2,} +={2,}|^%\(\w+\)s|"
        r"^\s*\.\. (versionadded|plot|deprecated|seealso|autosummary|\[)|>>>"
    )
    assert not re.search(scaffolding, whole, re.M)
    assert whole.count(".. math::\n\n    ") > 300 and whole.count(r"\frac") > 200
    assert sum(c.isalpha() or c.isspace() for c in whole) > 0.8 * len(whole)


SENTENCE = "The river flows through the old town and reaches the sea near the harbour of the next village"


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("{{Infobox|a=[[b]]|c={{d|e}}}}\n" + SENTENCE + ".", SENTENCE + "."),
        (SENTENCE + "<ref>{{cite web|url=http://x.org}}</ref>.<ref name=a/>", SENTENCE + "."),
        ("'''" + SENTENCE + "''' and the [[Sea|blue ''sea'']].", SENTENCE + " and the blue sea."),
        ("{|\n|-\n| " + SENTENCE + ".\n|}\n\n" + SENTENCE + "!", SENTENCE + "!"),
        ("[[File:a.jpg|thumb|200px|A [[map]] of the [[river]]. " + SENTENCE + ".]]\n" + SENTENCE + ".", SENTENCE + "."),
        ("* " + SENTENCE + ".\n# " + SENTENCE + ".\n: " + SENTENCE + ".\n" + SENTENCE + "?", SENTENCE + "?"),
        ("== " + SENTENCE + ". ==\n" + SENTENCE + ".", SENTENCE + "."),
        (SENTENCE + " (; {{IPAc-en|r}} ), at last ({{respell|x}}; 1900) .", SENTENCE + ", at last (1900)."),
        (SENTENCE + " for {{convert|5|km|mi}}.", SENTENCE + " for 5 km."),
        (SENTENCE + " as <math>x</math> grows.", ""),
        (SENTENCE + " in {{unknown template|x}} years.", ""),
        (SENTENCE + ".\n\n[[Category:Rivers]]\n" + SENTENCE + ".", SENTENCE + ".\n\n" + SENTENCE + "."),
        ("Too short.", ""),
        (SENTENCE, ""),
    ],
)
def test_clean_wikitext(markup, expected):
    assert clean_wikitext(markup) == expected
