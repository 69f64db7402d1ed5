"""Memory of the process, and of the tensors that a training keeps."""

from pathlib import Path

import pytest
import torch

from k1.arguments import parse_training_flags
from k1.benchmark import memory
from k1.benchmark.memory import AnonymousPeak, kept_bytes, resident_bytes, settled_bytes, tensors_within
from k1.errors import K1Error
from k1.model import count_parameters, keep_freed_memory
from k1.sparse.eigenbasis import folded_copy
from k1.sparse.optimizer import SparseAdamW
from k1.training.optimization import build_optimizer

MEGABYTE = 10**6


def test_the_peak_is_noticed_after_it_is_gone():
    with AnonymousPeak() as peak:
        block = torch.ones(20 * MEGABYTE)
        block.add_(1)
        sum(range(3 * MEGABYTE))  # a while, so that the peak is seen
        del block
    assert 70 * MEGABYTE < peak.bytes < 200 * MEGABYTE


def test_memory_of_this_process_grows_by_what_is_taken():
    before = settled_bytes()
    block = torch.ones(25 * MEGABYTE)
    assert resident_bytes() - before > 90 * MEGABYTE
    del block
    assert resident_bytes("VmHWM") >= before


def test_freed_memory_is_kept_for_the_next_tensor_until_it_is_asked_back():
    keep_freed_memory()
    before, megabytes = settled_bytes(), 100
    for _ in range(3):
        block = torch.ones(megabytes * MEGABYTE // 4)
        del block
    assert resident_bytes() - before > 0.9 * megabytes * MEGABYTE
    assert settled_bytes() - before < 0.1 * megabytes * MEGABYTE


def test_a_system_without_proc_is_named(monkeypatch):
    monkeypatch.setattr(memory, "STATUS", Path("/nowhere/status"))
    with pytest.raises(K1Error, match="/nowhere/status cannot be read .* on Linux only"):
        resident_bytes()


def test_tensors_are_found_in_containers_and_attributes_but_not_in_modules():
    class Holder:
        def __init__(self, *values):
            self.values = values

    kept = [torch.zeros(n) for n in (1, 2, 3, 4)]
    circle = [kept[3]]
    circle.append(circle)
    root = {"a": [kept[0], {"b": Holder(kept[1], torch.nn.Linear(2, 2), len)}], "c": {("d", 1): kept[2]}, "e": circle}
    assert sorted(len(tensor) for tensor in tensors_within(root)) == [1, 2, 3, 4]


def step_and_look(model, method, stage, *flags):
    """What a training of `method` keeps when its optimizer takes its second step."""
    arguments = parse_training_flags("", method, ["--preset", "smoke", "--device", "cpu", *flags]).resolve(stage)
    importance, responsibility = (
        {name: torch.rand_like(value) for name, value in model.named_parameters()} if stage > 1 else None
        for _ in range(2)
    )
    optimizer = build_optimizer(model, arguments, importance, responsibility)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return {kind: size / count_parameters(model) for kind, size in kept_bytes(model, optimizer).items()}


def test_a_dense_training_keeps_weights_gradients_and_two_moments(tiny_model):
    found = step_and_look(tiny_model, "baseline", 1)
    # Beside the moments a count of steps for each tensor.
    assert (found["weights"], found["gradients"], found["importance"]) == (4, 4, 0)
    assert 8 <= found["optimizer"] < 8.2


@pytest.mark.parametrize(("selection", "kept"), [("error_feedback", 4), ("gain", 8)])
def test_the_responsibility_is_kept_only_where_it_selects(tiny_model, selection, kept):
    found = step_and_look(tiny_model, "k1", 2, "--selection", selection)
    assert found["importance"] == kept
    assert found["optimizer"] > 8.2


def test_the_teacher_is_counted_besides(tiny_model):
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.1)
    teacher = folded_copy(tiny_model)
    assert kept_bytes(tiny_model, optimizer)["teacher"] == 0
    assert kept_bytes(tiny_model, optimizer, teacher)["teacher"] >= 4 * count_parameters(tiny_model)
    assert kept_bytes(tiny_model, optimizer, tiny_model)["teacher"] == 0


def test_memory_that_two_tensors_share_is_counted_once(tiny_model):
    whole = torch.zeros(100)
    evidence = {"importance": {"whole": whole}, "responsibility": {"part": whole[:10]}}
    trained = [("whole", torch.nn.Parameter(torch.zeros(100)))]
    optimizer = SparseAdamW(trained, selection="gain", update_fraction=0.5, **evidence)
    found = kept_bytes(tiny_model, optimizer)
    assert found["importance"] == 400
    # The start values of the parameter that it steps, and the parameter itself, which is none of the model's.
    assert found["optimizer"] == 800
