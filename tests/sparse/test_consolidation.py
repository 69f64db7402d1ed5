"""Consolidation holds the important parameters near where a stage began, as the papers say and no other way."""

import pytest
import torch

from k1.sparse.optimizer import SparseAdamW, consolidation_strength
from k1.sparse.selection import Evidence, budget_of, select_gain

FRACTION = 0.51
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95)}


def adamw_by_hand(start, gradients, omega, strength, weight_decay, masks=None):
    """The parameters after AdamW with lambda = `strength`, one `gradients[step]` after the other, as in the papers."""
    (beta1, beta2), epsilon = OPTIONS["betas"], 1e-8
    theta = {name: value.clone() for name, value in start.items()}
    first, second = ({name: torch.zeros_like(value) for name, value in start.items()} for _ in range(2))
    for step, gradient_of in enumerate(gradients, start=1):
        for name, value in theta.items():
            gradient = gradient_of[name] + strength * omega[name] * (value - start[name])
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            direction = (first[name] / (1 - beta1**step)) / ((second[name] / (1 - beta2**step)).sqrt() + epsilon)
            moved = value - OPTIONS["lr"] * (direction + weight_decay * value)
            theta[name] = moved if masks is None else torch.where(masks[name], moved, value)
    return theta


def random_problem(steps, seed=0):
    """Start, gradients of each step, and as evidence responsibility and importance with zeros in it, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (6, 5), "b": (7,)}

    def random(kind=torch.randn):
        return {name: kind(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}

    omega = {name: value * (value > 0.3) for name, value in random(torch.rand).items()}
    evidence = {"importance": omega, "responsibility": random(torch.rand)}
    return random(), [random() for _ in range(steps)], evidence


def mean_of(tensors):
    return float(torch.cat([value.flatten() for value in tensors.values()]).mean())


def run_steps(start, gradients, weight_decay, *arguments, **options):
    """The parameters after `SparseAdamW` has stepped along `gradients` from `start`."""
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    group = [{"params": list(parameters.items()), "weight_decay": weight_decay}]
    optimizer = SparseAdamW(group, *arguments, **options, **OPTIONS)
    for gradient_of in gradients:
        for name, parameter in parameters.items():
            parameter.grad = gradient_of[name].clone()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("consolidation", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_consolidation_against_adamw_by_hand(steps, consolidation, weight_decay, fused):
    start, gradients, evidence = random_problem(steps)
    strength = consolidation * mean_of(evidence["responsibility"]) ** 0.5 / mean_of(evidence["importance"])
    ours = run_steps(start, gradients, weight_decay, **evidence, consolidation=consolidation, fused=fused)
    expected = adamw_by_hand(start, gradients, evidence["importance"], strength, weight_decay)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


def test_consolidation_with_gain_moves_the_selected_as_by_hand_and_no_other():
    start, gradients, evidence = random_problem(5)
    masks = select_gain(Evidence(start, budget_of(FRACTION, start), torch.Generator(), **evidence))
    ours = run_steps(start, gradients, 0.0, "gain", FRACTION, **evidence, consolidation=6.0)
    strength = 6.0 * mean_of(evidence["responsibility"]) ** 0.5 / mean_of(evidence["importance"])
    expected = adamw_by_hand(start, gradients, evidence["importance"], strength, 0.0, masks)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)
        assert torch.equal(value != start[name], masks[name])


def test_strong_consolidation_holds_the_important_parameters_and_leaves_the_others_free():
    start, _, evidence = random_problem(0)
    steady = [{name: torch.ones_like(value) for name, value in start.items()}] * 100
    free, held = (run_steps(start, steady, 0.0, **evidence, consolidation=strength) for strength in (0.0, 1e4))
    for name, importance in evidence["importance"].items():
        way_free, way_held = (free[name] - start[name]).abs(), (held[name] - start[name]).abs()
        unimportant = importance == 0
        assert unimportant.any() and torch.equal(way_held[unimportant], way_free[unimportant])
        assert way_held[~unimportant].max() < 0.05 * way_free[~unimportant].min()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_pull_does_not_depend_on_the_unit_of_importance(scale):
    """Twice the datasets in Omega is not twice the pull; gradients twice as large are."""
    _, _, evidence = random_problem(0)
    omega, rho = evidence["importance"], evidence["responsibility"]
    scaled = {name: scale * value for name, value in omega.items()}
    pull = consolidation_strength(6.0, omega, rho) * mean_of(omega)
    assert pull == pytest.approx(6.0 * mean_of(rho) ** 0.5)
    assert consolidation_strength(6.0, scaled, rho) * mean_of(scaled) == pytest.approx(pull)
    larger = {name: 4 * value for name, value in rho.items()}
    assert consolidation_strength(6.0, omega, larger) * mean_of(omega) == pytest.approx(2 * pull)


@pytest.mark.parametrize("lacking", ["importance", "responsibility"])
@pytest.mark.parametrize("zeros", [False, True])
def test_without_importance_or_responsibility_nothing_is_held(lacking, zeros):
    start, gradients, evidence = random_problem(3)
    evidence[lacking] = {name: torch.zeros_like(value) for name, value in start.items()} if zeros else None
    held, free = (run_steps(start, gradients, 0.1, **evidence, consolidation=strength) for strength in (1e4, 0.0))
    for name, value in held.items():
        assert torch.equal(value, free[name])
