"""The report as a page: one HTML file that holds all it shows, needs no network and runs no script."""

import re
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from k1.checkpoints import Checkpoint
from k1.data.loader import TokenizedDataset, iterate_text
from k1.experiment import ARMS
from k1.model import configure_torch
from k1.report.generation import continue_prompts
from k1.report.plots import accuracy_figure, learning_figure, picture_address
from k1.report.tables import Table
from k1.report.text import (
    about_datasets,
    about_generation,
    about_run,
    accuracy_rows,
    generation_tables,
    labels_of,
    result_tables,
)

# A word is a run of letters: numbers, which are often new, say nothing about a domain.
WORD = re.compile(r"[^\W\d_]+")
# What HTML does not allow, and lone surrogates, which no UTF-8 file can hold.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Continuation(NamedTuple):
    """What the model of an arm writes after a stage, from 1 on.

    `prompt` is the one at `place` among the prompts of all datasets, and of dataset number `domain`; `text` continues
    it, and `pieces` and `words` are what `marked` makes of both.
    """

    arm: str
    stage: int
    domain: int
    place: int
    prompt: str
    text: str
    pieces: list[tuple[str, bool]]
    words: int


def continue_all(
    runs: dict[str, list[Checkpoint]], datasets: list[TokenizedDataset], device: str
) -> list[Continuation]:
    """What the generate scripts print for every checkpoint of `runs`, on `datasets`, at their default settings."""
    configure_torch()
    known = [
        {word.casefold() for text in iterate_text(dataset.documents["train"]) for word in WORD.findall(text)}
        for dataset in datasets
    ]
    found = []
    for arm, run in runs.items():
        for checkpoint in run:
            prompts = [(number, text) for number, data in enumerate(checkpoint.datasets) for text in data["prompts"]]
            texts = continue_prompts(checkpoint, [prompt for _, prompt in prompts], device)
            for place, ((domain, prompt), text) in enumerate(zip(prompts, texts)):
                pieces, words = marked(prompt, text, known[domain])
                found.append(Continuation(arm, checkpoint.stage, domain, place, prompt, text, pieces, words))
    return found


def marked(prompt: str, text: str, known: Set[str]) -> tuple[list[tuple[str, bool]], int]:
    """`text`, which continues `prompt`, in pieces, each with whether it is a word that is not `known`; and its words.

    `known` words are in lower case. A word that begins in the prompt counts as a whole. The last word is left out if
    `text` ends with it: it may be cut off.
    """
    whole, place, pieces, words = prompt + text, len(prompt), [], 0
    for match in WORD.finditer(whole):
        if len(prompt) < match.end() < len(whole):
            words += 1
            if match.group().casefold() not in known:
                start = max(match.start(), len(prompt))
                pieces += [(whole[place:start], False), (whole[start : match.end()], True)]
                place = match.end()
    return [piece for piece in (*pieces, (whole[place:], False)) if piece[0]], words


def printable(value: object) -> object:
    """A text with what a page cannot hold shown as the replacement character; HTML and other values as they are."""
    return UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def format_page(report: dict, continuations: list[Continuation]) -> str:
    """The page, as HTML; the same arguments give the same text.

    `report` is what `k1.report.comparison.report_of` returns, `continuations` what `continue_all` returns.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, finalize=printable,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    accuracy, loss, forgetting, transfer = result_tables(report)
    labels = labels_of(report)
    matrices = [
        Table(
            f"{ARMS[arm]}: next-token accuracy on test text in %",
            accuracy_rows(model["accuracy_matrix"], labels, report["start"]),
        )
        for arm, model in report["models"].items()
    ]
    return environment.get_template("page.html.jinja").render(
        report,
        arms=ARMS,
        labels=labels,
        names=[ARMS[arm] for arm in report["models"]],
        results=[accuracy, forgetting, transfer],
        accuracy_picture=picture_address(accuracy_figure(report)),
        learning_picture=picture_address(learning_figure(report)),
        matrices=matrices,
        continuations=continuations,
        more=[loss],
        about_generation=about_generation(report),
        scores=generation_tables(report),
        run=about_run(report),
        texts=about_datasets(report),
    )
