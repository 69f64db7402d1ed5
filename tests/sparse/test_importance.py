"""Importance: the Fisher information against brute force, and which text it is measured on."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from k1.arguments import parse_training_flags
from k1.errors import K1Error
from k1.sparse.eigenbasis import enter_eigenbasis
from k1.sparse.importance import SEQUENCES_PER_BATCH, add_importance, fisher_information, sample_batches

LENGTH = 16


def token_ids(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 30, (size, LENGTH), generator=generator) for _ in range(count)]


def squared_gradients(model, ids):
    """Parameter name -> squared gradient of the mean next-token loss on `ids`, worked out apart from `.grad`."""
    parameters = dict(model.named_parameters())
    logits = model(input_ids=ids).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return dict(zip(parameters, (gradient**2 for gradient in torch.autograd.grad(loss, list(parameters.values())))))


@pytest.mark.parametrize("in_eigenbasis", [False, True])
@pytest.mark.parametrize(("count", "size"), [(1, 4), (3, 4), (6, 1)])
def test_fisher_information_against_brute_force(tiny_model, in_eigenbasis, count, size):
    """With batches of one sequence it is the Fisher information of single samples."""
    batches = token_ids(count, size)
    if in_eigenbasis:
        enter_eigenbasis(tiny_model, batches, 100)
    each = [squared_gradients(tiny_model, ids) for ids in batches]
    information = fisher_information(tiny_model, batches)
    assert list(information) == [name for name, _ in tiny_model.named_parameters()]
    for name, value in information.items():
        expected = sum(squares[name] for squares in each) / count
        assert expected.max() > 0
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value.float(), expected, rtol=2**-8, atol=1e-6 * float(expected.max()))


def test_squares_are_taken_per_batch_and_not_of_their_mean(tiny_model):
    (ids,) = token_ids(1, 6)
    together, apart = fisher_information(tiny_model, [ids]), fisher_information(tiny_model, ids.split(1))
    assert all((apart[name].sum() > 1.2 * together[name].sum()) for name in together)


def test_measuring_leaves_no_trace_and_ignores_what_was_there(tiny_model):
    batches = token_ids(2, 4)
    expected = fisher_information(tiny_model, batches)
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.named_parameters()}
    tiny_model.train()
    for parameter in tiny_model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    again = fisher_information(tiny_model, batches)
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(again[name], expected[name])
        assert torch.equal(parameter, before[name]) and parameter.grad is None
        assert not again[name].requires_grad


def test_what_the_loss_does_not_depend_on_counts_zero_and_frozen_parameters_are_left_out(tiny_model):
    tiny_model.unused = torch.nn.Parameter(torch.ones(3))
    tiny_model.model.norm.weight.requires_grad_(False)
    information = fisher_information(tiny_model, token_ids(2, 4))
    assert "model.norm.weight" not in information
    assert torch.equal(information["unused"], torch.zeros(3))
    # Tokens 30 to 36 do not occur.
    embedding = information["model.embed_tokens.weight"]
    assert embedding[:30].any() and not embedding[30:].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(tiny_model, value):
    """The study takes a run for diverged where the message says so."""
    tiny_model.lm_head.weight.data[0, 0] = value
    with pytest.raises(K1Error, match="diverged.* lower --learning_rate"):
        fisher_information(tiny_model, token_ids(1, 2))


def test_importance_is_added_up_by_name():
    old = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[2.0]])}
    new = {"b": torch.tensor([[0.5]]), "a": torch.tensor([0.25, 4.0])}
    total = add_importance(old, new)
    assert total.keys() == old.keys()
    assert torch.equal(total["a"], torch.tensor([1.25, 4.0])) and torch.equal(total["b"], torch.tensor([[2.5]]))
    assert torch.equal(old["a"], torch.tensor([1.0, 0.0])) and torch.equal(new["a"], torch.tensor([0.25, 4.0]))


def arguments_with(*argv):
    flags = ["--preset", "smoke", "--seq_length", str(LENGTH), *map(str, argv)]
    return parse_training_flags("", "k1", flags).resolve(stage=1)


def dataset_of(rows):
    """A dataset with `rows` blocks of training text, each with tokens of its own, and no other text to read."""
    blocks = Dataset.from_dict({"input_ids": [[row] * LENGTH for row in range(rows)]}).with_format("torch")
    return SimpleNamespace(blocks={"train": blocks})


@pytest.mark.parametrize("rows", [3, 40, 200])
@pytest.mark.parametrize("count", [1, 5])
def test_the_sample_is_training_text_of_the_dataset_in_the_number_asked_for(rows, count):
    batches = sample_batches(dataset_of(rows), arguments_with("--importance_batches", count))
    assert [batch.shape for batch in batches] == [(SEQUENCES_PER_BATCH, LENGTH)] * count
    drawn = torch.cat(batches)
    assert (drawn == drawn[:, :1]).all()
    # As often as any other until all have had their turn.
    times = torch.bincount(drawn[:, 0], minlength=rows)
    assert len(times) == rows and times.max() - times.min() <= 1


def test_the_sample_depends_on_the_seed_of_the_stage_and_on_nothing_else():
    dataset, arguments = dataset_of(40), arguments_with("--importance_batches", 2)
    first = torch.cat(sample_batches(dataset, arguments))
    torch.manual_seed(123)
    other_settings = replace(arguments, batch_size=3, gradient_accumulation_steps=2, learning_rate=1.0)
    assert torch.equal(first, torch.cat(sample_batches(dataset, other_settings)))
    more = sample_batches(dataset, replace(arguments, importance_batches=3))
    assert torch.equal(first, torch.cat(more[:2]))
    for changed in (replace(arguments, seed=1), replace(arguments, stage=2)):
        assert not torch.equal(first, torch.cat(sample_batches(dataset, changed)))
