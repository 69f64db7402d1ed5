"""Every figure on the pages is one that results/ records or that stands in the code."""

import json
import re
import tomllib

import pytest

from k1.checkpoints import SECONDS_BETWEEN_SAVES
from k1.config import PRESETS
from k1.data.local_files import SECTION_CHARACTERS
from k1.report.metrics import mean
from k1.report.tables import format_report
from k1.sparse import UPDATE_FRACTION
from k1.study.readme import BLOCK, PAGES, render
from k1.study.seeds import format_seeds, load_reports
from tests.conftest import ROOT, assert_one_clear_line, run_script
from tests.study.test_seeds import ENDS, report

# What pages of made-up records show.
BLOCKS = ("answer", "time", "limits", "model", "study")


@pytest.fixture(scope="module")
def recorded() -> dict:
    """The report of the recorded run."""
    return json.loads((ROOT / "results" / "report.json").read_text())


@pytest.fixture(scope="module")
def seeds() -> list[dict]:
    """The reports of all recorded seeds."""
    return load_reports(sorted((ROOT / "results").glob("seed*.json")))


@pytest.fixture
def made_up(tmp_path):
    """Pages, each with the same empty blocks, and made-up records of two seeds."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "study.md").write_text("a table\n")
    for seed, ends in enumerate(ENDS):
        for name in (f"seed{seed}", "report"):
            (tmp_path / "results" / f"{name}.json").write_text(json.dumps(report(seed, ends)))
    page = "# Title\n\n" + "".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in BLOCKS)
    for name in PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(page)
    return tmp_path


def pages_of(root):
    return {page: (root / page).read_text(encoding="utf-8") for page in PAGES}


def test_the_pages_stand_as_the_records_make_them(recorded, seeds):
    assert render(ROOT) == pages_of(ROOT)
    for name, text in (("report", format_report(recorded)), ("seeds", format_seeds(seeds))):
        assert (ROOT / "results" / f"{name}.md").read_text() == text + "\n"
    assert recorded in seeds


def test_every_table_that_is_recorded_stands_on_one_page():
    shown = [block["name"] for text in pages_of(ROOT).values() for block in BLOCK.finditer(text)]
    markers = sum(text.count("<!-- begin ") for text in pages_of(ROOT).values())
    assert len(set(shown)) == len(shown) == markers
    linked = {"README", "before", "continuations", "map"}
    assert {path.stem for path in (ROOT / "results").glob("*.md")} - linked < set(shown)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_a_heading(page):
    for name, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text()):
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), name
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.M) if anchor else [""]
        assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_the_answer_of_the_readme_is_what_the_seeds_found(seeds):
    """51% alone forget as much as the baseline; rehearsal keeps nearly all, and new datasets are learned no worse."""

    def forgotten(arm):
        return mean([report["models"][arm]["average_forgetting_percent"] for report in seeds])

    def new_loss(arm):
        names = [dataset["name"] for dataset in seeds[0]["datasets"][1:]]
        return mean([report["models"][arm]["own"][name]["loss"] for report in seeds for name in names])

    assert forgotten("sparse") > 0.9 * forgotten("baseline")
    for arm in ("baseline_rehearsal", "k1"):
        assert forgotten(arm) < 0.2 * forgotten("baseline") and new_loss(arm) < new_loss("baseline") + 0.01


def test_the_command_fills_all_pages_from_the_records(made_up):
    finished = run_script("-m k1.study.readme", cwd=made_up)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    (text,) = set(pages_of(made_up).values())
    # Of `a` 25% are known at all times; 10 (5.0 - 4) % are forgotten at both seeds, and 6 and 8 of K-1.
    assert "| baseline             | 25.0 -> 25.0 | 25.0 -> 25.0 | 25.0 |   10.0 ± 0.0 |" in text
    assert "| K-1                  | 25.0 -> 25.0 | 25.0 -> 25.0 | 25.0 |   7.0 ± 12.7 |" in text
    # 2,400 steps of 8 sequences of 128 tokens are 20 minutes at 2,048 tokens a second, of two arms without a first
    # stage of their own 10: together 30 on 2 cores.
    prose = " ".join(text.split())
    assert "takes about 30 minutes on 2 CPU cores" in prose
    assert "123,456 parameters, 2 seeds" in prose and "used Python 3.99.1" in prose
    assert "(4,321 predicted tokens; the others have 4,322 and 4,323)" in prose
    assert "| c       | bundled |           1,002 |         100 |" in text
    assert "<!-- begin study -->\na table\n<!-- end study -->" in text


def test_a_missing_record_is_one_line_and_changes_nothing(made_up):
    (made_up / "results" / "study.md").unlink()
    before = pages_of(made_up)
    finished = run_script("-m k1.study.readme", cwd=made_up)
    assert_one_clear_line(finished, 1, "results/study.md", "make record writes")
    assert pages_of(made_up) == before


def stated_figures() -> list[str]:
    """Every figure that the README names outside its blocks, made from where it comes from."""
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    return [
        f"only **{UPDATE_FRACTION:.0%} of its parameters per step**",
        f"the {UPDATE_FRACTION:.0%} alone",
        f"need Python {python} or newer",
        f"sections of about {SECTION_CHARACTERS:,} characters",
        f"written about every {SECONDS_BETWEEN_SAVES} seconds",
    ]


# Code, and names with a digit in them.
NAMES = r"```.*?```|`[^`]*`|results/\w+|[Dd]atasets? \d( and \d)?|\bk1\b|K-1|wikitext-2-raw-v1|Skylion007|SHA-256"


def test_every_other_figure_of_the_readme_is_that_of_the_code():
    prose = " ".join(BLOCK.sub("", (ROOT / "README.md").read_text()).split())
    for figure in stated_figures():
        assert figure in prose
        prose = prose.replace(figure, "")
    assert re.findall(r"\S*\d\S*", re.sub(NAMES, "", prose)) == []
    assert f"--rehearsal {PRESETS['quick'].rehearsal}`" in (ROOT / "README.md").read_text()
