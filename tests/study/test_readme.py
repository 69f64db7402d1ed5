"""Every figure on the pages is one that results/ records or that stands in the code."""

import json
import re
import shutil
import tomllib

import pytest

from k1.data.hub import SILENCE_SECONDS
from k1.data.local_files import SECTION_CHARACTERS
from k1.errors import K1Error
from k1.presets import PRESETS, UPDATE_FRACTION
from k1.report.text import format_report
from k1.study.readme import BLOCK, BLOCKS, PAGES, Results, fill, format_criteria, render
from k1.study.seeds import format_seeds
from k1.study.tables import study_tables
from k1.training.resume import SECONDS_BETWEEN_SAVES
from tests.conftest import ROOT, assert_one_clear_line, run_script
from tests.faults import fuzz, kills


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(ROOT / "results")


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return render(ROOT)


@pytest.fixture
def copies(tmp_path):
    """The pages and the records in a folder of their own."""
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png"))
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_a_page_stands_as_the_records_make_it(rendered, page):
    assert rendered[page] == (ROOT / page).read_text(encoding="utf-8")


def test_the_tables_beside_the_records_are_those_of_the_records(results):
    assert results.text("report.md") == format_report(results.report) + "\n"
    assert results.text("seeds.md") == format_seeds(results.seeds) + "\n"
    assert results.text("study.md") == study_tables(results.study["runs"]) + "\n"


def test_the_recorded_run_is_one_of_the_recorded_seeds(results):
    assert results.report in results.seeds


def test_every_page_has_blocks_and_every_block_has_its_page():
    found = {page: [block["name"] for block in BLOCK.finditer((ROOT / page).read_text())] for page in PAGES}
    assert all(found.values())
    assert sorted(name for names in found.values() for name in names) == sorted(BLOCKS)


def test_the_command_fills_empty_blocks(copies, rendered):
    for page in PAGES:
        (copies / page).write_text(BLOCK.sub(r"\g<begin>\g<end>", (copies / page).read_text()))
    finished = run_script("-m k1.study.readme", "--root", copies)
    assert (finished.status, finished.stdout, finished.stderr) == (0, "", "")
    assert {page: (copies / page).read_text() for page in PAGES} == rendered


def scaled(value):
    """`value` with every fraction in it half as large again, but for settings, which are the same in all reports."""
    if isinstance(value, dict):
        return {name: item if name == "learning_rates" else scaled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [scaled(item) for item in value]
    return 1.5 * value if isinstance(value, float) else value


CHANGED_PAGES = {
    "batches.json": {"results/tuning.md"},
    "report.json": {"README.md", "results/README.md"},
    "seed2.json": {"README.md", "results/README.md", "k1/sparse/README.md"},
    "study.json": {"README.md", "results/README.md"},
    "sweep.json": {"results/tuning.md", "k1/sparse/README.md"},
    "tuning.json": {"results/tuning.md"},
    "unseen.md": {"results/README.md"},
}


@pytest.mark.parametrize(("file", "pages"), CHANGED_PAGES.items(), ids=CHANGED_PAGES)
def test_another_record_changes_its_pages_and_no_other(copies, rendered, file, pages):
    path = copies / "results" / file
    if file.endswith(".json"):
        path.write_text(json.dumps(scaled(json.loads(path.read_text()))))
    else:
        path.write_text(re.sub(r"\d\.\d", "7.7", path.read_text()))
    changed = render(copies)
    assert {page for page in PAGES if changed[page] != rendered[page]} == pages


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- begin none -->\n<!-- end none -->\n", "block 'none' is unknown; known are: answer, "),
        ("<!-- begin answer -->\n", "has no <!-- end NAME -->"),
        ("<!-- end answer -->\n", "has no <!-- end NAME -->"),
        ("<!-- begin answer -->\n<!-- end time -->\n", "has no <!-- end NAME -->"),
        ("<!-- end time -->\n<!-- begin time -->\n", "has no <!-- end NAME -->"),
    ],
    ids=["unknown", "no end", "no begin", "another end", "reversed"],
)
def test_a_marker_that_cannot_be_is_refused(results, page, message):
    with pytest.raises(K1Error, match=message):
        fill(page, results)


def test_a_page_without_blocks_stays_as_it_is(results):
    assert fill("# Title\n\n51% of <!-- a comment -->\n", results) == "# Title\n\n51% of <!-- a comment -->\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("report.json", None, "cannot be read .* make record writes it"),
        ("study.json", "{", "is not JSON"),
        ("unseen.md", b"\xff", "cannot be read"),
    ],
    ids=["missing", "not JSON", "not text"],
)
def test_a_record_that_cannot_be_read_is_named(copies, file, content, message):
    path = copies / "results" / file
    path.unlink() if content is None else path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(K1Error, match=f"{file} {message}"):
        render(copies)


def test_a_failure_is_one_line_and_changes_nothing(copies):
    for file in (copies / "results").glob("seed*.json"):
        file.unlink()
    before = {page: (copies / page).read_text() for page in PAGES}
    finished = run_script("-m k1.study.readme", "--root", copies)
    assert_one_clear_line(finished, 1, "README.md", "has no seed*.json; make record writes them")
    assert {page: (copies / page).read_text() for page in PAGES} == before


def stated_figures() -> list[str]:
    """Every figure that the README names outside its blocks, made from where it comes from."""
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    return [
        f"{UPDATE_FRACTION:.0%}",
        f"{1 - UPDATE_FRACTION:.0%}",
        f"At the end {PRESETS['quick'].interpolation:.0%} of the stage's change is kept",
        f"need Python {python} or newer",
        f"sections of about {SECTION_CHARACTERS:,} characters",
        f"written about every {SECONDS_BETWEEN_SAVES} seconds",
        f"after {SILENCE_SECONDS} seconds without new data",
        f"kills the scripts {kills.TOTAL} times",
        f"reads {fuzz.CASES:,} damaged files",
        "100 (own - end) / own",
    ]


# Code, and names with a digit in them.
NAMES = (
    r"```.*?```|`[^`]*`|[Dd]atasets? \d( and \d)?|\bk1\b|K-1|WikiText-2|wikitext-2-raw-v1|Skylion007|SHA-256|GPT-2|"
    r"distinct-2"
)


def test_every_other_figure_of_the_readme_is_that_of_the_code():
    prose = " ".join(BLOCK.sub("", (ROOT / "README.md").read_text()).split())
    for figure in stated_figures():
        assert figure in prose
        prose = prose.replace(figure, "")
    assert re.findall(r"\S*\d\S*", re.sub(NAMES, "", prose)) == []


def test_criteria_are_counted_over_the_seeds():
    reports = [{"criteria": [{"met": first}, {"met": True}, {"met": False}]} for first in (True, False)]
    assert format_criteria(reports) == (
        "Met at all seeds: criterion 2 of the report; criterion 1 at 1 of 2; criterion 3 at 0 of 2."
    )


def test_what_the_readme_says_of_generated_text_is_what_the_reports_found(results):
    third = [report["criteria"][2]["values"] for report in results.seeds]
    short = [
        score
        for values in third
        for kept in values["k1"].values()
        for score, low in kept.items()
        if low < values["threshold"]
    ]
    missed = [item["criterion"][0] for report in results.seeds for item in report["criteria"] if not item["met"]]
    assert not missed and not short
    assert "and its text stays good. But" in " ".join((ROOT / "README.md").read_text().split())
