"""Hostile content of tokenizers, as files and inside checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults.checkpoint_mutations import resigned
from tests.faults.mutations import Mutation


def in_json(change: Callable[[dict, Random], object]) -> Mutation:
    def mutate(path: Path, random: Random) -> None:
        content = json.loads(path.read_text())
        change(content, random)
        path.write_text(json.dumps(content))

    return mutate


def replace_tokenizer(change: Callable[[dict, Random], object]) -> Mutation:
    """The same as `in_json`, for the tokenizer inside a checkpoint."""

    def mutate(content: dict, random: Random) -> None:
        tokenizer = json.loads(content["tokenizer"])
        change(tokenizer, random)
        content["tokenizer"] = json.dumps(tokenizer)

    return resigned(mutate)


def renumber(content: dict, random: Random) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary[random.choice(sorted(vocabulary))] = random.choice([-1, 0, 10**6, 2**32 - 1, 2**64, "1", None, 1.5])


def any_wrong_value(content: dict, random: Random) -> None:
    place = random.choice([content, content["model"], content["pre_tokenizer"], content["added_tokens"][0]])
    name = random.choice(sorted(place))
    place[name] = random.choice([value for value in (7, "text", [1], {"a": 1}, 2**70) if value != place[name]])


def lengthen(content: dict, random: Random) -> None:
    # The merges of bytes that are no merge yet, with ids beyond the vocabulary of the model.
    model = content["model"]
    new = next(a + b for a in "abcdefgh" for b in "zyxw" if a + b not in model["vocab"])
    model["merges"].append([new[0], new[1]])
    model["vocab"][new] = len(model["vocab"])


TOKENIZERS: dict[str, Callable[[dict, Random], object]] = {
    "a wrong value": any_wrong_value,
    "a wrong id": renumber,
    "a key missing": lambda content, random: content["model"].pop(random.choice(sorted(content["model"]))),
    "a merge of unknown tokens": lambda content, random: content["model"]["merges"].append(["no", "such"]),
    "a merge twice": lambda content, random: content["model"]["merges"].append(content["model"]["merges"][0]),
    "a merge of three": lambda content, random: content["model"]["merges"].append(["a", "b", "c"]),
    "a lone surrogate": lambda content, random: content["model"]["merges"].append(["\ud800", "a"]),
    "a normalizer": lambda content, random: content.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}
    ),
    "an unbounded regular expression": lambda content, random: content.update(
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": "(.*)*(.*)*x"},
            "behavior": "Isolated",
            "invert": False,
        }
    ),
    "a post-processor": lambda content, random: content.update(
        post_processor={"type": "BertProcessing", "sep": ["a", 9**9], "cls": ["b", 9**9]}
    ),
    "another model": lambda content, random: content.update(
        model={"type": "Unigram", "unk_id": 5, "vocab": [], "byte_fallback": False}
    ),
    "truncation to nothing": lambda content, random: content.update(
        truncation={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}
    ),
    "nesting": lambda content, random: content.update(added_tokens=json.loads("[" * 900 + "]" * 900)),
}
