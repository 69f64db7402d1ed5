"""The page of the report: self-contained, escaped, the same each time, and with the texts that the scripts print."""

import copy
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from k1.experiment import ARMS, FILES
from k1.report.comparison import load_runs
from k1.report.page import continue_all, format_page
from k1.report.tables import format_report
from tests.conftest import run_script

pytestmark = [pytest.mark.xdist_group("page"), pytest.mark.slow]

HOSTILE = "$_$</samp><script>alert('1')</script>&amp;\"<img src=x onerror=alert(1)>{{ 7 * 7 }}"


@pytest.fixture
def report(written):
    return written.results


@pytest.fixture(scope="module")
def html(written):
    return (written.folder / "report.html").read_bytes().decode()


@pytest.fixture(scope="module")
def continuations(trained):
    return continue_all(load_runs(trained.models_dir), "cpu")


def parse(page):
    """The root of the page's tree; raises `ParseError` if an element is not closed or an attribute comes twice."""
    doctype, _, content = page.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    closed = re.sub(r"<((?:meta|link|img)\b[^>]*)>", r"<\1/>", content)
    return ElementTree.fromstring(closed.replace(" open>", ' open="">'))


@pytest.fixture(scope="module")
def page(html):
    return parse(html)


def text_of(element):
    return "".join(element.itertext())


def cells(page):
    """(prompt, stage's heading, model, text) of every continuation, as the page shows them."""
    return [
        (text_of(prompt.find(".//h4")), text_of(heading), term.text.strip(), "".join(map(text_of, text.iter("samp"))))
        for prompt in page.findall(".//details[@class='prompt']")
        for heading, models in zip(prompt.iter("h5"), prompt.iter("dl"), strict=True)
        for term, text in zip(models.iter("dt"), models.iter("dd"), strict=True)
    ]


def test_the_same_checkpoints_give_the_same_page_and_stdout_stays_the_report(written, html, report, continuations):
    assert format_page(report, continuations) == html
    assert written.printed.stdout == format_report(report) + "\n"
    assert re.fullmatch("the report as a page: .*report.html", written.printed.stderr.splitlines()[-1])


def test_nothing_is_loaded_and_nothing_runs(page):
    for element in page.iter():
        assert element.tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert all(value.startswith(("data:", "#")) for name, value in element.items() if name in ("src", "href"))
    policy = page.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_structure_is_one_that_a_screen_reader_can_follow(page):
    levels = [int(element.tag[1]) for element in page.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    names = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(set(names)) == len(names)
    assert {link.get("href").removeprefix("#") for link in page.iter("a")} <= set(names)
    for table in page.iter("table"):
        assert text_of(table.find("caption")) and table.find("thead//th[@scope='col']") is not None
        assert all(row[0].get("scope") == "row" for row in table.findall("tbody/tr"))
    pictures = [image.get("alt") for image in page.iter("img")]
    assert len(pictures) == 2 and min(map(len, pictures)) > 100


def test_the_tables_and_criteria_are_those_of_the_text(written, page, report):
    found = [[" | ".join(map(text_of, row)) for row in table.iter("tr")] for table in page.iter("table")]
    tables = re.findall(r"(?:^\|.*\|\n)+", written.printed.stdout, re.M)
    assert len(tables) == 7
    for table in tables:
        rows = [" | ".join(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()]
        assert [row.replace("->", "→") for row in (rows[0], *rows[2:])] in found
    criteria = page.findall(".//ul[@class='criteria']/li")
    assert [(text_of(item.find("strong")), text_of(item.find("span"))) for item in criteria] == [
        ("✓ met" if item["met"] else "✗ not met", item["criterion"]) for item in report["criteria"]
    ]


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


def test_names_prompts_and_texts_are_escaped(report, continuations):
    for number, dataset in enumerate(report["datasets"]):
        dataset["name"] = f"/{number}\ud800\x00{HOSTILE.replace('/', '')}"
        for model in report["models"].values():
            model["forgetting_percent"][dataset["name"]] = 0.0
    text, prompts = f"\ud83d\x00\x1b {HOSTILE}\n{HOSTILE}", [HOSTILE, "", "\udcff\x0b"]
    hostile = [found._replace(prompt=prompts[found.place % 3], text=text) for found in continuations]
    page = format_page(report, hostile)
    page.encode()
    tree = parse(page)
    assert "\x00" not in page and "script" not in {element.tag for element in tree.iter()}
    assert len(list(tree.iter("img"))) == 2 and len(cells(tree)) == len(hostile)
    for prompt, stage, _, shown in cells(tree):
        assert shown == text.translate(dict.fromkeys((0xD83D, 0, 0x1B), "\ufffd"))
        assert prompt in (HOSTILE, "The beginning of a document", "\ufffd\ufffd")
        assert stage.endswith(HOSTILE.replace("/", ""))


def test_four_arms_stand_side_by_side_with_the_answer(report, continuations):
    models, like = report["models"], {"sparse": "baseline", "baseline_rehearsal": "k1"}
    report["models"] = {arm: copy.deepcopy(models[like.get(arm, arm)]) for arm in ARMS}
    for number, model in enumerate(report["models"].values()):
        model["average_forgetting_percent"] = 10.25 * number
    met = sum(item["met"] for item in report["criteria"])
    four = [
        found._replace(arm=arm, text=found.text if found.place else " ")
        for arm in ARMS
        for found in continuations
        if found.arm == like.get(arm, arm)
    ]
    page = format_page(report, four)
    assert [cell[2] for cell in cells(parse(page))] == [*ARMS.values()] * 18
    assert page.count("Nothing but white space.") == 12
    assert text_of(parse(page).find(".//p[@class='answer']")) == (
        "Of the accuracy on earlier datasets is forgotten: baseline 0.0%, 51% alone 10.2%, baseline + rehearsal 20.5%, "
        f"K-1 30.8%; {met} of 4 success criteria are met."
    )
