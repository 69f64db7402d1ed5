"""Hostile content of checkpoints, signed anew so that the checks behind the checksum are tested."""

import copy
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from k1.files import content_digest
from tests.faults.mutations import MARKER, Mutation


def signed(content: dict) -> dict:
    """`content` with the SHA-256 that makes it look intact; what cannot be signed keeps the one that it has."""
    unsigned = {name: value for name, value in content.items() if name != "sha256"}
    try:
        return {**unsigned, "sha256": content_digest(unsigned)}
    except (ValueError, RuntimeError, RecursionError, TypeError):
        return content


def resigned(change: Callable[[dict, Random], object]) -> Mutation:
    """A mutation that changes the content of a `.pt` file and gives it the SHA-256 of the changed content."""

    def mutate(path: Path, random: Random) -> None:
        content = torch.load(path, weights_only=True)
        change(content, random)
        torch.save(signed(content), path)

    return mutate


def wrong_value(old: object, random: Random) -> object:
    """A value of another type than `old`."""
    values = [None, True, 7, -1.5, "text", [1, [2]], {"a": {"b": []}}, torch.zeros(2), b"bytes"]
    return random.choice([value for value in values if type(value) is not type(old)])


def without(key: str) -> Mutation:
    return resigned(lambda content, random: content.pop(key))


def wrong_type(key: str) -> Mutation:
    return resigned(lambda content, random: content.update({key: wrong_value(content[key], random)}))


def in_tensors(part: str, change: Callable[[torch.Tensor], object]) -> Mutation:
    """A mutation of one tensor of the dictionary `part`; a change to None removes it."""

    def mutate(content: dict, random: Random) -> None:
        name = random.choice(sorted(content[part]))
        while change(content[part][name].clone()) is None and name.endswith((".left", ".right")):
            name = random.choice(sorted(content[part]))  # a layer may be without a basis
        changed = change(content[part][name].clone())
        content[part] = {**content[part], name: changed}
        if changed is None:
            del content[part][name]

    return resigned(mutate)


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


def put(path: str, value: object) -> Mutation:
    """A mutation that puts `value` at a place in the content, such as "model_config/hidden_size"."""

    def mutate(content: dict, random: Random) -> None:
        *parents, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
        place = content
        for key in parents:
            place = place[key]
        place[last] = copy.deepcopy(value)

    return resigned(mutate)


def cyclic(content: dict, random: Random) -> None:
    content["history"].append(content["history"])


def exponential(content: dict, random: Random) -> None:
    for _ in range(60):
        content["history"] = [content["history"], content["history"]]


TENSORS: dict[str, Callable[[torch.Tensor], object]] = {
    "a tensor missing": lambda tensor: None,
    "a tensor of another shape": lambda tensor: torch.zeros(*tensor.shape, 2),
    "a tensor flattened": lambda tensor: torch.zeros(tensor.numel() + 1),
    "an empty tensor": lambda tensor: torch.zeros(0),
    "a tensor of float64": torch.Tensor.double,
    "a tensor of float16": torch.Tensor.half,
    "a tensor of integers": torch.Tensor.long,
    "a tensor of complex numbers": lambda tensor: tensor.to(torch.complex64),
    "NaN": with_value(float("nan")),
    "infinity": with_value(float("inf")),
    "zero strides of 10^12 elements": lambda tensor: torch.zeros(1).expand(10**6, 10**6),
    "zero strides of the right shape": lambda tensor: torch.zeros(1).expand(tensor.shape),
    "a sparse tensor": torch.Tensor.to_sparse,
    "a list for a tensor": torch.Tensor.tolist,
    "text for a tensor": lambda tensor: "text",
}


def rewrite_archive(change: Callable[[dict[str, bytes], Random], object], compression: int = zipfile.ZIP_STORED):
    """A mutation of the records of a ZIP archive, name -> bytes."""

    def mutate(path: Path, random: Random) -> None:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        change(records, random)
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in records.items():
                archive.writestr(name, data)

    return mutate


def shorten_record(records: dict[str, bytes], random: Random) -> None:
    name = max(records, key=lambda name: len(records[name]))
    records[name] = records[name][: len(records[name]) // 2]


def expand_record(records: dict[str, bytes], random: Random) -> None:
    name = max(records, key=lambda name: len(records[name]))
    records[name] = bytes(2**26)


def rename_record(records: dict[str, bytes], random: Random) -> None:
    name = random.choice(sorted(records))
    records["../../" + name] = records.pop(name)


class Code:
    """Unpickled, it makes the folder `MARKER` in the working directory, and above it."""

    def __init__(self, call: str) -> None:
        self.call = call

    def __reduce__(self):
        command = f"mkdir {MARKER} ../{MARKER}"
        return {
            "os.system": (os.system, (command,)),
            "os.mkdir": (os.mkdir, (f"../{MARKER}",)),
            "exec": (exec, (f"import os; os.system('{command}')",)),
        }[self.call]


def code_in_content(call: str) -> Mutation:
    def mutate(path: Path, random: Random) -> None:
        content = torch.load(path, weights_only=True)
        content[random.choice(sorted(content))] = Code(call)
        torch.save(content, path)

    return mutate


def legacy(path: Path, random: Random) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)


ARCHIVES: dict[str, Mutation] = {
    "a compressed archive": rewrite_archive(lambda records, random: None, zipfile.ZIP_DEFLATED),
    "an archive that expands": rewrite_archive(expand_record, zipfile.ZIP_DEFLATED),
    "a record shorter than its storage": rewrite_archive(shorten_record),
    "a record with ../ in its name": rewrite_archive(rename_record),
    "a TorchScript archive": rewrite_archive(lambda records, random: records.update({"archive/constants.pkl": b"."})),
    "the old torch format": legacy,
    "os.system in the pickle": code_in_content("os.system"),
    "os.mkdir in the pickle": code_in_content("os.mkdir"),
    "exec in the pickle": code_in_content("exec"),
    "a pickle that is code": lambda path, random: path.write_bytes(pickle.dumps(Code("os.mkdir"))),
}

# Values that a training script never writes, at their place in the content of a checkpoint.
VALUES: dict[str, tuple[str, object]] = {
    "10^9 layers": ("model_config/num_hidden_layers", 10**9),
    "no layers": ("model_config/num_hidden_layers", 0),
    "a hidden size of 10^6": ("model_config/hidden_size", 10**6),
    "a hidden size of text": ("model_config/hidden_size", "32"),
    "a negative hidden size": ("model_config/hidden_size", -4),
    "10^12 tokens": ("model_config/vocab_size", 10**12),
    "no attention head": ("model_config/num_attention_heads", 0),
    "10^30 attention heads": ("model_config/num_attention_heads", 10**30),
    "an unknown activation": ("model_config/hidden_act", "os.system"),
    "an unknown model": ("model_config/model_type", "no such model"),
    "another model": ("model_config/model_type", "gpt2"),
    "a model type of a list": ("model_config/model_type", ["llama"]),
    "code of another repository": ("model_config/auto_map", {"AutoModelForCausalLM": "owner/name--model.Model"}),
    "a quantization": ("model_config/quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "a kernel of the hub": ("model_config/_attn_implementation", "owner/name"),
    "an attention of the hub": ("model_config/attn_implementation", "owner/name:function"),
    "positions of a wrong type": ("model_config/rope_parameters", [1, 2]),
    "an unknown kind of positions": ("model_config/rope_parameters", {"rope_type": "none", "rope_theta": "x"}),
    "10^12 positions": ("model_config/max_position_embeddings", 10**12),
    "a data type of text": ("model_config/dtype", "os.system"),
    "another method": ("method", "baseline"),
    "stage 0": ("stage", 0),
    "stage 10^30": ("stage", 10**30),
    "a seed of 10^30": ("seed", 10**30),
    "format 99": ("format", 99),
    "format 10^5000": ("format", 10**5000),
    "no evaluation": ("evaluations", []),
    "an empty evaluation": ("evaluations", [{}]),
    "evaluations of text": ("evaluations", ["text"]),
    "initial evaluation of numbers": ("initial_evaluation", {"a": {"test": 1}}),
    "no history": ("history", []),
    "a history of empty entries": ("history", [{}]),
    "a history of numbers": ("history", [1, 2]),
    "no dataset": ("datasets", []),
    "an empty dataset": ("datasets", [{}]),
    "a dataset without prompts": ("datasets/0/prompts", None),
    "prompts of numbers": ("datasets/0/prompts", [1, 2]),
    "incomplete arguments": ("arguments", {"seed": 0}),
    "arguments of a wrong type": ("arguments/seq_length", "128"),
    "importance of nothing known": ("importance", {"a": torch.zeros(2)}),
    "versions of numbers": ("versions", {"torch": 2}),
    "a start of text": ("start", "text"),
    "a start without SHA-256": ("start", {"name": "owner/model", "revision": ""}),
    "written text of fractions": ("written", torch.zeros(2, 3)),
    "written text in one row": ("written", torch.zeros(3, dtype=torch.int32)),
    "negative tokens written": ("written", torch.full((2, 3), -1, dtype=torch.int32)),
}
