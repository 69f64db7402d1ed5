"""The training loop: fair, reproducible to the bit, and honest about what it changed."""

import math
import shutil
from functools import partial

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from k1.checkpoints import load_checkpoint
from k1.config import settings_of
from k1.experiment import ARM_FILES, FILES
from k1.training.evaluation import evaluate_blocks
from k1.training.trainer import accumulate_gradients, warmup_and_cosine
from tests.conftest import train


@pytest.mark.slow
def test_the_baseline_is_k1_with_all_parameters_updated_and_no_rehearsal(trained, tmp_path):
    """Also in restored checkpoints, stage by stage."""
    for stage, corpus in enumerate(trained.corpora[:2], start=1):
        flags = ["--rehearsal", 0, "--max_steps", 20, *(["--update_fraction", 1] if stage == 1 else [])]
        finished = train(f"train_k1_dataset{stage}.py", tmp_path, [corpus], *flags)
        assert finished.returncode == 0, finished.stderr
        found = load_checkpoint(tmp_path / ARM_FILES["sparse"][stage - 1]).model
        expected = load_checkpoint(trained.models_dir / FILES["baseline"][stage - 1]).model
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_a_budget_keeps_the_predicted_forgetting_below_it(trained, tmp_path):
    shutil.copy(trained.models_dir / "k1_dataset1.pt", tmp_path)
    flags = ["--max_steps", 20, "--forgetting_budget", 0.001]
    finished = train("train_k1_dataset2.py", tmp_path, [trained.corpora[1]], *flags)
    assert finished.returncode == 0 and "of the change of the stage" in finished.stderr, finished.stderr
    predicted = load_checkpoint(tmp_path / "k1_dataset2.pt", "k1").predicted_forgetting
    free = load_checkpoint(trained.models_dir / "k1_dataset2.pt", "k1").predicted_forgetting
    assert 0 < predicted[0] <= 0.001 < free[0]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 10), (3, 10), (10, 10), (50, 1)])
def test_the_schedule_warms_up_decays_and_never_comes_near_zero(warmup, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_and_cosine(optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert min(rates) > 0 and max(rates) <= 1
    if steps > warmup > 0:
        assert rates[warmup] == 1.0 and rates[:warmup] == sorted(set(rates[:warmup]))
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert min(rates[warmup:], default=1) >= 0.1


arguments_with = partial(settings_of, "k1", "smoke")


def test_accumulated_gradients_are_those_of_the_large_batch(tiny_model):
    ids = torch.randint(0, 37, (12, 16), generator=torch.Generator().manual_seed(0))
    loss, _ = accumulate_gradients(tiny_model, iter([(ids, [])]), arguments_with())
    whole = [parameter.grad.clone() for parameter in tiny_model.parameters()]
    tiny_model.zero_grad()
    in_parts, _ = accumulate_gradients(
        tiny_model, ((rows, []) for rows in ids.split(4)), arguments_with(gradient_accumulation_steps=3)
    )
    assert in_parts == pytest.approx(loss, rel=1e-4)
    for parameter, expected in zip(tiny_model.parameters(), whole):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-2, atol=1e-5)


def test_bfloat16_computes_about_the_same_loss_and_keeps_float32_parameters(tiny_model):
    ids = torch.randint(0, 37, (4, 16), generator=torch.Generator().manual_seed(0))
    exact, _ = accumulate_gradients(tiny_model, iter([(ids, [])]), arguments_with())
    rounded, _ = accumulate_gradients(tiny_model, iter([(ids, [])]), arguments_with(precision="bfloat16"))
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}


def test_evaluation_against_a_direct_computation(tiny_model):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 37, (16,), generator=generator).tolist() for _ in range(5)] + [[1, 2, 3, 4]]
    arguments = arguments_with(seq_length=16)
    result = evaluate_blocks(tiny_model, Dataset.from_dict({"input_ids": rows}).with_format("torch"), arguments)
    losses, hits = [], []
    for row in rows:
        logits = tiny_model(input_ids=torch.tensor([row])).logits[0, :-1]
        targets = torch.tensor(row[1:])
        losses += cross_entropy(logits, targets, reduction="none").tolist()
        hits += (logits.argmax(-1) == targets).tolist()
    assert result["tokens"] == len(losses) == 5 * 15 + 3
    assert result["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert result["accuracy"] == sum(hits) / len(hits)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
