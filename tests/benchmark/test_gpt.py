"""The plain GPT looks at no later token, and is as large as it should be; that it learns, test_benchmark sees."""

import pytest
import torch

from k1.benchmark.gpt import GPT
from k1.model import count_parameters


@pytest.mark.parametrize("parameters", [30_000, 123_456])
def test_it_has_the_parameters_asked_for_and_no_prediction_depends_on_a_later_token(parameters):
    torch.manual_seed(0)
    model = GPT(vocabulary=97, width=32, layers=2, heads=4, length=24, parameters=parameters)
    assert count_parameters(model) == pytest.approx(parameters, rel=0.005)
    ids, logits = torch.randint(0, 97, (1, 24)), []
    model.head.register_forward_hook(lambda layer, inputs, output: logits.append(output[0]))
    changed = ids.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % 97
    model(ids, ids), model(changed, changed)
    assert torch.allclose(logits[0][:10], logits[1][:10], atol=1e-6)
    assert not torch.allclose(logits[0][10:], logits[1][10:], atol=1e-3)
