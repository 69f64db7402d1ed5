"""Masks have exactly the size of the budget, for any shapes and values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from k1.sparse.selection import SELECTION_POLICIES, Evidence, largest, module_group, select_gain

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


def evidence_of(shapes, generator, budget, scale=1.0, **changes):
    """Random evidence of every kind, so that each policy finds what it looks at."""

    def random(kind=torch.randn):
        return {name: scale * kind(parameter.shape, generator=generator) for name, parameter in parameters.items()}

    parameters = {}
    for i, shape in enumerate(shapes):
        name = f"layers.{i // 2}.{'self_attn' if i % 2 else 'mlp'}.weight"
        name = name if name not in parameters else f"lm_head.{i}"
        parameters[name] = torch.nn.Parameter(torch.randn(shape, generator=generator))
        parameters[name].grad = scale * torch.randn(shape, generator=generator)
    return Evidence(
        **{
            "parameters": parameters, "budget": budget, "generator": generator, "first_moments": random(),
            "importance": random(torch.rand), "responsibility": random(torch.rand), **changes,
        }
    )  # fmt: skip


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).numpy()


@pytest.mark.parametrize("policy", SELECTION_POLICIES)
@given(
    shapes=SHAPES, fraction=st.sampled_from([0.001, 0.1, 0.51, 0.999, 1.0]), seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]), gain_floor=st.sampled_from([0.0, 0.1]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_each_policy_meets_the_budget_exactly(policy, shapes, fraction, seed, scale, gain_floor):
    total = sum(int(np.prod(shape)) for shape in shapes)
    budget = max(1, round(fraction * total))
    generator = torch.Generator().manual_seed(seed)
    evidence = evidence_of(shapes, generator, budget, scale, gain_floor=gain_floor)
    masks = SELECTION_POLICIES[policy](evidence)
    assert list(masks) == list(evidence.parameters)
    assert all(mask.shape == evidence.parameters[name].shape for name, mask in masks.items())
    assert sum(int(mask.sum()) for mask in masks.values()) == budget


def test_a_parameter_without_a_gradient_counts_as_zero():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    used.grad = torch.tensor([1.0, 2.0, 3.0])
    evidence = Evidence({"unused": unused, "used": used}, budget=3, generator=torch.Generator())
    masks = SELECTION_POLICIES["gradient"](evidence)
    assert masks["used"].all() and not masks["unused"].any()


@pytest.mark.parametrize(
    ("budget", "from_moving", "from_still"),
    [(20, 20, 0), (36, 36, 0), (40, 36, 4), (48, 36, 12)],
    ids=["some", "all that move", "a few more", "all"],
)
def test_groups_take_what_a_step_does_not_move_last(budget, from_moving, from_still):
    """Rows of an embedding without a gradient move by their momentum, and where they have none not at all."""
    embedding, other = torch.nn.Parameter(torch.ones(8, 4)), torch.nn.Parameter(torch.ones(4, 4))
    embedding.grad, other.grad = torch.zeros(8, 4), torch.ones(4, 4)
    embedding.grad[:3] = 100
    moments = {"embed": embedding.grad / 10, "layers.0.mlp": other.grad / 10}
    moments["embed"][3:5] = -1e-9
    parameters = {"embed": embedding, "layers.0.mlp": other}
    masks = SELECTION_POLICIES["groups"](Evidence(parameters, budget, torch.Generator(), first_moments=moments))
    # The group with the larger gradients comes first, as far as it moves.
    assert masks["embed"][:5].all()
    assert int(masks["embed"][5:].sum()) == from_still
    assert int(masks["embed"][:5].sum() + masks["layers.0.mlp"].sum()) == from_moving


@pytest.mark.parametrize(("policy", "looks_at"), [("momentum", "first_moments"), ("gain", "responsibility")])
def test_a_policy_takes_the_largest_of_what_it_looks_at(policy, looks_at):
    shapes, budget = [(30, 20), (50,)], 331
    evidence = evidence_of(shapes, torch.Generator().manual_seed(0), budget, gain_floor=0.1)
    evidence.importance = {name: torch.zeros_like(value) for name, value in evidence.importance.items()}
    chosen = flat(SELECTION_POLICIES[policy](evidence))
    sizes = np.abs(flat(getattr(evidence, looks_at)))
    assert sizes[chosen].min() > sizes[~chosen].max() and chosen.sum() == budget


GAIN_SHAPES, GAIN_BUDGET = [(31, 17), (29,), (7, 3, 5)], 338


@pytest.mark.parametrize("gain_floor", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("spread", [0, 6])
@pytest.mark.parametrize("seed", range(3))
def test_gain_against_brute_force(seed, spread, gain_floor):
    """rho / (Omega + kappa mean(rho)) over all elements, sorted; `spread` orders of magnitude between them."""
    generator = torch.Generator().manual_seed(seed)
    evidence = evidence_of(GAIN_SHAPES, generator, GAIN_BUDGET, gain_floor=gain_floor)
    for tensors in (evidence.importance, evidence.responsibility):
        for value in tensors.values():
            value *= 10 ** (spread * (torch.rand(value.shape, generator=generator) - 0.5))
    rho, omega = (flat(tensors).astype(np.float64) for tensors in (evidence.responsibility, evidence.importance))
    score = rho / (omega + gain_floor * rho.mean())
    expected = np.zeros(rho.size, dtype=bool)
    expected[np.argsort(-score)[:GAIN_BUDGET]] = True
    assert np.array_equal(flat(select_gain(evidence)), expected)
    # Neither quantity alone gives these masks.
    assert not np.array_equal(expected, flat(largest(evidence.responsibility, GAIN_BUDGET)))


@pytest.mark.parametrize("gain_floor", [0.0, 0.1])
def test_gain_where_nothing_is_important_is_responsibility(gain_floor):
    evidence = evidence_of(GAIN_SHAPES, torch.Generator().manual_seed(0), GAIN_BUDGET, gain_floor=gain_floor)
    evidence.importance = {name: torch.zeros_like(value) for name, value in evidence.importance.items()}
    assert np.array_equal(flat(select_gain(evidence)), flat(largest(evidence.responsibility, GAIN_BUDGET)))


@pytest.mark.parametrize("importance", [0.0, 1.0])
@pytest.mark.parametrize("gain_floor", [0.0, 0.1])
def test_gain_where_the_new_text_gives_no_gradient_still_meets_the_budget(gain_floor, importance):
    evidence = evidence_of(GAIN_SHAPES, torch.Generator().manual_seed(0), GAIN_BUDGET, gain_floor=gain_floor)
    evidence.importance = {name: torch.full_like(value, importance) for name, value in evidence.importance.items()}
    evidence.responsibility = {name: torch.zeros_like(value) for name, value in evidence.importance.items()}
    chosen = flat(select_gain(evidence))
    # All scores are equal, and ties go to the first.
    assert chosen[:GAIN_BUDGET].all() and not chosen[GAIN_BUDGET:].any()


def test_gain_spares_what_the_new_text_does_not_need():
    evidence = evidence_of(GAIN_SHAPES, torch.Generator().manual_seed(0), GAIN_BUDGET, gain_floor=0.1)
    name = next(iter(evidence.parameters))
    evidence.responsibility[name][:8] = 0
    evidence.importance[name][:8] = 0
    assert not select_gain(evidence)[name][:8].any()


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
        ("model.layers.3.self_attn.q_proj.parametrizations.weight.original", "attention 3"),
        ("lm_head.parametrizations.weight.original", "output"),
        ("transformer.wte.weight", "embedding"),
        ("transformer.h.2.attn.c_attn.weight", "attention 2"),
        ("transformer.h.2.ln_2.weight", "feed-forward 2"),
    ],
)
def test_module_groups(name, group):
    assert module_group(name) == group
