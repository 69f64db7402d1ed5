"""A folded copy is a plain model for any architecture, and folding one model leaves its copies as they are."""

import copy

import pytest
import torch

from k1.sparse.eigenbasis import Eigenbasis, enter_eigenbasis, fold_eigenbasis, folded_copy
from tests.pretrained import CONFIGS, LENGTH, ROWS, TIED, fresh_model

IDS = torch.randint(0, ROWS, (4, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=IDS).logits


def in_eigenbasis(kind):
    model = fresh_model(kind)
    enter_eigenbasis(model, [IDS])
    return model


def has_bases(model):
    return any(isinstance(module, Eigenbasis) for module in model.modules())


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folded_copy_is_a_plain_model_of_its_own(kind):
    model = in_eigenbasis(kind).train()
    expected, state = logits_of(model.eval()), {name: value.clone() for name, value in model.state_dict().items()}
    plain = folded_copy(model.train())
    assert model.training and has_bases(model) and not plain.training and not has_bases(plain)
    torch.testing.assert_close(logits_of(plain), expected, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in fresh_model(kind).named_parameters()}
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == (kind in TIED)
    shared = {value.data_ptr() for value in model.state_dict().values()}
    assert not shared & {value.data_ptr() for value in (*plain.parameters(), *plain.buffers())}
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_folding_leaves_a_deep_copy_in_its_eigenbasis():
    model = in_eigenbasis("llama")
    other, expected = copy.deepcopy(model), logits_of(model)
    fold_eigenbasis(model)
    assert has_bases(other) and not has_bases(model)
    for each in (model, other):
        torch.testing.assert_close(logits_of(each), expected, rtol=1e-4, atol=1e-5)


def test_a_copy_keeps_types_and_what_is_not_in_the_configuration():
    model = fresh_model("gpt2").bfloat16()
    model.lm_head = torch.nn.Linear(24, 7, dtype=torch.bfloat16)
    plain = folded_copy(model)
    assert torch.equal(logits_of(plain), logits_of(model)) and logits_of(plain).shape[-1] == 7
    assert {value.dtype for value in plain.parameters()} == {torch.bfloat16}
