"""Speed on the pages: shown once it is recorded, and not before."""

import json
import shutil

import pytest

from k1.errors import K1Error
from k1.study.readme import PAGES, render
from k1.study.speed import format_speed
from tests.conftest import ROOT
from tests.study.records import benchmark_record

MAX_LINES = 12


@pytest.fixture
def copies(tmp_path):
    """The pages, and the records without that of the benchmark."""
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png", "benchmark.json"))
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def block(page: str, name: str) -> str:
    """What stands in the block `name` of a page."""
    return page.split(f"<!-- begin {name} -->\n")[1].split(f"\n<!-- end {name} -->")[0]


def test_without_a_record_the_blocks_are_empty(copies):
    pages = render(copies)
    assert block(pages["README.md"], "speed") == block(pages["k1/training/README.md"], "benchmark") == ""


def test_a_record_fills_two_pages_and_no_other(copies):
    before, record = render(copies), benchmark_record()
    (copies / "results" / "benchmark.json").write_text(json.dumps(record))
    after = render(copies)
    assert {page for page in PAGES if after[page] != before[page]} == {"README.md", "k1/training/README.md"}
    assert block(after["README.md"], "speed") == format_speed(record)
    assert len(block(after["README.md"], "speed").splitlines()) + 2 <= MAX_LINES


def test_the_table_of_the_readme_has_a_row_for_each_shape_that_was_trained():
    head, _, *rows = format_speed(benchmark_record()).splitlines()
    names = ["K-1, stage 1", "K-1, later stages", "bare PyTorch loop"]
    assert [cell.strip() for cell in head.split("|")[2:-1]] == names
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["`quick`, 1,000 parameters", "1.20", "1.40", "0.90"],
        ["`wide`, 1,000 parameters", "1.20", "1.40", "0.90"],
    ]


def test_memory_on_paper_follows_from_what_was_measured(copies):
    (copies / "results" / "benchmark.json").write_text(json.dumps(benchmark_record()))
    page = " ".join(block(render(copies)["k1/training/README.md"], "benchmark").split())
    # 8 x 1,024 tokens of a million bytes each, and 2 and 5 GB of the optimizer alone.
    assert "a forward pass of 8,192 tokens adds 8.2 GB" in page
    assert "one device needs about 10 GB (baseline), 13 GB (K-1, stage 1)" in page
    assert "With 8 processes each has its share of the tokens, 1.0 GB, and needs about 3 GB (baseline), 6 GB" in page


def test_a_damaged_record_is_named(copies):
    (copies / "results" / "benchmark.json").write_text("{")
    with pytest.raises(K1Error, match="benchmark.json is not JSON"):
        render(copies)
