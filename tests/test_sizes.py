"""Nothing is longer than a reader takes in at once: files, functions, and the first page."""

import ast

import pytest

from tests.conftest import ROOT

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_README_LINES = 200
MAX_SCREEN_COLUMNS = 100
MAX_COLUMNS = 120

SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "k1").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def test_no_file_is_longer_than_300_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines():
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 500
    assert {place: length for place, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_no_line_is_longer_than_120_columns():
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > MAX_COLUMNS
    ]
    assert places == []


@pytest.fixture
def readme() -> list[str]:
    return (ROOT / "README.md").read_text().splitlines()


def test_the_readme_has_at_most_200_lines(readme):
    assert len(readme) <= MAX_README_LINES


def test_the_first_screen_of_the_readme_is_at_most_100_columns_wide(readme):
    end = next(number for number, line in enumerate(readme) if line.startswith("## "))
    assert end > 10
    assert [line for line in readme[:end] if len(line) > MAX_SCREEN_COLUMNS] == []
