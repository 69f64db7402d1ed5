"""Three corpora read from installed packages, so that the default run needs no network.

wikitext: Wikipedia articles in gensim's test data; code: the Python standard library;
science: the docstrings of NumPy and SciPy.
"""

import ast
import bz2
import importlib.util
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from k1.data.docstrings import clean_docstring, object_docstrings
from k1.data.wiki_markup import clean_wikitext
from k1.errors import K1Error

WIKI_DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WIKI_MIN_CHARS, SCIENCE_MIN_CHARS = 500, 300
SKIPPED_DIRS = {"test", "tests", "idle_test", "testing", "__pycache__", "site-packages", "dist-packages"}
# Machine-dependent files, tables of characters or texts, and packages that some Linux distributions leave out.
NOT_CODE = re.compile(
    r"_sysconfigdata|config-|sitecustomize\.py|encodings/(?!__init__|idna|punycode|utf_8_sig)|pydoc_data/|locale\.py|"
    r"html/entities\.py|this\.py|stringprep\.py|re/_casefix\.py|curses/has_key\.py|"
    r"(idlelib|lib2to3|distutils|ensurepip|tkinter|turtledemo|venv)/|turtle\.py"
)
# Build tools, and helpers for other packages.
NOT_SCIENCE = re.compile(r"(distutils|f2py|_lib|_pyinstaller|_utils|typing|_typing)/|conftest\.py|__config__\.py")


def package_dir(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise K1Error(f"the package {name}, source of a corpus, is missing; run: pip install -r requirements.txt")
    return Path(spec.submodule_search_locations[0])


def python_files(root: Path, excluded: re.Pattern) -> list[Path]:
    """The .py files under `root` that are no tests and not `excluded`, sorted by relative path."""
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        name = "/".join(parts)
        if SKIPPED_DIRS.isdisjoint(parts) and not path.name.startswith("test_") and not excluded.match(name):
            files[name] = path
    return [files[name] for name in sorted(files)]


def _wikitext_documents() -> Iterator[str]:
    dump = package_dir("gensim") / WIKI_DUMP
    package_dir("mwparserfromhell")
    if not dump.is_file():
        raise K1Error("the installed gensim lacks the test data of wikitext; run: pip install -r requirements.txt")
    try:
        from gensim.corpora.wikicorpus import extract_pages
    except RuntimeError as error:  # smart_open, which it imports, looks into the home folder
        raise K1Error(f"the package gensim cannot be imported ({error}); set HOME to a folder")

    with bz2.open(dump, "rb") as file:
        for _title, markup, _page_id in extract_pages(file, ()):
            if markup and not markup.lstrip().lower().startswith("#redirect"):
                document = clean_wikitext(markup)
                if len(document) >= WIKI_MIN_CHARS:
                    yield document


def _code_documents() -> Iterator[str]:
    for path in python_files(Path(sysconfig.get_paths()["stdlib"]), NOT_CODE):
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            continue
        if text:
            yield text


def _science_documents() -> Iterator[str]:
    seen: set[str] = set()
    for path in [file for package in ("numpy", "scipy") for file in python_files(package_dir(package), NOT_SCIENCE)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for docstrings in object_docstrings(tree):
            paragraphs = "\n\n".join(filter(None, map(clean_docstring, docstrings))).split("\n\n")
            # Related functions share whole docstrings or the description of a parameter.
            fresh = [text for text in paragraphs if len(text) < 120 or text[0] == " " or text not in seen]
            seen.update(fresh)
            document = "\n\n".join(fresh)
            if len(document) >= SCIENCE_MIN_CHARS:
                yield document


BUNDLED_CORPORA: dict[str, Callable[[], Iterator[str]]]
BUNDLED_CORPORA = {"wikitext": _wikitext_documents, "code": _code_documents, "science": _science_documents}


def bundled_documents(name: str) -> Iterator[str]:
    """The documents of the bundled corpus `name`, in a fixed order."""
    return BUNDLED_CORPORA[name]()


def bundled_version(name: str) -> str:
    """The versions of what the corpus is read from, e.g. "numpy 2.4.6, scipy 1.17.1"."""
    if name == "code":
        return f"Python {platform.python_version()}"
    packages = {"wikitext": ("gensim", "mwparserfromhell"), "science": ("numpy", "scipy")}[name]
    for package in packages:
        package_dir(package)
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
