"""SparseAdamW changes exactly the selected parameters, compared bit by bit."""

import copy

import pytest
import torch

from k1.errors import K1Error
from k1.sparse.optimizer import SELECTIONS, SparseAdamW
from k1.sparse.selection import Evidence, budget_of, select_gain

FRACTION = 0.51
SPARSE = [selection for selection in SELECTIONS if selection != "all"]
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95)}


def groups(model, weight_decay=0.1):
    return [{"params": list(model.named_parameters()), "weight_decay": weight_decay}]


def omega_and_rho(model, seed=0):
    """Random importance and responsibility of each parameter, what the policy `gain` needs."""
    generator = torch.Generator().manual_seed(seed)
    return {
        quantity: {
            name: torch.rand(parameter.shape, generator=generator) for name, parameter in model.named_parameters()
        }
        for quantity in ("importance", "responsibility")
    }


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
@pytest.mark.parametrize("selection", SPARSE)
def test_exactly_the_budget_changes_at_each_step(tiny_model, selection, weight_decay, max_norm, accumulation):
    optimizer = SparseAdamW(
        groups(tiny_model, weight_decay),
        selection,
        FRACTION,
        seed=1,
        fused=True,
        **omega_and_rho(tiny_model),
        **OPTIONS,
    )
    total = sum(parameter.numel() for parameter in tiny_model.parameters())
    budget = budget_of(FRACTION, dict(tiny_model.named_parameters()))
    assert abs(budget / total - FRACTION) < 1e-3
    for step in range(4):
        before = bits(tiny_model)
        backward(tiny_model, step, accumulation)
        if max_norm:
            torch.nn.utils.clip_grad_norm_(tiny_model.parameters(), max_norm)
        optimizer.step()
        # Error feedback owes nothing to what it has selected.
        masks = optimizer._masks or {name: owed == 0 for name, owed in optimizer._pending_updates.items()}
        moved = changed(before, bits(tiny_model))
        assert count(masks) == budget
        assert not any((moved[name] & ~masks[name]).any() for name in moved)
        # An update below half a unit in the last place is rounded away; which ones are, depends on the processor.
        assert count(moved) >= budget - 3


@pytest.mark.parametrize("selection", SPARSE)
def test_selected_parameters_move_as_in_a_dense_step(tiny_model, selection):
    """At the first step moments agree, so a selected parameter gets the very bits that AdamW gives it.

    Error feedback adds the update to the parameter, which rounds in another way.
    """
    twin = copy.deepcopy(tiny_model)
    before = bits(tiny_model)
    for model, optimizer in (
        (
            tiny_model,
            SparseAdamW(groups(tiny_model), selection, FRACTION, fused=True, **omega_and_rho(tiny_model), **OPTIONS),
        ),
        (twin, torch.optim.AdamW(twin.parameters(), weight_decay=0.1, fused=True, **OPTIONS)),
    ):
        backward(model, 0)
        optimizer.step()
    after, dense = bits(tiny_model), bits(twin)
    for name, mask in changed(before, after).items():
        if selection == "error_feedback":
            ours, theirs = after[name][mask].view(torch.float32), dense[name][mask].view(torch.float32)
            torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=1e-9)
        else:
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
    from k1.sparse.selection import module_group

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


def test_gain_selection_is_kept_for_the_stage_although_gradients_change(tiny_model):
    evidence = omega_and_rho(tiny_model)
    optimizer = SparseAdamW(groups(tiny_model), "gain", FRACTION, gain_floor=0.1, **evidence, **OPTIONS)
    parameters = dict(tiny_model.named_parameters())
    expected = select_gain(
        Evidence(parameters, budget_of(FRACTION, parameters), torch.Generator(), gain_floor=0.1, **evidence)
    )
    gradients = []
    for step in range(3):
        before = bits(tiny_model)
        backward(tiny_model, step)
        gradients.append(tiny_model.lm_head.weight.grad.clone())
        optimizer.step()
        for name, mask in changed(before, bits(tiny_model)).items():
            assert torch.equal(mask, expected[name]), (step, name)
    assert not torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("lacking", ["importance", "responsibility"])
def test_gain_without_what_it_weighs_is_refused(tiny_model, lacking):
    evidence = {**omega_and_rho(tiny_model), lacking: None}
    with pytest.raises(K1Error, match="'gain' needs a stage before this one"):
        SparseAdamW(groups(tiny_model), "gain", FRACTION, **evidence, **OPTIONS)


@pytest.mark.parametrize("fraction", [0.1, FRACTION])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_error_feedback_delays_updates_and_loses_none(tiny_model, weight_decay, fraction):
    """Applied and pending updates are together all that dense AdamW asks for along the same trajectory.

    In float64, so that rounding cannot hide a lost update.
    """
    tiny_model.double()
    parameters = dict(tiny_model.named_parameters())
    budget = budget_of(fraction, parameters)
    optimizer = SparseAdamW(groups(tiny_model, weight_decay), "error_feedback", fraction, **OPTIONS)
    twin = copy.deepcopy(tiny_model)
    dense = torch.optim.AdamW(twin.parameters(), weight_decay=weight_decay, **OPTIONS)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    asked = {name: torch.zeros_like(value) for name, value in start.items()}
    for step in range(8):
        backward(tiny_model, step)
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for name, theirs in twin.named_parameters():
            theirs.data.copy_(before[name])
            theirs.grad = parameters[name].grad.clone()
        dense.step()
        optimizer.step()
        for name, theirs in twin.named_parameters():
            asked[name] += theirs.detach() - before[name]
        masks = {name: before[name] != parameter for name, parameter in parameters.items()}
        assert count(masks) == budget
        # What a parameter was owed before this step: it is paid all of it, or nothing.
        owed = {name: asked[name] - (before[name] - start[name]) for name in asked}
        paid = {name: (parameter - before[name]).detach() for name, parameter in parameters.items()}
        for name, mask in masks.items():
            torch.testing.assert_close(paid[name], owed[name] * mask, rtol=0, atol=1e-14)
        chosen = torch.cat([owed[name].abs()[mask] for name, mask in masks.items()])
        others = torch.cat([owed[name].abs()[~mask] for name, mask in masks.items()])
        assert chosen.min() >= others.max() - 1e-14
    # Without anything owed at the end, dense AdamW would pass this test too.
    assert max(float((owed[name] - paid[name]).abs().max()) for name in owed) > 0.1 * OPTIONS["lr"]


def test_an_update_that_always_waits_is_paid_in_the_end():
    """A parameter with small steps is passed over until its pending updates outgrow the other one's step."""
    fast, slow = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    group = [{"params": [("fast", fast)], "lr": 1e-2}, {"params": [("slow", slow)], "lr": 3e-3}]
    optimizer = SparseAdamW(group, "error_feedback", 0.5, weight_decay=0.0)
    way = []
    for _ in range(8):
        fast.grad, slow.grad = torch.ones(1), torch.ones(1)
        optimizer.step()
        way.append((round(fast.item(), 4), round(slow.item(), 4)))
    # fast is passed over once, when slow is owed 4 x 0.003, and gets both of its steps at the next.
    assert way[:5] == [(-0.01, 0), (-0.02, 0), (-0.03, 0), (-0.03, -0.012), (-0.05, -0.012)]


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(tiny_model, fraction):
    with pytest.raises(K1Error, match="update_fraction"):
        SparseAdamW(groups(tiny_model), "gradient", fraction, **OPTIONS)


def test_an_unknown_selection_is_refused_and_the_known_ones_listed(tiny_model):
    with pytest.raises(K1Error, match="all, error_feedback, gain, gradient, momentum, random, groups"):
        SparseAdamW(groups(tiny_model), "best", FRACTION, **OPTIONS)
