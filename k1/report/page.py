"""The report as a page: one HTML file that holds all it shows, needs no network and runs no script."""

import re
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from k1.checkpoints import Checkpoint
from k1.experiment import ARMS
from k1.model import configure_torch
from k1.report import tables
from k1.report.generation import continue_prompts
from k1.report.plots import FIGURES, picture_address

# What HTML does not allow, and lone surrogates, which no UTF-8 file can hold.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Continuation(NamedTuple):
    """What the model of an arm writes after a stage, from 1 on.

    `text` continues `prompt`, which is at `place` among the prompts of all datasets, and of dataset number `domain`.
    """

    arm: str
    stage: int
    domain: int
    place: int
    prompt: str
    text: str


def continue_all(runs: dict[str, list[Checkpoint]], device: str) -> list[Continuation]:
    """What the generate scripts print for every checkpoint of `runs` at their default settings."""
    configure_torch()
    found = []
    for arm, run in runs.items():
        for checkpoint in run:
            prompts = [(domain, text) for domain, data in enumerate(checkpoint.datasets) for text in data["prompts"]]
            texts = continue_prompts(checkpoint, [prompt for _, prompt in prompts], device)
            found += [
                Continuation(arm, checkpoint.stage, domain, place, prompt, text)
                for place, ((domain, prompt), text) in enumerate(zip(prompts, texts))
            ]
    return found


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
    accuracy, loss, forgetting, transfer = tables.result_tables(report)
    labels = tables.labels_of(report)
    return environment.get_template("page.html.jinja").render(
        report,
        arms=ARMS,
        labels=labels,
        names=[ARMS[arm] for arm in report["models"]],
        results=[accuracy, forgetting, transfer],
        pictures={name: picture_address(figure(report)) for name, figure in FIGURES.items()},
        matrices=[
            tables.Table(
                f"{ARMS[arm]}: next-token accuracy on test text in %",
                tables.accuracy_rows(model["accuracy_matrix"], labels, report["start"]),
            )
            for arm, model in report["models"].items()
        ],
        continuations=continuations,
        more=[loss],
        about_generation=tables.about_generation(report),
        scores=tables.generation_tables(report),
        run=tables.about_run(report),
        texts=tables.about_datasets(report),
    )
