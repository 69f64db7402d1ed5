"""Rehearsal: what the model writes, what it predicted in it, and what holding it to that does."""

import math

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import StaticCache

import k1
from k1.checkpoints import load_checkpoint, restore_model
from k1.config import parse_training_flags, settings_of
from k1.data.loader import DataLoader
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error, UsageError
from k1.model import build_model
from k1.rehearsal import Divergence, InverseTransformSampling, sample_tokens
from k1.training.rehearsal import begin_rehearsal, write_rehearsal
from k1.training.trainer import StageTrainer, accumulate_gradients
from tests.training.test_resume import TOKENIZER, dataset_of


def arguments_of(arm="k1", stage=2, **changes):
    sizes = {"seq_length": 8, "batch_size": 4, "rehearsal_sequences": 6}
    return settings_of(arm, "smoke", stage, **sizes | changes)


def token_ids(count, length=8, seed=3):
    return torch.randint(0, 37, (count, length), generator=torch.Generator().manual_seed(seed))


def rehearsal_of(model, known=None, **settings):
    return k1.Rehearsal(
        model, [token_ids(5) if known is None else known], **{"length": 8, "sequences": 6, "rows": 2, **settings}
    )


def divergence(logits, target, from_teacher=False):
    """KL divergence of all positions but the last, summed, in double precision and without tricks."""
    ours, theirs = (log_softmax(values[:, :-1].double(), -1) for values in (logits, target))
    first, second = (theirs, ours) if from_teacher else (ours, theirs)
    return (first.exp() * (first - second)).sum()


def count_up(model, prompts, new_tokens, seed, end):
    return torch.cat([prompts, (prompts[:, -1:] + torch.arange(1, new_tokens + 1)) % 37], dim=1)


@pytest.mark.parametrize(("rows", "given"), [(1, 1), (5, 3)])
def test_the_cache_in_one_piece_gives_the_same_tokens_as_the_default_one(tiny_model, monkeypatch, rows, given):
    made = []
    monkeypatch.setattr("k1.model.StaticCache", lambda *size: made.append(size[1]) or StaticCache(*size))
    prompts = token_ids(rows, given)
    written = sample_tokens(tiny_model, prompts, 8 - given, 7, 0)
    assert made == [8] and torch.equal(written[:, :given], prompts) and written.shape == (rows, 8)
    monkeypatch.setattr(type(tiny_model), "_can_compile_fullgraph", False)
    assert torch.equal(sample_tokens(tiny_model, prompts, 8 - given, 7, 0), written) and made == [8]
    assert not torch.equal(sample_tokens(tiny_model, prompts, 8 - given, 8, 0), written)


def test_what_is_written_continues_known_text_and_holds_none_of_it(tiny_model, monkeypatch):
    monkeypatch.setattr("k1.rehearsal.sample_tokens", count_up)
    monkeypatch.setattr("k1.rehearsal.ROWS", 4)
    rows = token_ids(5)
    (written,) = rehearsal_of(tiny_model, rows).written
    assert written.shape == (6, 6) and written.dtype == torch.int32
    # The six beginnings are those of all five rows and, as they are too few, one more of them.
    assert {int(row[0]) for row in written} == {int(row[1] + 1) % 37 for row in rows}
    assert torch.equal(written, (written[:, :1] + torch.arange(6, dtype=torch.int32)) % 37)


def test_every_sequence_begins_as_the_model_expects_it(tiny_model, monkeypatch):
    """With a token that begins a text, all that is written and rehearsed follows it; it is no part of what is kept."""
    seen = []

    def note(model, prompts, new_tokens, seed, end):
        seen.append(prompts)
        return count_up(model, prompts, new_tokens, seed, end)

    monkeypatch.setattr("k1.rehearsal.sample_tokens", note)
    tiny_model.config.bos_token_id = 36
    known = token_ids(5) % 36
    rehearsal = rehearsal_of(tiny_model, known)
    assert rehearsal.written[0].shape == (6, 6)
    rehearsal.rewrite(tiny_model, 1)
    assert rehearsal.sequences.shape[1] == 8
    assert all((prompts[:, 0] == 36).all() for prompts in seen)
    # Known text that has the token already gets no second one.
    rehearsal_of(tiny_model, torch.cat([torch.full((5, 1), 36), known], 1))
    assert torch.equal(seen[-1], seen[0])


def test_without_known_text_it_begins_with_that_token(tiny_model, monkeypatch):
    monkeypatch.setattr("k1.rehearsal.sample_tokens", count_up)
    with pytest.raises(K1Error, match="no token that begins a text"):
        k1.Rehearsal(tiny_model, length=8)
    tiny_model.config.bos_token_id = 7
    assert torch.equal(k1.Rehearsal(tiny_model, length=8, sequences=2).written[0], torch.arange(8, 14).expand(2, -1))


def test_text_is_drawn_from_the_models_whole_distribution(tiny_model):
    """The first token has the frequencies that the model predicts after the beginning."""
    rows = token_ids(1)
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(20)
        expected = tiny_model(input_ids=rows[:, :2]).logits[0, -1].softmax(-1)
    (written,) = rehearsal_of(tiny_model, rows, sequences=4_000).written
    found = torch.bincount(written[:, 0], minlength=37) / 4000
    assert expected.max() > 0.05
    assert (found - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize(("drawn", "token"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_what_is_drawn_are_tokens_too(monkeypatch, drawn, token):
    """What is drawn lies in [0, 1), but times a sum it may be rounded up to the whole."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, drawn))
    scores = torch.tensor([[0, 0.5, 0.5]]).log()
    assert InverseTransformSampling(torch.Generator())(None, scores).argmax() == token


def test_every_dataset_has_its_part_of_what_is_written_and_rehearsed(tiny_model):
    first = write_rehearsal(tiny_model, dataset_of(5), TOKENIZER, arguments_of(stage=1))
    both = write_rehearsal(tiny_model, dataset_of(9), TOKENIZER, arguments_of(stage=3), first)
    assert [text.shape for text in both] == [(6, 6), (6, 6)] and torch.equal(both[0], first[0])
    # The parts are told apart by their tokens; a part that is a tenth of the text is rehearsed as often.
    parts = [torch.full((300, 6), 1, dtype=torch.int32), torch.full((30, 6), 2, dtype=torch.int32)]
    rehearsal = k1.Rehearsal(tiny_model, written=parts, length=8, rows=10, interval=50)
    rehearsal.rewrite(tiny_model, 1)
    assert 200 < int((rehearsal.sequences[:, 0] == 1).sum()) < 300


def test_a_stage_without_text_to_rehearse_is_refused(tiny_model):
    with pytest.raises(K1Error, match="no text to rehearse; train its stage again, or add --rehearsal 0"):
        begin_rehearsal(tiny_model, [], TOKENIZER, arguments_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "a length of at least 2"),
        ({"rows": 0}, "1 row"),
        ({"interval": 0}, "1 step or more"),
        ({"known": torch.zeros(3, 1, dtype=torch.long)[:, :0]}, "known has fewer than 2 tokens to continue"),
        ({"length": 4096}, "4096 is more than the"),
        ({"written": [torch.zeros(3, 1, dtype=torch.int32)]}, "give every rehearsal the same length"),
    ],
)
def test_a_rehearsal_that_cannot_be(tiny_model, settings, message):
    with pytest.raises(K1Error, match=message):
        rehearsal_of(tiny_model, **settings)


def test_a_model_that_diverged_is_refused_as_a_teacher(tiny_model):
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(K1Error, match="not finite"):
        rehearsal_of(tiny_model)


def test_the_same_seed_writes_the_same_and_another_does_not(tiny_model):
    first, again, other = (rehearsal_of(tiny_model, seed=seed).written[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_model_in_training_continues_beginnings_that_were_written_before(tiny_model):
    rehearsal, found = rehearsal_of(tiny_model, interval=20), []
    tiny_model.train()
    for step in (1, 21, 1):
        rehearsal.rewrite(tiny_model, step)
        found.append(rehearsal.sequences)
    first, other, again = found
    assert first.shape == (2 * 20, 8) and tiny_model.training
    assert torch.equal(first, again) and not torch.equal(first, other)
    written = {tuple(row[start : start + 2].tolist()) for row in rehearsal.written[0] for start in range(5)}
    begun = {tuple(row[:2].tolist()) for row in first}
    assert begun <= written and len(begun) > 10


@pytest.mark.parametrize(("is_shared", "sizes"), [(True, [10]), (False, [4, 4, 2])])
def test_no_more_is_regenerated_side_by_side_than_was_written_unless_processes_share_it(
    tiny_model, monkeypatch, is_shared, sizes
):
    rehearsal, found = rehearsal_of(tiny_model, interval=5), []
    monkeypatch.setattr("k1.rehearsal.sample_tokens", lambda *inputs: found.append(inputs) or count_up(*inputs))
    monkeypatch.setattr("k1.rehearsal.ROWS", 4)
    rehearsal.rewrite(tiny_model, 1, is_shared)
    assert [len(prompts) for _, prompts, *_ in found] == sizes and rehearsal.sequences.shape == (10, 8)
    assert len({seed for *_, seed, _ in found}) == len(sizes)


@pytest.mark.parametrize(("interval", "due"), [(3, [1, 4, 7, 10]), (1, list(range(1, 11)))])
def test_it_is_regenerated_before_the_first_step_and_after_every_interval(tiny_model, interval, due):
    rehearsal = rehearsal_of(tiny_model, interval=interval)
    assert [step for step in range(1, 11) if rehearsal.is_due(step)] == due


def test_what_was_written_is_rehearsed_once_in_order(tiny_model):
    batches = rehearsal_of(tiny_model, interval=3, passes_per_step=2).batches(skip=1)
    passes = [next(batches) for _ in range(11)]
    assert passes == [[2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


@pytest.mark.parametrize("from_teacher", [False, True])
@pytest.mark.parametrize("length", [3, 300])
def test_the_divergence_is_kullback_and_leiblers_and_so_is_its_gradient(from_teacher, length):
    """Longer than what is computed at once, too; the gradient is that of autograd through the plain formula."""
    generator = torch.Generator().manual_seed(0)
    target, logits = (torch.randn(2, length, 5, generator=generator) for _ in range(2))
    plain, ours = (logits.clone().requires_grad_() for _ in range(2))
    expected = divergence(plain, target, from_teacher)
    found = Divergence.apply(ours, target.clone(), from_teacher)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    (0.5 * expected).backward()
    (0.5 * found).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-6)
    assert Divergence.apply(target, target.clone(), from_teacher).abs() < 1e-3


def test_a_model_that_diverged_is_noticed_in_the_loss_not_while_it_writes(tiny_model):
    rehearsal = rehearsal_of(tiny_model)
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(torch.nan)
    rehearsal.rewrite(tiny_model, 1)
    arguments = arguments_of(rehearsal=0.5)
    losses = accumulate_gradients(tiny_model, iter([(token_ids(2), [0, 1])]), arguments, rehearsal)
    assert all(math.isnan(loss) for loss in losses)


def test_a_step_adds_both_losses_each_as_a_mean(tiny_model):
    """The gradients are those of the loss of the new rows, and weight times the divergence of the old ones."""
    arguments = arguments_of(rehearsal=0.5, rehearsal_weight=0.7)
    assert (arguments.new_rows, arguments.rehearsed_rows) == (2, 2)
    writer = build_model(tiny_model.config.to_dict(), seed=1)
    rehearsal = rehearsal_of(writer)
    rehearsal.rewrite(tiny_model, 1)
    rows, old = token_ids(2), [5, 0]
    loss = tiny_model(input_ids=rows, labels=rows).loss
    with torch.no_grad():
        target = writer(input_ids=rehearsal.sequences[old]).logits
    drift = divergence(tiny_model(input_ids=rehearsal.sequences[old]).logits, target) / 14
    (loss + 0.7 * drift).backward()
    expected = [parameter.grad.clone() for parameter in tiny_model.parameters()]
    tiny_model.zero_grad()
    found = accumulate_gradients(tiny_model, iter([(rows, old)]), arguments, rehearsal)
    assert found == pytest.approx((loss.item(), drift.item()), rel=1e-3)
    assert drift > 1e-3
    for parameter, gradient in zip(tiny_model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-2, atol=1e-5)


def test_predicted_forgetting_is_the_rise_of_the_loss_on_what_the_teacher_wrote(tiny_model):
    """KL(teacher || model): over much text that the teacher drew, the mean rise of the cross-entropy."""
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(8)
    rehearsal = rehearsal_of(tiny_model, token_ids(64, length=16), sequences=64, length=16)
    assert rehearsal.predicted_forgetting(tiny_model)[0] == pytest.approx(0, abs=1e-4)
    other = build_model(tiny_model.config.to_dict(), seed=1)
    tokens = rehearsal.written[0].long()
    with torch.no_grad():
        rise = other(input_ids=tokens, labels=tokens).loss - rehearsal.teacher(input_ids=tokens, labels=tokens).loss
    (predicted,) = rehearsal.predicted_forgetting(other)
    assert predicted == pytest.approx(rise.item(), rel=0.1) and predicted > 0.1


def test_a_budget_that_is_kept_anyway_keeps_all(tiny_model):
    rehearsal = rehearsal_of(tiny_model)
    start = {name: value.detach().clone() for name, value in tiny_model.named_parameters()}
    other = build_model(tiny_model.config.to_dict(), seed=1)
    assert rehearsal.keep_within(other, start, budget=1e9) == 1
    for value, expected in zip(other.parameters(), build_model(tiny_model.config.to_dict(), seed=1).parameters()):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "new", "old"),
    [({}, 3, 1), ({"rehearsal": 0.5}, 2, 2), ({"rehearsal": 0.0}, 4, 0), ({"rehearsal_on_top": True}, 4, 1)],
    ids=["preset", "half", "none", "on top"],
)
def test_rehearsed_rows_take_the_place_of_new_ones_unless_on_top(changes, new, old):
    arguments = arguments_of(**changes)
    assert (arguments.new_rows, arguments.rehearsed_rows) == (new, old)
    assert arguments.tokens_per_step == 8 * (new + old)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_no_whole_sequence_is_refused(share):
    with pytest.raises(UsageError, match="no whole sequence"):
        arguments_of(rehearsal=share)


def test_no_text_of_an_old_dataset_is_read(trained, tmp_path, monkeypatch):
    """Without dataset 1's text and with an empty cache, stage 2 trains to the same bits."""
    monkeypatch.setenv("K1_CACHE", str(tmp_path / "cache"))
    previous = load_checkpoint(trained.models_dir / "k1_dataset1.pt", "k1")
    # Where it stands is known to nobody; the file itself belongs to tests that run beside this one.
    previous.datasets[0]["name"] = str(tmp_path / "gone.jsonl")
    flags = parse_training_flags("", "k1", ["--max_steps", "20", "--threads", "1"])
    arguments = flags.resolve(2, previous.arguments)
    tokenizer = load_tokenizer(previous.tokenizer)
    dataset = DataLoader(str(trained.corpora[1]), arguments).tokenize(tokenizer)
    model = restore_model(previous, "cpu")
    rehearsal = begin_rehearsal(model, previous.written, tokenizer, arguments)
    StageTrainer(model, dataset, arguments, rehearsal).run()
    assert rehearsal is not None
    expected = load_checkpoint(trained.models_dir / "k1_dataset2.pt", "k1").model
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
