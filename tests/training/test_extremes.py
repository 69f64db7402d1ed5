"""Extremes of numbers and sizes: defined behaviour or one clear line, never a wrong number.

A training whose numbers overflow leaves nothing that the next start has to clear away.
"""

import json
import math

import pytest
import torch

from k1.checkpoints import load_checkpoint
from k1.errors import command
from tests.conftest import assert_one_clear_line, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("stage", "max_steps"), [(1, 1), (2, 20)])
def test_divergence_stops_with_a_clear_line_and_leaves_the_old_checkpoint(trained, tmp_path, stage, max_steps):
    (tmp_path / "k1_dataset1.pt").write_bytes((trained.models_dir / "k1_dataset1.pt").read_bytes())
    (tmp_path / "k1_dataset2.pt").write_bytes(b"an older result")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    flags = ["--overwrite", "--learning_rate", "1e30", "--weight_decay", 0, "--max_steps", max_steps]
    finished = train(f"train_k1_dataset{stage}.py", tmp_path, [trained.corpora[stage - 1]], *flags)
    assert_one_clear_line(finished, 1, "diverged", "lower --learning_rate")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".lock"} == files


def test_a_batch_that_predicts_one_token(corpora, tmp_path):
    flags = ["--max_steps", 4, "--batch_size", 1, "--seq_length", 2]
    finished = train("train_k1_dataset1.py", tmp_path, [corpora[0]], *flags)
    assert finished.returncode == 0, finished.stderr
    checkpoint = load_checkpoint(tmp_path / "k1_dataset1.pt", "k1")
    assert all(math.isfinite(entry["loss"]) for entry in checkpoint.history)


def test_a_dataset_of_one_block(tmp_path):
    words = "river bridge stone water cloud forest candle window garden silver".split()
    texts = [" ".join(word + letter for word in words) for letter in "abc"]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    short, flags = tmp_path / "short.jsonl", ["--max_steps", 4, "--seq_length", 8]
    finished = train("train_k1_dataset1.py", tmp_path, [short], *flags)
    assert finished.returncode == 0, finished.stderr
    checkpoint = load_checkpoint(tmp_path / "k1_dataset1.pt", "k1")
    assert checkpoint.datasets[0]["tokens"]["train"] == 8
    # The preset asks for 512 tokens; so short a text supports fewer, and the model has just those.
    assert 256 < checkpoint.model_config["vocab_size"] < 512
    assert checkpoint.model["model.embed_tokens.weight"].shape[0] == checkpoint.model_config["vocab_size"]


@pytest.mark.parametrize("take", [lambda: torch.empty(10**15), lambda: bytearray(10**15)], ids=["torch", "python"])
def test_too_little_memory_is_one_clear_line(capsys, take):
    with pytest.raises(SystemExit) as ended:
        command(take)()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: not enough memory; lower --batch_size")
