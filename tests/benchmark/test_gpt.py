"""The plain GPT learns, looks at no later token, and is as large as it should be."""

import math

import pytest
import torch

from k1.benchmark.gpt import GPT
from k1.model import count_parameters


def gpt(parameters=60_000):
    torch.manual_seed(0)
    return GPT(vocabulary=97, width=32, layers=2, heads=4, length=24, parameters=parameters)


@pytest.mark.parametrize("parameters", [30_000, 60_000, 123_456])
def test_it_has_the_parameters_asked_for(parameters):
    assert count_parameters(gpt(parameters)) == pytest.approx(parameters, rel=0.005)


def test_it_begins_at_an_even_guess_and_learns_a_batch():
    model, ids = gpt(), torch.randint(0, 97, (4, 24))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(ids, ids).item()
    assert first == pytest.approx(math.log(97), rel=0.02)
    for _ in range(30):
        model.zero_grad()
        loss = model(ids, ids)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2


def test_no_prediction_depends_on_a_later_token():
    model, ids, logits = gpt(), torch.randint(0, 97, (1, 24)), []
    model.head.register_forward_hook(lambda layer, inputs, output: logits.append(output[0]))
    changed = ids.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % 97
    model(ids, ids), model(changed, changed)
    assert torch.allclose(logits[0][:10], logits[1][:10], atol=1e-6)
    assert not torch.allclose(logits[0][10:], logits[1][10:], atol=1e-3)
