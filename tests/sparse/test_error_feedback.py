"""The largest pending updates take effect, and nothing else changes."""

import numpy as np
import pytest
import torch

from k1.sparse import threshold
from k1.sparse.error_feedback import apply_largest

SHAPES = [(40, 30), (7,), (25, 60), ()]


def tensors(generator, scale=1.0):
    return {str(i): scale * torch.randn(shape, generator=generator) for i, shape in enumerate(SHAPES)}


def flat(named):
    return np.concatenate([value.numpy().flatten() for value in named.values()])


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.51, 0.99, 1.0])
@pytest.mark.parametrize("sizes", [(500, 1_000), (64, 100), (2**16, 2**17)], ids=["few pieces", "many", "as in use"])
def test_against_sorting(monkeypatch, sizes, share, with_ties):
    """The largest first, and of equal ones the first."""
    for name, value in zip(("PIECE_ELEMENTS", "FEW_ELEMENTS"), sizes):
        monkeypatch.setattr(threshold, name, value)
    generator = torch.Generator().manual_seed(1)
    parameters, pending = tensors(generator), tensors(generator, 1e-2)
    if with_ties:
        pending = {name: (300 * update).round() / 100 for name, update in pending.items()}
    values, updates = flat(parameters), flat(pending)
    budget = max(1, round(share * values.size))
    chosen = np.argsort(-np.abs(updates), kind="stable")[:budget]
    apply_largest(parameters, pending, budget)
    values[chosen] += updates[chosen]
    updates[chosen] = 0
    assert np.array_equal(flat(parameters), values)
    assert np.array_equal(flat(pending), updates)


def test_what_is_not_chosen_keeps_the_sign_of_its_zero():
    parameters, pending = {"a": torch.tensor([-0.0, 0.0, -0.0])}, {"a": torch.tensor([0.1, 0.2, 0.3])}
    apply_largest(parameters, pending, 1)
    assert torch.signbit(parameters["a"]).tolist() == [True, False, False]
    assert pending["a"].tolist() == pytest.approx([0.1, 0.2, 0])


def test_parameters_of_another_layout():
    generator = torch.Generator().manual_seed(0)
    values, updates = torch.randn(30, 20, generator=generator), torch.randn(30, 20, generator=generator)
    straight, turned = {"a": values.clone()}, {"a": values.T.contiguous().T}
    assert not turned["a"].is_contiguous()
    apply_largest(straight, {"a": updates.clone()}, 300)
    apply_largest(turned, {"a": updates.T.contiguous().T}, 300)
    assert torch.equal(straight["a"], turned["a"])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_another_precision(kind):
    generator = torch.Generator().manual_seed(0)
    parameter, update = (torch.randn(1_000, generator=generator).to(kind) for _ in range(2))
    before, owed = parameter.clone(), update.clone()
    apply_largest({"a": parameter}, {"a": update}, 510)
    paid = update == 0
    assert paid.sum() == 510 and owed.abs()[paid].min() >= owed.abs()[~paid].max()
    assert torch.equal(parameter, torch.where(paid, before + owed, before))
