"""Checkpoints: complete, atomic, and refused with one clear line when they are not what they should be."""

import os
import shutil

import pytest
import torch

from k1.checkpoints import FORMAT, load_checkpoint, restore_model
from k1.errors import K1Error
from k1.experiment import FILES
from tests.conftest import assert_one_clear_line, run_script, signed

KEYS = {
    "format", "method", "stage", "model_config", "model", "tokenizer", "arguments", "seed", "start", "datasets",
    "evaluations", "initial_evaluation", "history", "written", "predicted_forgetting", "versions", "sha256",
}  # fmt: skip


@pytest.mark.parametrize("file", [*FILES["k1"], *FILES["baseline"]])
def test_keys_that_others_rely_on(trained, file):
    content = torch.load(trained.models_dir / file, weights_only=True)
    assert set(content) == KEYS
    stage = content["stage"]
    assert content["method"] == file.split("_")[0]
    assert len(content["datasets"]) == len(content["evaluations"]) == stage
    assert {"name", "source", "fingerprint", "tokens"} <= set(content["datasets"][0])
    assert set(content["datasets"][0]["tokens"]) == {"train", "validation", "test"}
    names = [dataset["name"] for dataset in content["datasets"]]
    for i, row in enumerate(content["evaluations"]):
        assert list(row) == names[: i + 2] if i + 1 < stage else list(row) == names
        for name, splits in row.items():
            # The next dataset is measured for forward transfer alone.
            assert set(splits) == ({"validation", "test"} if name in names[: i + 1] else {"test"})
            assert set(splits["test"]) == {"loss", "perplexity", "accuracy", "tokens"}
    assert set(content["history"][0]) == {
        "step", "loss", "divergence", "learning_rate", "updated_fraction", "tokens_per_second",
    }  # fmt: skip
    # Nothing follows the last stage, and of the baseline nothing is rehearsed after the first.
    writes = {"k1": (1, 2, 0), "baseline": (1, 0, 0)}[content["method"]]
    assert len(content["written"]) == writes[stage - 1]
    assert len(content["predicted_forgetting"]) == (stage - 1 if content["method"] == "k1" else 0)
    assert content["history"][-1]["step"] == content["arguments"]["max_steps"] == 20


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("was-run",)


def with_weight(content: dict, value: float) -> dict:
    content["model"]["model.norm.weight"][0] = value
    return content


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda content: {"format": FORMAT, "payload": Payload()}, "damaged or is not a checkpoint"),
        (lambda content: {"model": {}}, "not a k1 checkpoint"),
        (lambda content: {"format": 7}, f"format version 7, this code reads version {FORMAT}"),
        (lambda content: signed({"format": FORMAT, "method": "k1"}), "lacks stage"),
        (lambda content: with_weight(content, 0.5), "does not have the SHA-256"),
        (lambda content: signed(with_weight(content, float("nan"))), "a weight is not finite"),
        (lambda content: signed(content | {"method": "baseline"}), "of method 'baseline', not 'k1'"),
        (lambda content: signed(content | {"stage": 2}), "of stage 2, not 3"),
        (None, "damaged or is not a checkpoint"),
    ],
)
def test_a_file_of_something_else_is_refused_and_not_run(trained, tmp_path, monkeypatch, damaged, message):
    """One that is cut off, too."""
    monkeypatch.chdir(tmp_path)
    path = shutil.copy(trained.models_dir / "k1_final.pt", tmp_path)
    if damaged:
        torch.save(damaged(torch.load(path, weights_only=True)), path)
    else:
        os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(K1Error, match=message):
        load_checkpoint(tmp_path / "k1_final.pt", "k1", 3)
    assert os.listdir(tmp_path) == ["k1_final.pt"]


def test_weights_that_do_not_fit_are_refused(trained):
    checkpoint = load_checkpoint(trained.models_dir / "k1_final.pt", "k1")
    checkpoint.model["lm_head.weight"] = torch.zeros(3, 3)
    with pytest.raises(K1Error, match="do not fit"):
        restore_model(checkpoint, "cpu")


@pytest.mark.parametrize(
    ("script", "flags", "first"),
    [
        ("train_k1_dataset3.py", [], "run train_k1_dataset2.py first"),
        ("train_k1_dataset3.py", ["--rehearsal", 0], "run train_k1_dataset2.py --rehearsal 0 first"),
        ("generate_k1.py", [], "run train_k1_dataset3.py first"),
        ("-m k1.report", [], "run train_baseline_all.py first"),
    ],
)
def test_a_missing_input_names_the_script_to_run_first(tmp_path, script, flags, first):
    assert_one_clear_line(run_script(script, "--models_dir", tmp_path, *flags), 1, first)
