"""The k-th largest element is exact, whatever the tensors look like and however it is looked for."""

import numpy as np
import pytest
import torch

from k1.sparse import threshold
from k1.sparse.threshold import kth_largest, pieces

TOTAL = 30_000
SPLITS = {"one": [TOTAL], "many": [1, 7_000, 999, 22_000], "empty": [0, TOTAL]}


@pytest.fixture
def small_sizes(monkeypatch):
    """So that a sample is taken, and tensors are cut into pieces, also of few elements."""
    for name, value in {"PIECE_ELEMENTS": 500, "FEW_ELEMENTS": 1_000, "SAMPLE_ELEMENTS": 2_000}.items():
        monkeypatch.setattr(threshold, name, value)


def numbers(kind, generator):
    """Elements of which a sample says much, or little."""
    normal = torch.randn(TOTAL, generator=generator)
    return {
        "normal": normal,
        "ties": (normal * 3).round(),
        "constant": torch.full((TOTAL,), -2.0),
        "sorted": normal.sort().values,
        "mostly zero": normal * (torch.rand(TOTAL, generator=generator) > 0.95),
        "far apart": 10 ** (8 * normal),
    }[kind]


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "sorted", "mostly zero", "far apart"])
def test_it_is_exact(small_sizes, kind, split, by_size):
    values = numbers(kind, torch.Generator().manual_seed(0))
    keys = np.sort(np.abs(values.numpy()) if by_size else values.numpy())[::-1]
    for k in (1, 2, 300, TOTAL // 2, TOTAL - 1, TOTAL):
        found = kth_largest(values.split(SPLITS[split]), k, by_size)
        assert found == (keys[k - 1], np.count_nonzero(keys >= keys[k - 1]) - k)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_it_is_exact_in_other_precisions(small_sizes, kind):
    values = torch.randn(TOTAL, generator=torch.Generator().manual_seed(0)).to(kind)
    expected = values.sort(descending=True).values[TOTAL // 3 - 1]
    assert kth_largest([values], TOTAL // 3).value == expected


def test_where_the_sample_deceives_it_is_exact_still(small_sizes, monkeypatch):
    """Every sampled element is large, and no other one is."""
    values, stride = torch.zeros(TOTAL), 17
    monkeypatch.setattr(threshold, "SAMPLE_STRIDE", stride)
    values[::stride] = 1 + torch.rand(len(values[::stride]), generator=torch.Generator().manual_seed(0))
    values[1::stride] = 0.5
    assert threshold.interval([values], 0.1, by_size=False)[0] > 0.5
    k = len(values[::stride]) + 100
    assert kth_largest([values], k) == (0.5, len(values[1::stride]) - 100)


def test_the_interval_is_small_and_holds_the_threshold(small_sizes):
    """Without the sample everything would be partitioned, and all other tests would pass."""
    generator = torch.Generator().manual_seed(0)
    for share in (0.05, 0.51, 0.9):
        values = torch.randn(TOTAL, generator=generator)
        low, high = threshold.interval([values], share, by_size=True)
        above, within = threshold.above_and_within([values], low, high, by_size=True)
        assert above < share * TOTAL <= above + len(within)
        assert len(within) < 0.2 * TOTAL


@pytest.mark.parametrize("size", [1, 499, 500, 501, 1_250])
def test_pieces_are_views_of_all_elements_in_order(small_sizes, size):
    values, others = torch.arange(float(size)), torch.arange(float(size)) + 1
    for value, other in pieces(values, others):
        assert len(value) <= 500
        value += other
    assert torch.equal(values, 2 * torch.arange(float(size)) + 1)


def test_tensors_of_another_layout_are_not_cut(small_sizes):
    values = torch.zeros(60, 50).T
    ((piece, other),) = pieces(values, torch.ones(50, 60))
    piece += other
    assert values.eq(1).all()


def test_the_last_ones_are_zeroed_also_of_a_single_number():
    values = torch.arange(1.0, 7).view(3, 2).T
    assert threshold.zero_last(values, values > 2, 3) == 3
    assert values.tolist() == [[1, 3, 0], [2, 0, 0]]
    single = torch.tensor(5.0)
    assert threshold.zero_last(single, single > 9, 1) == 0 and single == 5
    assert threshold.zero_last(single, single > 2, 1) == 1 and single == 0
