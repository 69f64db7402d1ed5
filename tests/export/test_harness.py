"""lm-evaluation-harness reads an exported folder and finds our perplexity on our held-out text (`make harness`)."""

import json
import math
import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from k1.checkpoints import load_checkpoint, restore_model
from k1.config import Arguments
from k1.data.loader import DataLoader
from k1.data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from k1.export import export
from tests.conftest import ROOT

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed; make harness installs it")


@torch.no_grad()
def loss_of_document(model, ids: list[int], end: int, length: int) -> float:
    """Nats of all tokens of a document that begins after `end`, in windows of `length` predictions.

    Every token is predicted once: each window goes on from the last token of the
    one before it, and the last one is as long as the others and looks back instead.
    """
    tokens, total = [end, *ids], 0.0
    for start in range(0, len(ids), length):
        stop = min(start + length, len(ids))
        window = torch.tensor([tokens[max(0, stop - length) : stop + 1]])
        logits = model(input_ids=window[:, :-1]).logits[0]
        new = stop - start
        total += float(cross_entropy(logits[-new:], window[0, -new:], reduction="sum"))
    return total


def test_the_harness_finds_our_perplexity(trained, tmp_path, monkeypatch):
    """With the task of the page on export."""
    checkpoint = load_checkpoint(trained.models_dir / "k1_final.pt")
    export(checkpoint, tmp_path / "k1-final")
    arguments = Arguments(**{**checkpoint.arguments, "dataset_name": None})
    documents = list(DataLoader(str(trained.corpora[0]), arguments).text("test"))
    # One that is longer than the model's context, and one that holds the characters of the special token.
    documents += [" ".join(documents * 3), f"River {END_OF_DOCUMENT} water"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    task = (ROOT / "k1" / "export.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "held_out.yaml").write_text(task)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": "k1-final", "dtype": "float32"},
        tasks=["held_out"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )["results"]["held_out"]["word_perplexity,none"]

    model, tokenizer = restore_model(checkpoint, "cpu").eval(), load_tokenizer(checkpoint.tokenizer)
    tokens = [tokenizer.encode(text, add_special_tokens=False).ids for text in documents]
    assert max(map(len, tokens)) > 2 * arguments.seq_length
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    nats = sum(loss_of_document(model, ids, end, arguments.seq_length) for ids in tokens)
    words = sum(len(re.split(r"\s+", text)) for text in documents)
    assert found == pytest.approx(math.exp(nats / words), rel=5e-3)
    print(f"perplexity per word: lm_eval {found:.4f}, k1 {math.exp(nats / words):.4f}")
