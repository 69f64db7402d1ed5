"""Sparse updates on any optimizer: how many parameters change, which keep their bits, and how far the others go."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import k1
from k1.errors import K1Error
from k1.sparse import POLICIES, UPDATE_FRACTION

OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "AdamW maximize": lambda p: torch.optim.AdamW(p, lr=1e-2, maximize=True),
    "AdamW tensor rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), fused=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


class Everything(nn.Module):
    """Parameters of every shape: tied, frozen, of no dimension, of three and four, in another order of memory."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

        self.matrix, self.vector, self.scale = drawn(17, 13), drawn(31), drawn()
        self.experts, self.unused = drawn(3, 5, 7), drawn(11, 2)
        self.filters = nn.Parameter(drawn(4, 3, 3, 3).detach().to(memory_format=torch.channels_last))
        self.frozen = drawn(9, 9).requires_grad_(False)
        self.empty = drawn(0, 4)
        self.tied = self.matrix

    def loss(self) -> torch.Tensor:
        used = [self.matrix, self.vector, self.scale, self.experts, self.filters, self.tied]
        return sum((index + 1) * value.float().sin().sum() for index, value in enumerate(used))


def trained(model: nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def snapshot(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def changed(before: list[torch.Tensor], model: nn.Module) -> int:
    return sum(int((old != new).sum()) for old, new in zip(before, model.parameters()))


def step(model: Everything, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model.loss().backward()
    optimizer.step()


def attached(optimizer: torch.optim.Optimizer, **settings: object) -> torch.optim.Optimizer:
    k1.sparse_updates(optimizer, **settings)
    return optimizer


def bits(model: nn.Module) -> bytes:
    return b"".join(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes() for parameter in trained(model)
                    if parameter.dim())  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_of_what_is_drawn_is_the_dense_step_times_1_over_fraction(name):
    """Three steps, each beside a dense step from the same state: what may not change has the same bits."""
    model = Everything()
    optimizer = attached(OPTIMIZERS[name](model.parameters()), fraction=0.5, seed=3)
    for _ in range(3):
        dense_model, before = copy.deepcopy(model), snapshot(model)
        dense = OPTIMIZERS[name](dense_model.parameters())
        dense.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(dense_model, dense)
        step(model, optimizer)
        drawn = 0
        for old, full, new in zip(before, dense_model.parameters(), model.parameters()):
            mask = old != new
            drawn += int(mask.sum())
            torch.testing.assert_close(new[mask], (old + (full - old) / 0.5)[mask], rtol=1e-4, atol=1e-6)
        # Without a gradient nothing moves, drawn or not.
        assert drawn <= round(0.5 * sum(parameter.numel() for parameter in trained(model)))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fraction", [0.01, 0.51, 0.999])
def test_exactly_the_budget_changes(policy, fraction):
    """With a gradient everywhere, AdamW changes exactly the rounded share of all single parameters, at each step."""
    model = nn.Sequential(nn.Linear(37, 23), nn.Linear(23, 5, bias=False), nn.LayerNorm(5))
    optimizer = attached(torch.optim.AdamW(model.parameters(), lr=0.1), fraction=fraction, policy=policy)
    total = sum(parameter.numel() for parameter in model.parameters())
    for _ in range(4):
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) + 0.1
        before = snapshot(model)
        optimizer.step()
        assert changed(before, model) == round(fraction * total)


def test_windows_are_drawn_anew_at_each_step_and_evenly():
    """Every single parameter is drawn in about the same number of many steps, whatever tensor it is in."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in ((50, 8), (40,), (), (), (1, 3))])
    optimizer = attached(torch.optim.SGD(model.parameters(), lr=1.0), fraction=0.5)
    for _ in range(400):
        for parameter in model:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    # Half of 400 steps, each twice as long; six standard deviations are 6 * sqrt(400 / 4) * 2.
    for parameter in model:
        assert (parameter + 400).abs().max() <= 120


def test_stage_keeps_the_same_windows_and_does_not_change_the_length_of_steps():
    model = nn.Linear(20, 30)
    optimizer = attached(torch.optim.SGD(model.parameters(), lr=1.0), policy="stage")
    before = snapshot(model)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert changed(before, model) == round(UPDATE_FRACTION * total)
    moved = torch.cat([(new - old).flatten() for old, new in zip(before, model.parameters())])
    torch.testing.assert_close(moved[moved != 0], torch.full((round(UPDATE_FRACTION * total),), -3.0))


def test_error_feedback_loses_nothing():
    """What was carried out and what is pending together are all that the dense optimizer asked for."""
    model = nn.Linear(12, 10)
    before = snapshot(model)
    optimizer = attached(torch.optim.SGD(model.parameters(), lr=0.5), fraction=0.3, policy="error_feedback")
    asked = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for number in range(5):
        for total, parameter in zip(asked, model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            total -= 0.5 * parameter.grad
        optimizer.step()
    for old, new, total in zip(before, model.parameters(), asked):
        torch.testing.assert_close(new - old + optimizer.state[new]["pending"], total)


def test_momentum_chooses_by_the_first_moment_after_this_step():
    weights = nn.Parameter(torch.zeros(4))
    optimizer = attached(torch.optim.AdamW([weights], lr=0.1), fraction=0.5, policy="momentum")
    for gradient in ([1.0, 9.0, 1.0, 8.0], [90.0, 0.0, 80.0, 0.0]):
        before = weights.detach().clone()
        weights.grad = torch.tensor(gradient)
        optimizer.step()
    assert (weights != before).tolist() == [True, False, True, False]
    with pytest.raises(K1Error, match="first moments"):
        plain = attached(torch.optim.SGD([weights], lr=0.1), policy="momentum")
        plain.step()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "distributed checkpoint"])
def test_training_resumes_to_the_same_bits(policy, way):
    """Six steps at once, and three, a copy of model and optimizer by `way`, and three more."""

    def begin(model: Everything) -> torch.optim.Optimizer:
        return attached(torch.optim.AdamW(trained(model), lr=1e-2), seed=5, policy=policy)

    whole = Everything()
    optimizer = begin(whole)
    for _ in range(6):
        step(whole, optimizer)

    first = Everything()
    optimizer = begin(first)
    for _ in range(3):
        step(first, optimizer)
    if way == "deepcopy":
        # Together, so that the copied optimizer has the copied parameters. As torch has it, hooks do not go along.
        second, resumed = copy.deepcopy((first, optimizer))
        attached(resumed, seed=5, policy=policy)
    else:
        second = Everything()
        second.load_state_dict(first.state_dict())
        resumed = begin(second)
        if way == "state_dict":
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        else:
            state = copy.deepcopy(get_optimizer_state_dict(first, optimizer))
            set_optimizer_state_dict(second, resumed, state, options=StateDictOptions(strict=False))
            second.load_state_dict(first.state_dict())
    for _ in range(3):
        step(second, resumed)
    assert bits(second) == bits(whole)


def test_learning_rate_is_put_back_after_a_step_that_failed():
    model = Everything()
    optimizer = attached(torch.optim.AdamW(trained(model), lr=1e-2))

    def fails() -> float:
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        optimizer.step(fails)
    step(model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    with pytest.raises(ValueError, match="no loss"):
        optimizer.step(fails)
    updates = optimizer.sparse_updates
    updates.remove()
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_groups_keep_their_rates_and_a_group_added_later_takes_part():
    model = Everything()
    optimizer = attached(torch.optim.AdamW([{"params": [model.matrix], "lr": 1e-2}], lr=1e-3), fraction=0.5)
    step(model, optimizer)
    optimizer.add_param_group({"params": [model.vector], "lr": 1e-1})
    before = snapshot(model)
    step(model, optimizer)
    assert changed(before, model) == round(0.5 * (model.matrix.numel() + model.vector.numel()))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_parameters_do_not_count(dtype):
    model = Everything(dtype)
    optimizer = attached(torch.optim.SGD(model.parameters(), lr=1.0), fraction=0.5)
    before = snapshot(model)
    for parameter in trained(model):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert changed(before, model) == round(0.5 * sum(parameter.numel() for parameter in trained(model)))


def test_closure_is_called_with_the_parameters_of_before_and_its_loss_returned():
    model = Everything()
    optimizer = attached(torch.optim.AdamW(trained(model), lr=1e-2))
    expected = model.loss().item()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == expected


def test_step_that_a_gradient_scaler_skips_changes_nothing():
    model = Everything()
    optimizer = attached(torch.optim.AdamW(trained(model), lr=1e-2))
    scaler = torch.amp.GradScaler("cpu")
    before = snapshot(model)
    scaler.scale(model.loss() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert changed(before, model) == 0
    optimizer.zero_grad()
    scaler.scale(model.loss()).backward()
    scaler.step(optimizer)
    assert changed(before, model) > 0


def test_fraction_1_and_removed_updates_are_the_dense_optimizer():
    dense, whole, removed = Everything(), Everything(), Everything()
    optimizers = [torch.optim.AdamW(trained(model), lr=1e-2) for model in (dense, whole, removed)]
    k1.sparse_updates(optimizers[1], fraction=1.0)
    k1.sparse_updates(optimizers[2]).remove()
    for _ in range(3):
        for model, optimizer in zip((dense, whole, removed), optimizers):
            step(model, optimizer)
    assert bits(dense) == bits(whole) == bits(removed)


def test_a_parameter_that_a_step_gives_other_memory_keeps_its_windows():
    """As implementations of SAM do."""

    class Moving(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.data = parameter.data - 0.1 * parameter.grad

    model = nn.Linear(40, 40)
    before, optimizer = snapshot(model), attached(Moving(model.parameters(), lr=0.1))
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    assert changed(before, model) == round(0.51 * 1640)


@pytest.mark.parametrize(
    ("settings", "message"),
    [*(({"fraction": value}, "fraction") for value in (0, 1.1, float("nan"))), ({"policy": "half"}, "windows, stage")],
)
def test_what_cannot_be_is_one_clear_line(settings, message):
    optimizer = torch.optim.SGD(Everything().parameters(), lr=0.1)
    with pytest.raises(K1Error, match=message):
        k1.sparse_updates(optimizer, **settings)
    k1.sparse_updates(optimizer)
    with pytest.raises(K1Error, match="already"):
        k1.sparse_updates(optimizer)
    optimizer.eval = lambda: None  # as of schedule-free optimizers
    optimizer.sparse_updates.remove()
    with pytest.raises(K1Error, match="weights of its own"):
        k1.sparse_updates(optimizer)
