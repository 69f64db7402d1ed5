"""The continuations of the fixed prompts by every model, and their words that the training text does not have."""

import re
from collections.abc import Iterable
from dataclasses import replace

from k1.checkpoints import Checkpoint
from k1.config import Arguments
from k1.data.loader import iterate_text, load_datasets
from k1.data.tokenizer import load_tokenizer
from k1.model import configure_torch
from k1.report.generation import continue_prompts, prompts_of
from k1.report.generation_arguments import parse_generation_arguments

# A word is a run of letters: numbers, which are often new, say nothing about a domain.
WORD = re.compile(r"[^\W\d_]+")
# What a model writes, by arm, stage and number of the prompt; a stage has the prompts of the datasets up to its own.
Continuations = dict[str, list[list[str]]]


def words_of(prompt: str, text: str) -> list[tuple[str, int, int]]:
    """The words of `text`, which continues `prompt`: in lower case, with start and end in `text`.

    A word that begins in the prompt counts as a whole. The last word is left out if `text` ends with it: it may be cut
    off.
    """
    whole, start = prompt + text, len(prompt)
    matches = [match for match in WORD.finditer(whole) if start < match.end() < len(whole)]
    return [(match.group().casefold(), max(0, match.start() - start), match.end() - start) for match in matches]


def pieces_of(text: str, words: list[tuple[str, int, int]], new: set[str]) -> list[tuple[str, bool]]:
    """`text` in pieces, each with whether it is one of the words `new`; `words` are those of `words_of`."""
    found, place = [], 0
    for word, start, end in words:
        if word in new:
            found += [(text[place:start], False), (text[start:end], True)]
            place = end
    return [piece for piece in (*found, (text[place:], False)) if piece[0]]


def continue_all(runs: dict[str, list[Checkpoint]], device: str) -> Continuations:
    """What the generate scripts print for every checkpoint of `runs`, at their default settings."""
    configure_torch()
    known: dict[str, list[str]] = {}
    for checkpoint in (checkpoint for run in runs.values() for checkpoint in run):
        # Two arms may share a checkpoint.
        if checkpoint.sha256 not in known:
            settings = parse_generation_arguments("", checkpoint.method, [])
            prompts = [prompt for *_, prompt in prompts_of(checkpoint.datasets, None)]
            known[checkpoint.sha256] = list(continue_prompts(checkpoint, prompts, settings, device))
    return {arm: [known[checkpoint.sha256] for checkpoint in run] for arm, run in runs.items()}


def new_words(continuations: Continuations, final: Checkpoint) -> list[set[str]]:
    """Of the words in the continuations of each dataset's prompts, those that its training text does not have.

    Raises `K1Error` if the text is no longer the one that `final` was trained with.
    """
    arguments = replace(Arguments(**final.arguments), device="cpu")
    datasets = load_datasets(final.datasets, load_tokenizer(final.tokenizer), arguments)
    prompts = [(number, prompt) for number, dataset in enumerate(final.datasets) for prompt in dataset["prompts"]]
    words: list[set[str]] = [set() for _ in datasets]
    for texts in (texts for stages in continuations.values() for texts in stages):
        for (number, prompt), text in zip(prompts, texts):
            words[number].update(word for word, *_ in words_of(prompt, text))
    return [without_known(found, iterate_text(dataset.documents["train"])) for found, dataset in zip(words, datasets)]


def without_known(words: set[str], documents: Iterable[str]) -> set[str]:
    """Those of `words`, in lower case, that none of `documents` has; reads no further than it must."""
    left = set(words)
    for text in documents:
        left.difference_update(map(str.casefold, WORD.findall(text)))
        if not left:
            break
    return left
