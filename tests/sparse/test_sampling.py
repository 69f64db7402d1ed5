"""Rehearsed text is drawn from the distribution that the model predicts."""

import pytest
import torch

from k1.sparse.rehearsal import InverseTransformSampling


def test_a_token_is_drawn_as_often_as_the_model_says_and_one_that_cannot_follow_never():
    probabilities = torch.tensor([0, 0.5, 0, 0.3, 0.2, 0])
    scores = probabilities.log().expand(4_000, -1)
    allowed = InverseTransformSampling(torch.Generator().manual_seed(0))(None, scores).isfinite()
    assert torch.equal(allowed.sum(-1), torch.ones(4_000, dtype=torch.long))
    deviation = (probabilities * (1 - probabilities) / 4_000).sqrt()
    assert ((allowed.float().mean(0) - probabilities).abs() <= 4 * deviation).all()


@pytest.mark.parametrize(("drawn", "token"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_what_is_drawn_are_tokens_too(monkeypatch, drawn, token):
    """What is drawn lies in [0, 1), but times a sum it may be rounded up to the whole."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, drawn))
    scores = torch.tensor([[0, 0.5, 0.5]]).log()
    assert InverseTransformSampling(torch.Generator())(None, scores).argmax() == token
