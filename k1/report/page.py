"""The report as a page: one HTML file that holds all it shows, needs no network and runs no script."""

import re
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from k1.experiment import ARMS
from k1.report.continuations import Continuation, Continuations
from k1.report.plots import accuracy_figure, learning_figure, picture_address
from k1.report.tables import Table, dataset_label, first_model
from k1.report.text import about_dataset, about_generation, about_run, generation_tables, result_tables

# What HTML does not allow, and lone surrogates, which no UTF-8 file can hold.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Picture(NamedTuple):
    """A figure of the report: `address` is a `data:` URL, `alternative` says what it shows to who cannot see it."""

    address: str
    alternative: str
    caption: str


class Cell(NamedTuple):
    """What a model writes after a prompt: pieces of text, each with whether it is marked, and the counts of words."""

    model: str
    pieces: list[tuple[str, bool]]
    marked: int
    words: int
    is_blank: bool


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
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    accuracy, loss, forgetting, transfer = result_tables(report)
    return environment.get_template("page.html.jinja").render(
        question=question(report),
        answer=answer(report),
        too_small=report["preset"] == "smoke",
        results=[accuracy, forgetting, transfer],
        criteria=report["criteria"],
        pictures=pictures(report),
        matrices=accuracy_tables(report),
        domains=domains(report, continuations, new),
        more=[loss],
        about_generation=about_generation(report),
        scores=generation_tables(report),
        run=about_run(report),
        datasets=[about_dataset(dataset) for dataset in report["datasets"]],
        versions=report["versions"],
    )


def question(report: dict) -> str:
    """What the report is about."""
    share = report["models"]["k1"]["updated_fraction"]
    return f"Does a language model that updates only {share:.0%} of its parameters forget less?"


def answer(report: dict) -> str:
    """What the report found, in one sentence."""
    forgotten = [f"{ARMS[arm]} {result['average_forgetting_percent']:.1f}%" for arm, result in report["models"].items()]
    met = sum(item["met"] for item in report["criteria"])
    return (
        f"Of the accuracy on earlier datasets is forgotten: {', '.join(forgotten)}; {met} of "
        f"{len(report['criteria'])} success criteria are met."
    )


def pictures(report: dict) -> list[Picture]:
    """The figures of the report."""
    models = ", ".join(ARMS[arm] for arm in report["models"])
    return [
        Picture(
            picture_address(accuracy_figure(report)),
            f"Heat maps of accuracy, a row for each dataset and a column for each stage, for {models}. "
            "The tables below the picture have the same numbers.",
            "Next-token accuracy on test text, in %, of every dataset after every stage",
        ),
        Picture(
            picture_address(learning_figure(report)),
            f"Curves of the training loss over the optimizer steps of all stages, for {models}. {last_losses(report)}",
            "Training loss; stages are divided by upright lines",
        ),
    ]


def last_losses(report: dict) -> str:
    """The training loss at the end of each stage, as a sentence."""
    ends = []
    for arm, result in report["models"].items():
        by_stage = {entry["stage"]: f"{entry['loss']:.2f}" for entry in result["history"]}
        ends.append(f"{ARMS[arm]} {', '.join(by_stage.values())}")
    return f"The loss at the end of each stage: {'; '.join(ends)} nats per token."


def accuracy_tables(report: dict) -> list[Table]:
    """The accuracy of every dataset after every stage, a table for each model."""
    names = [dataset_label(dataset["name"]) for dataset in report["datasets"]]
    head = ["Dataset", first_model(report), *(f"after stage {stage}" for stage in range(1, len(names) + 1))]
    return [
        Table(
            f"{ARMS[arm]}: next-token accuracy on test text in %",
            [head]
            + [
                [name, *("not measured" if value is None else f"{100 * value:.1f}" for value in column)]
                for name, column in zip(names, zip(*result["accuracy_matrix"]))
            ],
        )
        for arm, result in report["models"].items()
    ]


def domains(report: dict, continuations: Continuations, new: list[set[str]]) -> list[dict]:
    """Of each dataset its name and prompts, and of each prompt what every model writes after every stage from its own.

    `prompts` are dictionaries with the `prompt` and its `stages`: (heading, a `Cell` for each model).
    """
    labels = [dataset_label(dataset["name"]) for dataset in report["datasets"]]
    found, position = [], 0
    for number, dataset in enumerate(report["datasets"]):
        prompts = []
        for prompt in dataset["prompts"]:
            stages = [
                (
                    f"After stage {stage + 1}, {labels[stage]}",
                    [cell(ARMS[arm], texts[stage][position], new[number]) for arm, texts in continuations.items()],
                )
                for stage in range(number, len(labels))
            ]
            prompts.append({"prompt": prompt.replace("\n", "\u21b5"), "stages": stages})
            position += 1
        found.append({"name": labels[number], "prompts": prompts})
    return found


def cell(model: str, continuation: Continuation, new: set[str]) -> Cell:
    """What is shown of a continuation."""
    pieces = continuation.pieces(new)
    marked = sum(is_marked for _, is_marked in pieces)
    return Cell(model, pieces, marked, len(continuation.words), not continuation.text.strip())
