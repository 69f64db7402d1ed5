"""The page of the report: self-contained, escaped, the same each time, and with the texts that the scripts print."""

import copy
import io
import os
import re
import tomllib
from itertools import pairwise
from shutil import which

import pytest
from PIL import Image

from k1.checkpoints import load_checkpoint
from k1.errors import K1Error
from k1.experiment import ARMS, FILES
from k1.report.comparison import load_runs
from k1.report.continuations import continue_all, new_words, words_of
from k1.report.page import format_page
from k1.report.text import format_report
from tests.conftest import ROOT, VOCABULARIES, run_script
from tests.report.chromium import NAMES, Chromium, find_chromium
from tests.report.markup import contrast, parse
from tests.report.screenshots import VIEWS, take

pytestmark = [pytest.mark.xdist_group("page"), pytest.mark.slow]

HOSTILE = "$_$</samp><script>alert('1')</script>&amp;\"<img src=x onerror=alert(1)>{{ 7 * 7 }}"


@pytest.fixture
def report(written):
    return written.results


@pytest.fixture(scope="module")
def html(written):
    return (written.folder / "report.html").read_bytes().decode()


@pytest.fixture(scope="module")
def page(html):
    return parse(html)


@pytest.fixture(scope="module")
def continuations(trained):
    return continue_all(load_runs(trained.models_dir), "cpu")


def test_stdout_stays_the_report_and_stderr_says_where_the_page_is(written, report):
    finished = written.printed
    assert finished.stdout == format_report(report) + "\n"
    assert re.fullmatch("the report as a page: .*report.html", finished.stderr.splitlines()[-1])


def test_the_same_checkpoints_give_the_same_page(trained, html, report, continuations):
    final = load_checkpoint(trained.models_dir / "k1_final.pt", "k1")
    assert format_page(report, continuations, new_words(continuations, final)) == html


def test_nothing_is_loaded_and_nothing_runs(page):
    assert page.all("script", "iframe", "object", "embed", "base", "form") == []
    for element in page.all():
        assert not [name for name in element.attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "poster"):
            assert (element.attributes.get(name) or "data:").startswith(("data:", "#"))
    (style,) = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text
    policies = [meta.attributes["content"] for meta in page.all("meta") if "http-equiv" in meta.attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_the_structure_is_one_that_a_screen_reader_can_follow(page):
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    levels = [int(heading.tag[1]) for heading in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    names = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(set(names)) == len(names)
    links = [link.attributes["href"] for link in page.all("a")]
    assert links[0] == "#main" and all(link.removeprefix("#") in names for link in links)
    for table in page.all("table"):
        assert len(table.all("caption")) == 1
        assert {head.attributes["scope"] for head in table.all("thead")[0].all("th")} == {"col"}
        for row in table.all("tbody")[0].all("tr"):
            assert [head.attributes["scope"] for head in row.all("th")] == ["row"]
    for figure in page.all("figure"):
        (image,), (caption,) = figure.all("img"), figure.all("figcaption")
        assert len(image.attributes["alt"]) > len(caption.text) > 10
    assert len(page.all("figure")) == 2


def test_the_tables_are_those_of_the_text(written, page):
    tables = [table.all("tr") for table in page.all("table")]
    found = [[" | ".join(cell.text for cell in row.all("th", "td")) for row in rows] for rows in tables]
    text = re.findall(r"(?:^\|.*\|\n)+", written.printed.stdout, re.M)
    assert len(text) == 7
    for table in text:
        rows = [" | ".join(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()]
        assert [row.replace("->", "→") for row in (rows[0], *rows[2:])] in found


def test_the_criteria_say_whether_they_are_met(page, report):
    (criteria,) = [element for element in page.all("ul") if element.attributes.get("class") == "criteria"]
    assert [(item.all("strong")[0].text, item.all("span")[0].text) for item in criteria.all("li")] == [
        ("✓ met" if item["met"] else "✗ not met", item["criterion"]) for item in report["criteria"]
    ]


def answer(page):
    """What the report found, in one sentence."""
    (found,) = [element.text for element in page.all("p") if element.attributes.get("class") == "answer"]
    return found


def cells(page):
    """(prompt, stage's heading, model, text) of every continuation, as the page shows them."""
    found = []
    for prompt in (element for element in page.all("details") if element.attributes.get("class") == "prompt"):
        for heading, models in zip(prompt.all("h5"), prompt.all("dl"), strict=True):
            for term, text in zip(models.all("dt"), models.all("dd"), strict=True):
                shown = "".join(sample.text for sample in text.all("samp"))
                found.append((prompt.all("h4")[0].text, heading.text, term.children[0].strip(), shown))
    return found


@pytest.mark.parametrize("method", FILES)
def test_the_page_has_what_the_generate_scripts_print(trained, page, method):
    """Every continuation of every checkpoint, with the default settings of the script."""
    printed = run_script(f"generate_{method}.py", "--models_dir", trained.models_dir, "--stages").stdout
    expected = set()
    for stage, block in enumerate(re.split(r"^##### checkpoint .*\n", printed, flags=re.M)[1:], start=1):
        for heading, text in re.findall(r"^=== (.*)\n((?:.|\n)*?)\n\n(?====|\Z)", block, re.M):
            prompt = heading.partition(": ")[2].replace("\\n", "↵")
            expected.add((prompt, f"After stage {stage}, {trained.corpora[stage - 1].name}", ARMS[method], text))
    assert len(expected) == 18
    assert {cell for cell in cells(page) if cell[2] == ARMS[method]} == expected


def test_a_word_is_marked_where_the_training_text_does_not_have_it(page):
    prompts = [element for element in page.all("details") if element.attributes.get("class") == "prompt"]
    count = 0
    for number, prompt in enumerate(prompts):
        vocabulary = [*VOCABULARIES.values()][number // 3]
        for sample in prompt.all("samp"):
            words = words_of(prompt.all("h4")[0].text, sample.text)
            expected = [sample.text[start:end] for word, start, end in words if word not in vocabulary]
            assert [mark.text for mark in sample.all("mark")] == expected
            count += len(expected)
    assert len(prompts) == 9 and count > 10


def test_names_prompts_and_texts_are_escaped(report, continuations):
    for number, dataset in enumerate(report["datasets"]):
        dataset["name"] = f"/{number}\ud800\x00{HOSTILE.replace('/', '')}"
        dataset["prompts"] = [HOSTILE, "", "\udcff\x0b"]
        for model in report["models"].values():
            model["forgetting_percent"][dataset["name"]] = 0.0
    text = f"\ud83d\x00\x1b {HOSTILE}\n{HOSTILE}"
    hostile = {arm: [[text for _ in texts] for texts in stages] for arm, stages in continuations.items()}
    page = format_page(report, hostile, [{"script", "alert"}] * 3)
    page.encode()
    tree = parse(page)
    assert tree.all("script") == [] and len(tree.all("img")) == 2
    for prompt, stage, _, shown in cells(tree):
        assert shown == text.translate(dict.fromkeys((0xD83D, 0, 0x1B), "\ufffd"))
        assert prompt in (HOSTILE, "The beginning of a document", "\ufffd\ufffd")
        assert stage.endswith(HOSTILE.replace("/", ""))
    assert "\x00" not in page


def test_four_arms_stand_side_by_side_with_the_answer_and_text_without_a_letter_is_said_to_be_there(
    report, continuations
):
    baseline = report["models"]["baseline"]
    report["models"] = {arm: report["models"].get(arm) or copy.deepcopy(baseline) for arm in ARMS}
    for number, model in enumerate(report["models"].values()):
        model["average_forgetting_percent"] = 10.25 * number
    met = sum(item["met"] for item in report["criteria"])
    four = {arm: [["", *texts[1:]] for texts in continuations.get(arm, continuations["baseline"])] for arm in ARMS}
    page = format_page(report, four, [set()] * 3)
    tree = parse(page)
    assert [cell[2] for cell in cells(tree)] == [*ARMS.values()] * 18
    assert page.count("Nothing but white space.") >= 12
    assert answer(tree) == (
        "Of the accuracy on earlier datasets is forgotten: baseline 0.0%, 51% alone 10.2%, baseline + rehearsal 20.5%, "
        f"K-1 30.8%; {met} of 4 success criteria are met."
    )


def test_all_text_stands_out_from_its_ground(page):
    """In the light, the dark and the printed scheme."""
    blocks = re.findall(r":root \{(.*?)\}", page.all("style")[0].text, re.S)
    assert len(blocks) == 3
    pairs = [(ink, ground) for ink in ("ink", "quiet") for ground in ("ground", "raised")]
    pairs += [("ink", "good-ground"), ("ink", "bad-ground"), ("good", "good-ground"), ("bad", "bad-ground")]
    pairs += [("link", "ground"), ("mark", "mark-ground")]
    for block in blocks:
        colors = {
            name: [int(color[place : place + 2], 16) / 255 for place in (0, 2, 4)]
            for name, color in re.findall(r"--([\w-]+): #(\w{6});", block)
        }
        assert all(contrast(colors[ink], colors[ground]) >= 4.5 for ink, ground in pairs)


def test_an_installed_package_has_the_files_of_the_page():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["k1.report"]
    files = {path for path in (ROOT / "k1" / "report").iterdir() if path.is_file() and path.suffix != ".py"}
    assert files and files == {path for pattern in patterns for path in (ROOT / "k1" / "report").glob(pattern)}


def test_without_a_browser_the_command_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(K1Error, match="install it .* or name one in "):
        find_chromium()
    monkeypatch.setenv("CHROMIUM", "/a/browser")
    assert find_chromium() == "/a/browser"


@pytest.mark.skipif(not os.environ.get("CHROMIUM") and not any(map(which, NAMES)), reason="no Chromium is here")
def test_in_a_browser_the_page_fits_the_screen_and_loads_nothing(html, tmp_path):
    path = tmp_path / "report.html"
    with Chromium() as browser:
        path.write_text(html)
        for view in VIEWS:
            width, height = Image.open(io.BytesIO(take(browser, path, view))).size
            assert width == view.width and 300 < height <= view.height
        for planted, fault in (
            ('<div style="width: 1300px">x</div>', "1300 pixels wide"),
            ('<img src="other.png">', "not self-contained: it loads file://.*/other.png"),
        ):
            path.write_text(f'<meta name="viewport" content="width=device-width"><body style="margin: 0">{planted}')
            with pytest.raises(K1Error, match=fault):
                take(browser, path, VIEWS[0])
