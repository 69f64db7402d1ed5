"""Rehearsal: what the model writes, what it predicted in it, and what holding it to that does."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import StaticCache

from k1.arguments import parse_training_flags
from k1.checkpoints.storage import load_checkpoint, restore_model
from k1.data.loader import DataLoader
from k1.data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from k1.errors import K1Error
from k1.model import build_model
from k1.sparse.eigenbasis import enter_eigenbasis
from k1.sparse.importance import fisher_information, sample_batches
from k1.sparse.rehearsal import begin_rehearsal, divergence, sample_tokens, write_rehearsal
from k1.training.loop import accumulate_gradients, train
from tests.conftest import assert_one_clear_line, run_script

TOKENIZER = SimpleNamespace(token_to_id={END_OF_DOCUMENT: 0}.__getitem__, post_processor=None)


def arguments_of(*argv, stage=2, method="k1"):
    flags = ["--preset", "smoke", "--seq_length", "8", "--batch_size", "4", "--rehearsal_sequences", "6", *argv]
    return parse_training_flags("", method, flags).resolve(stage)


def token_ids(count, length=8, seed=3):
    return torch.randint(0, 37, (count, length), generator=torch.Generator().manual_seed(seed))


def dataset_of(rows):
    table = datasets.Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    return SimpleNamespace(name="letters", blocks={"train": table})


def written_by(model, *argv, rows=token_ids(5), **settings):
    return write_rehearsal(model, dataset_of(rows), TOKENIZER, arguments_of(*argv, **settings))


def rehearsal_of(model, *argv):
    return begin_rehearsal(model, written_by(model, *argv), TOKENIZER, arguments_of("--rehearsal", "0.5", *argv))


def rewritten(model, *argv, steps=(1,)):
    """What the rehearsal of `model` holds after it was written anew before each of `steps`, and the rehearsal."""
    rehearsal = rehearsal_of(model, *argv)
    found = []
    for step in steps:
        rehearsal.rewrite(model, step)
        found.append(rehearsal.sequences)
    return found, rehearsal


@pytest.fixture(params=["plain", "eigenbasis"])
def model(request, tiny_model):
    if request.param == "eigenbasis":
        enter_eigenbasis(tiny_model, list(token_ids(12).split(4)), 100)
    return tiny_model


def count_up(model, prompts, new_tokens, seed, end):
    return torch.cat([prompts, (prompts[:, -1:] + torch.arange(1, new_tokens + 1)) % 37], dim=1)


@pytest.mark.parametrize(("rows", "given"), [(1, 1), (5, 3)])
def test_the_cache_in_one_piece_gives_the_same_tokens_as_the_default_one(model, monkeypatch, rows, given):
    made = []
    monkeypatch.setattr("k1.model.StaticCache", lambda *size: made.append(size[1]) or StaticCache(*size))
    prompts = token_ids(rows, given)
    written = sample_tokens(model, prompts, 8 - given, 7, 0)
    assert made == [8] and torch.equal(written[:, :given], prompts) and written.shape == (rows, 8)
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    assert torch.equal(sample_tokens(model, prompts, 8 - given, 7, 0), written) and made == [8]
    assert not torch.equal(sample_tokens(model, prompts, 8 - given, 8, 0), written)


def test_what_is_written_goes_on_from_training_text_and_holds_none_of_it(tiny_model, monkeypatch):
    monkeypatch.setattr("k1.sparse.rehearsal.sample_tokens", count_up)
    monkeypatch.setattr("k1.sparse.rehearsal.ROWS", 4)
    rows = token_ids(5)
    written = written_by(tiny_model, rows=rows)
    assert written.shape == (6, 6) and written.dtype == torch.int32
    # The six beginnings are those of all five blocks and, as they are too few, one more of them.
    assert {int(row[0]) for row in written} == {int(row[1] + 1) % 37 for row in rows}
    assert torch.equal(written, (written[:, :1] + torch.arange(6, dtype=torch.int32)) % 37)


def test_text_is_drawn_from_the_models_whole_distribution(tiny_model):
    """The first token has the frequencies that the model predicts after the beginning."""
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(20)
        expected = tiny_model(input_ids=token_ids(1)[:, :2]).logits[0, -1].softmax(-1)
    written = written_by(tiny_model, "--rehearsal_sequences", "4000", rows=token_ids(1))
    found = torch.bincount(written[:, 0], minlength=37) / 4000
    assert expected.max() > 0.05
    assert (found - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_every_dataset_has_its_part(tiny_model):
    first = written_by(tiny_model)
    both = write_rehearsal(tiny_model, dataset_of(token_ids(9)), TOKENIZER, arguments_of(stage=3), first)
    assert both.shape == (12, 6) and torch.equal(both[:6], first)


def test_the_same_seed_writes_the_same_and_another_stage_or_seed_does_not(model):
    assert torch.equal(written_by(model), written_by(model))
    assert not torch.equal(written_by(model), written_by(model, "--seed", "1"))
    assert not torch.equal(written_by(model), written_by(model, stage=3))


@pytest.mark.parametrize("argv", [["--rehearsal", "0"], []], ids=["switched off", "stage 1"])
def test_nothing_is_rehearsed_where_that_is_said(tiny_model, argv):
    assert begin_rehearsal(tiny_model, None, TOKENIZER, arguments_of(*argv, stage=2 if argv else 1)) is None


@pytest.mark.parametrize(
    "written", [None, torch.empty(0, 0), torch.zeros(3, 1)], ids=["nothing", "no sequence", "too short"]
)
def test_a_stage_without_text_to_rehearse_is_refused(tiny_model, written):
    with pytest.raises(K1Error, match="no text to rehearse; train its stage again, or add --rehearsal 0"):
        begin_rehearsal(tiny_model, written, TOKENIZER, arguments_of())


def test_the_kept_predictions_are_those_of_the_model_before_the_stage(model):
    (sequences,), rehearsal = rewritten(model)
    with torch.no_grad():
        expected = model(input_ids=sequences).logits
        for parameter in model.parameters():
            parameter.zero_()
    kept = rehearsal.teacher(input_ids=sequences[[4, 1]]).logits
    torch.testing.assert_close(kept, expected[[4, 1]], rtol=1e-5, atol=1e-6)


def test_a_model_in_training_goes_on_from_beginnings_that_were_written_before(model):
    (first, other, again), rehearsal = rewritten(model, "--rehearsal_interval", "20", steps=(1, 21, 1))
    assert first.shape == (2 * 20, 8) and model.training
    assert torch.equal(first, again) and not torch.equal(first, other)
    beginnings = {tuple(row[start : start + 2].tolist()) for row in rehearsal.written for start in range(5)}
    found = {tuple(row[:2].tolist()) for row in first}
    assert found <= beginnings and len(found) > 10


def test_the_rest_is_in_its_own_words(tiny_model, monkeypatch):
    monkeypatch.setattr("k1.sparse.rehearsal.sample_tokens", count_up)
    (sequences,), _ = rewritten(tiny_model, "--rehearsal_interval", "20")
    assert torch.equal(sequences[:, 2:], (sequences[:, 1:2] + torch.arange(1, 7)) % 37)


@pytest.mark.parametrize(("interval", "due"), [(3, [1, 4, 7, 10]), (1, list(range(1, 11)))])
def test_it_is_written_anew_before_the_first_step_and_after_every_interval(tiny_model, interval, due):
    rehearsal = rehearsal_of(tiny_model, "--rehearsal_interval", str(interval))
    assert [step for step in range(1, 11) if rehearsal.is_due(step)] == due


def test_what_was_written_is_rehearsed_once_in_order(tiny_model):
    rehearsal = rehearsal_of(tiny_model, "--rehearsal_interval", "3", "--gradient_accumulation_steps", "2")
    batches = rehearsal.batches(skip=1)
    passes = [next(batches) for _ in range(11)]
    assert passes == [[2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_a_model_that_diverged_is_noticed_in_the_loss_not_while_it_writes(tiny_model):
    rehearsal = rehearsal_of(tiny_model)
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(torch.nan)
    rehearsal.rewrite(tiny_model, 1)
    arguments = arguments_of("--rehearsal", "0.5")
    losses = accumulate_gradients(tiny_model, iter([(token_ids(2), [0, 1])]), arguments, rehearsal)
    assert all(math.isnan(loss) for loss in losses)


def test_the_divergence_is_kullback_and_leiblers():
    generator = torch.Generator().manual_seed(0)
    wanted, predicted = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = log_softmax(wanted, -1), log_softmax(predicted, -1)
    by_hand = sum(q[..., token].exp() * (q[..., token] - p[..., token]) for token in range(5))
    torch.testing.assert_close(divergence(predicted, wanted), by_hand.float(), rtol=1e-5, atol=1e-6)
    assert divergence(wanted, wanted).abs().max() < 1e-6


def test_a_step_adds_both_losses_each_as_a_mean(tiny_model):
    """The gradients are those of the loss of the new rows, and weight times the divergence of the old ones."""
    arguments = arguments_of("--rehearsal", "0.5", "--rehearsal_weight", "0.7")
    assert (arguments.new_rows, arguments.rehearsed_rows) == (2, 2)
    writer = build_model(tiny_model.config.to_dict(), seed=1)
    rehearsal = begin_rehearsal(writer, written_by(writer), TOKENIZER, arguments)
    rehearsal.rewrite(tiny_model, 1)
    rows, old = token_ids(2), [5, 0]
    loss = tiny_model(input_ids=rows, labels=rows).loss
    with torch.no_grad():
        target = writer(input_ids=rehearsal.sequences[old]).logits[:, :-1]
    drift = divergence(tiny_model(input_ids=rehearsal.sequences[old]).logits[:, :-1], target).mean()
    (loss + 0.7 * drift).backward()
    expected = [parameter.grad.clone() for parameter in tiny_model.parameters()]
    tiny_model.zero_grad()
    found = accumulate_gradients(tiny_model, iter([(rows, old)]), arguments, rehearsal)
    assert found == pytest.approx((loss.item(), drift.item()), rel=1e-5)
    assert drift > 1e-3
    for parameter, gradient in zip(tiny_model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_a_model_that_rehearses_stays_nearer_to_what_it_was(tiny_model):
    """Trained on other text, it forgets less of the text that it could predict before."""

    def blocks(first, last):
        # Texts of two domains: rising letters of either half of the alphabet.
        starts = torch.randint(first, last, (64, 1), generator=torch.Generator().manual_seed(first))
        return dataset_of(first + (starts - first + torch.arange(16)) % (last - first))

    def loss_on(model, dataset):
        rows = dataset.blocks["train"][:]["input_ids"]
        with torch.no_grad():
            return model(input_ids=rows, labels=rows).loss.item()

    def learn(model, dataset, written=None, **settings):
        arguments = replace(
            arguments_of("--seq_length", "16", "--batch_size", "8", "--rehearsal_sequences", "64", method="baseline"),
            learning_rate=1e-2, max_steps=60, warmup_steps=5, **settings,
        )  # fmt: skip
        train(model, dataset, arguments, rehearsal=begin_rehearsal(model, written, TOKENIZER, arguments))
        return write_rehearsal(model, dataset, TOKENIZER, arguments)

    old, new = blocks(1, 18), blocks(18, 36)
    written = learn(tiny_model, old)
    learned = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    before, after = loss_on(tiny_model, old), {}
    for share in (0.0, 0.5):
        tiny_model.load_state_dict(learned)
        learn(tiny_model, new, written, rehearsal=share)
        after[share] = loss_on(tiny_model, old)
        assert loss_on(tiny_model, new) < 1
    assert before < 1
    assert after[0.5] - before < 0.5 * (after[0.0] - before)


@pytest.mark.parametrize(
    ("argv", "new", "old"),
    [([], 3, 1), (["--rehearsal", "0.5"], 2, 2), (["--rehearsal", "0"], 4, 0), (["--rehearsal_on_top", "True"], 4, 1)],
    ids=["preset", "half", "none", "on top"],
)
def test_rehearsed_rows_take_the_place_of_new_ones_unless_on_top(argv, new, old):
    arguments = arguments_of(*argv)
    assert (arguments.new_rows, arguments.rehearsed_rows) == (new, old)
    assert arguments.tokens_per_step == 8 * (new + old)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rehearsal", "1"], "--rehearsal must be at least 0 and below 1"),
        (["--rehearsal", "-0.1"], "--rehearsal must be at least 0 and below 1"),
        (["--rehearsal", "0.01"], "no whole sequence"),
        (["--rehearsal", "0.99"], "no whole sequence"),
        (["--rehearsal_sequences", "0"], "--rehearsal_sequences must be at least 1"),
        (["--rehearsal_interval", "0"], "--rehearsal_interval must be at least 1"),
        (["--rehearsal_weight", "-1"], "--rehearsal_weight must be at least 0"),
    ],
    ids=["all", "negative", "too little", "too much", "no sequences", "no interval", "negative weight"],
)
def test_a_rehearsal_that_cannot_be_is_refused(trained, tmp_path, argv, message):
    shutil.copy(trained.models_dir / "k1_dataset1.pt", tmp_path)
    finished = run_script(
        "train_k1_dataset2.py", "--dataset_name", trained.corpora[1], "--models_dir", tmp_path, *argv
    )
    assert_one_clear_line(finished, 2, message)


def test_no_text_of_an_old_dataset_is_read(trained, tmp_path, monkeypatch):
    """Without dataset 1's text and with an empty cache, stage 2 trains to the same bits."""
    monkeypatch.setenv("K1_CACHE", str(tmp_path / "cache"))
    previous = load_checkpoint(trained.models_dir / "k1_dataset1.pt", "k1")
    old_text = Path(previous.datasets[0]["name"])
    shutil.move(old_text, tmp_path)
    try:
        flags = parse_training_flags("", "k1", ["--max_steps", "20", "--threads", "1"])
        arguments = flags.resolve(2, previous.arguments)
        tokenizer = load_tokenizer(previous.tokenizer)
        dataset = DataLoader(str(trained.corpora[1]), arguments).tokenize(tokenizer)
        model = restore_model(previous, "cpu")
        responsibility = fisher_information(model, sample_batches(dataset, arguments))
        rehearsal = begin_rehearsal(model, previous.written, tokenizer, arguments)
        train(model, dataset, arguments, previous.importance, responsibility, rehearsal)
    finally:
        shutil.move(tmp_path / old_text.name, old_text)
    assert rehearsal is not None
    expected = load_checkpoint(trained.models_dir / "k1_dataset2.pt", "k1").model
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
