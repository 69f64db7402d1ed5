"""Batches of any kind measure the same, and text to go on from is found in them."""

import pytest
import torch

import k1
from k1.errors import K1Error
from k1.sparse.batches import beginnings

IDS = torch.randint(1, 37, (3, 4, 12), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": ids} for ids in IDS]


def test_batches_of_any_kind_measure_the_same(tiny_model):
    expected = k1.fisher_information(tiny_model, IDS)
    for batches in (BATCHES, iter(BATCHES), list(IDS), torch.utils.data.DataLoader(IDS.flatten(0, 1), batch_size=4)):
        found = k1.fisher_information(tiny_model, batches)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_padding_and_labels_of_a_batch_count(tiny_model):
    ids = IDS[0]
    padded = torch.cat([ids, torch.zeros(4, 3, dtype=torch.long)], dim=1)
    mask = torch.ones_like(padded)
    mask[:, 12:] = 0
    expected = k1.fisher_information(tiny_model, [ids])
    found = k1.fisher_information(tiny_model, [{"input_ids": padded, "attention_mask": mask}])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6 * float(value.max()))
    labels = ids.masked_fill(ids % 2 == 0, -100)
    other = k1.fisher_information(tiny_model, [{"input_ids": ids, "labels": labels}])
    assert any(not torch.allclose(other[name], value, rtol=0.1) for name, value in expected.items())


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batch_is_an_error(tiny_model, batches):
    with pytest.raises(K1Error, match="there is no batch"):
        k1.fisher_information(tiny_model, batches)
    with pytest.raises(K1Error, match="there is no batch"):
        k1.enter_eigenbasis(tiny_model, batches)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_mode_of_the_model(tiny_model, training):
    tiny_model.train(training)
    k1.enter_eigenbasis(tiny_model, BATCHES)
    k1.fisher_information(tiny_model, BATCHES)
    k1.rehearsal_of(tiny_model, BATCHES, sequences=2, length=8).loss(tiny_model, 1)
    assert all(module.training == training for module in tiny_model.modules())


def test_beginnings_are_text_and_no_padding():
    ids = torch.arange(1, 25).view(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, 4:] = 0, 0
    expected = [[4, 5], [9, 10], [13, 14]]
    assert beginnings([{"input_ids": ids, "attention_mask": mask}], given=2, every=5).tolist() == expected
    found = beginnings(iter([ids[:, :6], ids[:1, 6:7]]), given=2, every=4)
    assert found.tolist() == [[1, 2], [5, 6], [13, 14], [17, 18]]
