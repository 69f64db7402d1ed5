"""lm-evaluation-harness reads an exported folder and finds our perplexity on our held-out text (`make harness`)."""

import json
import math
import re

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from k1.checkpoints import load_checkpoint, restore_model
from k1.config import Arguments
from k1.data.loader import DataLoader
from k1.data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from k1.export.folder import export

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed; make harness installs it")

TASK = {
    "task": "k1_held_out",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": metric, "aggregation": aggregation, "higher_is_better": False}
        for metric, aggregation in [
            ("word_perplexity", "weighted_perplexity"),
            ("byte_perplexity", "weighted_perplexity"),
            ("bits_per_byte", "bits_per_byte"),
        ]
    ],
}


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


@pytest.mark.parametrize("file", ["k1_final.pt", "baseline_final.pt"])
def test_the_harness_finds_our_perplexity(trained, tmp_path, file):
    checkpoint = load_checkpoint(trained.models_dir / file)
    export(checkpoint, tmp_path / "model")
    arguments = Arguments(**{**checkpoint.arguments, "dataset_name": None})
    documents = list(DataLoader(str(trained.corpora[0]), arguments).text("test"))
    # One that is longer than the model's context, and one that holds the characters of the special token.
    documents += [" ".join(documents * 3), f"River {END_OF_DOCUMENT} water"]

    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "held_out.jsonl")}}}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "k1_held_out.yaml").write_text(yaml.safe_dump(task))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "model"), "dtype": "float32"},
        tasks=["k1_held_out"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )["results"]["k1_held_out"]

    model, tokenizer = restore_model(checkpoint, "cpu").eval(), load_tokenizer(checkpoint.tokenizer)
    tokens = [tokenizer.encode(text, add_special_tokens=False).ids for text in documents]
    assert max(map(len, tokens)) > 2 * arguments.seq_length
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    nats = sum(loss_of_document(model, ids, end, arguments.seq_length) for ids in tokens)
    words = sum(len(re.split(r"\s+", text)) for text in documents)
    count_of_bytes = sum(len(text.encode()) for text in documents)
    count_of_tokens = sum(map(len, tokens))
    assert found["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=5e-3)
    assert found["byte_perplexity,none"] == pytest.approx(math.exp(nats / count_of_bytes), rel=5e-3)
    per_token = math.exp(found["bits_per_byte,none"] * math.log(2) * count_of_bytes / count_of_tokens)
    assert per_token == pytest.approx(math.exp(nats / count_of_tokens), rel=5e-3)
    print(f"perplexity per token of {file}: lm_eval {per_token:.4f}, k1 {math.exp(nats / count_of_tokens):.4f}")
