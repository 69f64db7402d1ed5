"""python3 -m k1.study.unseen FOLDER [--second]: write three local datasets that no setting was tuned on.

Text that every machine with the requirements installed has, in another order of
domains than the default stream: SymPy's source code (source.jsonl), licences and
read-me files of the installed packages (licences.jsonl), and the reference
documentation of torch and transformers (documentation.jsonl). With --second three
others: type stubs of NumPy, pandas, matplotlib and torch (stubs.jsonl), C++ headers
of torch (headers.jsonl), and the reference documentation of pandas, scikit-learn and
matplotlib (guides.jsonl).
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

from k1.data.corpora import clean_docstring, object_docstrings, package_dir, python_files
from k1.errors import Parser, command
from k1.files import write_text
from k1.flag_types import folder_to_write

MIN_CHARS = 200


def source_files(*packages: str) -> Iterator[str]:
    """The Python files of `packages`, without tests."""
    for package in packages:
        for path in python_files(package_dir(package), re.compile(r"(?!)")):
            yield path.read_text(encoding="utf-8").strip()


def licence_documents() -> Iterator[str]:
    """Licence, notice and read-me texts of installed packages, each text once."""
    seen: set[str] = set()
    for installed in sorted(distributions(), key=lambda found: found.name.lower()):
        texts = [re.sub(r"\A(.+\n)+\n", "", installed.read_text("METADATA") or "")]
        for file in sorted(installed.files or []):
            if re.match(r"(licen[cs]e|copying|notice|authors|readme|third)", file.name, re.I) and file.suffix != ".py":
                texts.append(Path(file.locate()).read_text(encoding="utf-8", errors="ignore"))
        for text in texts:
            # Long collections of licences share most of theirs: each paragraph is kept once.
            paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip() and part not in seen]
            seen.update(paragraphs)
            yield "\n\n".join(paragraphs).strip()


def documentation_documents(*packages: str) -> Iterator[str]:
    """Docstrings of `packages`, those of related objects together."""
    for source in source_files(*packages):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        for docstrings in object_docstrings(tree):
            yield "\n\n".join(filter(None, map(clean_docstring, docstrings)))


def package_files(pattern: str, *packages: str) -> Iterator[str]:
    """The files of `packages` whose path is like `pattern`, without tests."""
    for path in [path for name in packages for path in sorted(package_dir(name).rglob(pattern))]:
        if "tests" not in path.parts:
            yield path.read_text(encoding="utf-8").strip()


CORPORA: dict[str, Callable[[], Iterator[str]]] = {
    "source": partial(source_files, "sympy"),
    "licences": licence_documents,
    "documentation": partial(documentation_documents, "torch", "transformers"),
}
SECOND: dict[str, Callable[[], Iterator[str]]] = {
    "stubs": partial(package_files, "*.pyi", "numpy", "pandas", "matplotlib", "torch"),
    "headers": partial(package_files, "include/torch/csrc/**/*.h", "torch"),
    "guides": partial(documentation_documents, "pandas", "sklearn", "matplotlib"),
}


@command
def main() -> None:
    parser = Parser(prog="python3 -m k1.study.unseen", description=__doc__)
    parser.add_argument("folder", type=folder_to_write, help="where the three files are written")
    parser.add_argument("--second", action="store_true", help="write the second three")
    arguments = parser.parse_args()
    for name, documents in (SECOND if arguments.second else CORPORA).items():
        lines = [json.dumps({"text": text}) for text in dict.fromkeys(documents()) if len(text) >= MIN_CHARS]
        content = "\n".join(lines) + "\n"
        path = arguments.folder / f"{name}.jsonl"
        write_text(path, content)
        print(f"{path}: {len(lines)} documents, {len(content):,} bytes")


if __name__ == "__main__":
    main()
