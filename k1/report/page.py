"""The report as a page: one HTML file that holds all it shows, needs no network and runs no script."""

import re
from itertools import count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from k1.experiment import ARMS
from k1.report.continuations import Continuations, pieces_of, words_of
from k1.report.plots import accuracy_figure, first_model, learning_figure, picture_address
from k1.report.tables import Table
from k1.report.text import about_datasets, about_generation, about_run, generation_tables, labels_of, result_tables

# What HTML does not allow, and lone surrogates, which no UTF-8 file can hold.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def printable(value: object) -> object:
    """A text with what a page cannot hold shown as the replacement character; HTML and other values as they are."""
    return UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def format_page(report: dict, continuations: Continuations, new: list[set[str]]) -> str:
    """The page, as HTML; the same arguments give the same text.

    `report` is what `k1.report.comparison.report_of` returns, `continuations` what
    `k1.report.continuations.continue_all` returns, and `new[i]` the words that the
    training text of dataset number i does not have.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, finalize=printable,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    accuracy, loss, forgetting, transfer = result_tables(report)
    return environment.get_template("page.html.jinja").render(
        report,
        arms=ARMS,
        names=[ARMS[arm] for arm in report["models"]],
        results=[accuracy, forgetting, transfer],
        accuracy_picture=picture_address(accuracy_figure(report)),
        learning_picture=picture_address(learning_figure(report)),
        matrices=accuracy_tables(report),
        domains=domains(report, continuations, new),
        more=[loss],
        about_generation=about_generation(report),
        scores=generation_tables(report),
        run=about_run(report),
        texts=about_datasets(report),
    )


def accuracy_tables(report: dict) -> list[Table]:
    """The accuracy of every dataset after every stage, a table for each model."""
    labels = labels_of(report)
    head = ["Dataset", first_model(report), *(f"after stage {stage}" for stage in range(1, len(labels) + 1))]

    def rows(model: dict) -> list[list[str]]:
        shown = [
            ["not measured" if value is None else f"{100 * value:.1f}" for value in column]
            for column in zip(*model["accuracy_matrix"])
        ]
        return [head, *([label, *cells] for label, cells in zip(labels, shown))]

    return [
        Table(f"{ARMS[arm]}: next-token accuracy on test text in %", rows(model))
        for arm, model in report["models"].items()
    ]


def domains(report: dict, continuations: Continuations, new: list[set[str]]) -> list[tuple]:
    """Of each dataset its name and prompts, and of each prompt what every model writes after every stage from its own.

    A prompt is (text, stages), a stage (heading, models), a model (name, text, its pieces, number of its words).
    """
    labels, positions = labels_of(report), count()

    def written(arm: str, prompt: str, text: str, number: int) -> tuple:
        words = words_of(prompt, text)
        return ARMS[arm], text, pieces_of(text, words, new[number]), len(words)

    def stages(prompt: str, position: int, number: int) -> list[tuple]:
        return [
            (
                f"After stage {stage + 1}, {labels[stage]}",
                [written(arm, prompt, texts[stage][position], number) for arm, texts in continuations.items()],
            )
            for stage in range(number, len(labels))
        ]

    return [
        (labels[number], [(prompt, stages(prompt, next(positions), number)) for prompt in dataset["prompts"]])
        for number, dataset in enumerate(report["datasets"])
    ]
