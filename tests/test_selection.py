"""Masks have exactly the size of the budget, for any shapes and values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from k1.selection import SELECTION_POLICIES, largest, module_group

SHAPES = st.lists(st.lists(st.integers(1, 7), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5)


@given(SHAPES, st.floats(0, 1), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=200, deadline=None)
def test_largest_fills_the_budget_with_the_largest(shapes, fraction, seed, with_ties):
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.rand(shape, generator=generator) for i, shape in enumerate(shapes)}
    if with_ties:
        scores = {name: (score * 3).floor() for name, score in scores.items()}
    total = sum(score.numel() for score in scores.values())
    budget = max(1, round(fraction * total))
    masks = largest(scores, budget)
    assert {name: mask.shape for name, mask in masks.items()} == {name: score.shape for name, score in scores.items()}
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    values = torch.cat([score.flatten() for score in scores.values()])
    assert int(flat.sum()) == budget
    if budget < total:
        assert values[flat].min() >= values[~flat].max()


@pytest.mark.parametrize("policy", SELECTION_POLICIES)
@given(
    shapes=SHAPES, fraction=st.sampled_from([0.001, 0.1, 0.51, 0.999, 1.0]), seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_each_policy_meets_the_budget_exactly(policy, shapes, fraction, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    parameters, moments = {}, {}
    for i, shape in enumerate(shapes):
        name = f"layers.{i // 2}.{'self_attn' if i % 2 else 'mlp'}.weight"
        name = name if name not in parameters else f"lm_head.{i}"
        parameters[name] = torch.nn.Parameter(torch.randn(shape, generator=generator))
        parameters[name].grad = scale * torch.randn(shape, generator=generator)
        moments[name] = scale * torch.randn(shape, generator=generator)
    total = sum(parameter.numel() for parameter in parameters.values())
    budget = max(1, round(fraction * total))
    masks = SELECTION_POLICIES[policy](parameters, moments, budget, generator)
    assert list(masks) == list(parameters)
    assert sum(int(mask.sum()) for mask in masks.values()) == budget


def test_a_parameter_without_a_gradient_counts_as_zero():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    used.grad = torch.tensor([1.0, 2.0, 3.0])
    masks = SELECTION_POLICIES["gradient"]({"unused": unused, "used": used}, {}, 3, torch.Generator())
    assert masks["used"].all() and not masks["unused"].any()


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.3.self_attn.q_proj.weight", "attention 3"),
        ("model.layers.3.input_layernorm.weight", "attention 3"),
        ("model.layers.0.post_attention_layernorm.weight", "feed-forward 0"),
        ("model.layers.11.mlp.up_proj.weight", "feed-forward 11"),
        ("model.norm.weight", "output"),
        ("lm_head.weight", "output"),
        ("transformer.wte.weight", "embedding"),
        ("transformer.h.2.attn.c_attn.weight", "attention 2"),
        ("transformer.h.2.ln_2.weight", "feed-forward 2"),
    ],
)
def test_module_groups(name, group):
    assert module_group(name) == group
