"""SparseAdamW changes exactly the selected parameters, compared bit by bit."""

import copy

import pytest
import torch

from k1.errors import K1Error
from k1.optim import SparseAdamW
from k1.selection import SELECTION_POLICIES, budget_of

FRACTION = 0.51
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95)}


def groups(model, weight_decay=0.1):
    return [{"params": list(model.named_parameters()), "weight_decay": weight_decay}]


def backward(model, step, accumulation=1):
    """Gradients of `accumulation` random batches; the same for the same `step`."""
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    for _ in range(accumulation):
        # All tokens occur, so that no embedding row has a zero gradient.
        ids = torch.stack([torch.randperm(37, generator=generator) for _ in range(8)])
        (model(input_ids=ids, labels=ids).loss / accumulation).backward()


def bits(model):
    return {name: parameter.detach().clone().view(torch.int32) for name, parameter in model.named_parameters()}


def changed(before, after):
    return {name: before[name] != after[name] for name in before}


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_everything_selected_is_adamw_to_the_bit(tiny_model, fused, weight_decay):
    twin = copy.deepcopy(tiny_model)
    sparse = SparseAdamW(groups(tiny_model, weight_decay), "gradient", 1.0, fused=fused, **OPTIONS)
    dense = torch.optim.AdamW(twin.parameters(), weight_decay=weight_decay, fused=fused, **OPTIONS)
    for step in range(5):
        for model, optimizer in ((tiny_model, sparse), (twin, dense)):
            backward(model, step)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert count(changed(bits(tiny_model), bits(twin))) == 0
    for ours, theirs in zip(tiny_model.parameters(), twin.parameters()):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(sparse.state[ours][key], dense.state[theirs][key])


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("selection", SELECTION_POLICIES)
def test_exactly_the_budget_changes_at_each_step(tiny_model, selection, weight_decay, max_norm, accumulation):
    optimizer = SparseAdamW(groups(tiny_model, weight_decay), selection, FRACTION, seed=1, fused=True, **OPTIONS)
    total = sum(parameter.numel() for parameter in tiny_model.parameters())
    budget = budget_of(FRACTION, dict(tiny_model.named_parameters()))
    assert abs(budget / total - FRACTION) < 1e-3
    for step in range(4):
        before = bits(tiny_model)
        backward(tiny_model, step, accumulation)
        if max_norm:
            torch.nn.utils.clip_grad_norm_(tiny_model.parameters(), max_norm)
        optimizer.step()
        assert count(changed(before, bits(tiny_model))) == budget


@pytest.mark.parametrize("selection", SELECTION_POLICIES)
def test_selected_parameters_move_as_in_a_dense_step(tiny_model, selection):
    """At the first step moments agree, so a selected parameter gets the very bits that AdamW gives it."""
    twin = copy.deepcopy(tiny_model)
    before = bits(tiny_model)
    for model, optimizer in (
        (tiny_model, SparseAdamW(groups(tiny_model), selection, FRACTION, fused=True, **OPTIONS)),
        (twin, torch.optim.AdamW(twin.parameters(), weight_decay=0.1, fused=True, **OPTIONS)),
    ):
        backward(model, 0)
        optimizer.step()
    after, dense = bits(tiny_model), bits(twin)
    for name, mask in changed(before, after).items():
        assert torch.equal(after[name][mask], dense[name][mask])


def test_gradient_selection_takes_the_largest_gradients(tiny_model):
    before = bits(tiny_model)
    optimizer = SparseAdamW(groups(tiny_model), "gradient", FRACTION, **OPTIONS)
    backward(tiny_model, 0)
    optimizer.step()
    masks = changed(before, bits(tiny_model))
    chosen = torch.cat([p.grad.abs()[masks[name]] for name, p in tiny_model.named_parameters()])
    others = torch.cat([p.grad.abs()[~masks[name]] for name, p in tiny_model.named_parameters()])
    assert chosen.min() >= others.max()


def test_momentum_selection_looks_at_first_moments_not_at_gradients(tiny_model):
    optimizer = SparseAdamW(groups(tiny_model), "momentum", FRACTION, **OPTIONS)
    for step in range(3):
        before = bits(tiny_model)
        backward(tiny_model, step)
        optimizer.step()
    masks = changed(before, bits(tiny_model))
    parameters = dict(tiny_model.named_parameters())
    moments = {name: optimizer.state[parameter]["exp_avg"].abs() for name, parameter in parameters.items()}
    chosen = torch.cat([moments[name][mask] for name, mask in masks.items()])
    others = torch.cat([moments[name][~mask] for name, mask in masks.items()])
    assert chosen.min() >= others.max()
    by_gradient = torch.cat([parameters[name].grad.abs()[mask] for name, mask in masks.items()])
    not_chosen = torch.cat([parameters[name].grad.abs()[~mask] for name, mask in masks.items()])
    assert by_gradient.min() < not_chosen.max()


def test_random_selection_is_kept_for_the_stage_and_depends_on_the_seed(tiny_model):
    def masks_of_two_steps(model, seed):
        optimizer = SparseAdamW(groups(model), "random", FRACTION, seed=seed, **OPTIONS)
        masks = []
        for step in range(2):
            before = bits(model)
            backward(model, step)
            optimizer.step()
            masks.append(torch.cat([mask.flatten() for mask in changed(before, bits(model)).values()]))
        return masks

    first, second = masks_of_two_steps(copy.deepcopy(tiny_model), seed=1)
    assert torch.equal(first, second)
    assert torch.equal(first, masks_of_two_steps(copy.deepcopy(tiny_model), seed=1)[0])
    assert not torch.equal(first, masks_of_two_steps(copy.deepcopy(tiny_model), seed=2)[0])


def test_groups_selection_takes_whole_modules_but_for_the_last(tiny_model):
    from k1.selection import module_group

    before = bits(tiny_model)
    optimizer = SparseAdamW(groups(tiny_model), "groups", FRACTION, **OPTIONS)
    backward(tiny_model, 0)
    optimizer.step()
    shares: dict[str, list[torch.Tensor]] = {}
    for name, mask in changed(before, bits(tiny_model)).items():
        shares.setdefault(module_group(name), []).append(mask.flatten())
    means = sorted(torch.cat(masks).float().mean().item() for masks in shares.values())
    assert sum(0 < mean < 1 for mean in means) <= 1
    assert means[0] == 0 and means[-1] == 1


def test_an_unselected_parameter_keeps_its_bits_even_when_decay_and_momentum_would_move_it(tiny_model):
    optimizer = SparseAdamW(groups(tiny_model, weight_decay=10.0), "random", 0.1, seed=3, **OPTIONS)
    start = bits(tiny_model)
    for step in range(5):
        backward(tiny_model, step)
        optimizer.step()
    assert count(changed(start, bits(tiny_model))) == budget_of(0.1, dict(tiny_model.named_parameters()))


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(tiny_model, fraction):
    with pytest.raises(K1Error, match="update_fraction"):
        SparseAdamW(groups(tiny_model), "gradient", fraction, **OPTIONS)


def test_an_unknown_selection_is_refused_and_the_known_ones_listed(tiny_model):
    with pytest.raises(K1Error, match="all, gradient, momentum, random, groups"):
        SparseAdamW(groups(tiny_model), "best", FRACTION, **OPTIONS)
