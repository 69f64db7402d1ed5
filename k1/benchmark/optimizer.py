"""The optimizer by itself, in turn with AdamW on the same parameters: time and memory at sizes too large to train."""

import time

import torch

from k1.benchmark.contestants import BETAS, COMPILE, OWN
from k1.benchmark.memory import kept_bytes, resident_bytes, settled_bytes
from k1.benchmark.pacing import WARM_UP, spread
from k1.benchmark.setting import Setting
from k1.model import build_model, count_parameters, model_config
from k1.sparse.eigenbasis import basis_sides, linear_layers, restore_eigenbasis
from k1.sparse.importance import PRECISION
from k1.training.optimization import build_optimizer

# Neither rehearsal nor compilation changes the optimizer.
KINDS = {name: how for name, how in OWN.items() if not {"--rehearsal", COMPILE} & set(how)}
ACTIVATION_TOKENS = 2, 258


def made_up_bases(model: torch.nn.Module, max_basis_dim: int) -> dict[str, torch.Tensor]:
    """Orthogonal bases for every side of a linear layer that K-1 gives one, as the state of a model names them."""
    bases, found = {}, {}
    for name, layer in linear_layers(model).items():
        for side in basis_sides(model, layer, max_basis_dim):
            size = layer.weight.shape[side]
            if size not in bases:
                bases[size] = torch.linalg.qr(torch.randn(size, size)).Q
            found[f"{name}.parametrizations.weight.0.{('left', 'right')[side]}"] = bases[size].clone()
    return found


def optimizer_alone(setting: Setting, name: str, rounds: int) -> dict:
    """Steps of the optimizer of `name` in turn with fused AdamW's, on gradients drawn anew for each round.

    Returns `parameters`, `peak_bytes` (of the process, from before the model was
    built until before AdamW comes in), `kept_bytes`, `milliseconds_per_million`
    parameters of a step, and its `time_ratio` to AdamW's.
    """
    setting.begin()
    torch.manual_seed(0)
    method, stage, *flags = KINDS[name]
    arguments = setting.arguments(method, stage, *flags)
    before = settled_bytes()
    model = build_model(model_config(arguments, arguments.vocabulary_size), seed=0)
    importance, responsibility = None, None
    if stage > 1:
        restore_eigenbasis(model, made_up_bases(model, arguments.max_basis_dim))
        importance, responsibility = (
            {name: torch.rand_like(parameter, dtype=PRECISION) for name, parameter in model.named_parameters()}
            for _ in range(2)
        )
    optimizer = build_optimizer(model, arguments, importance, responsibility)
    del importance, responsibility
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    for _ in range(WARM_UP):
        timed_step(model, optimizer)
    peak = resident_bytes("VmHWM") - before
    kept = kept_bytes(model, optimizer)
    adamw = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, betas=BETAS, fused=True)
    timed_step(model, adamw)
    pairs = [(timed_step(model, optimizer), timed_step(model, adamw)) for _ in range(rounds)]
    ours = [mine for mine, _ in pairs]
    parameters = count_parameters(model)
    return {
        "parameters": parameters,
        "peak_bytes": peak,
        "kept_bytes": kept,
        "milliseconds_per_million": spread([1e9 * seconds / parameters for seconds in ours]),
        "time_ratio": spread([mine / other for mine, other in pairs]),
    }


def timed_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step of `optimizer` on new gradients."""
    for parameter in model.parameters():
        parameter.grad.normal_()
    started = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - started


def activation_bytes(setting: Setting, tokens: int) -> int:
    """How far the memory of this process rises in forward and backward passes of `tokens` tokens by the baseline."""
    setting.begin()
    arguments = setting.arguments("baseline", 1)
    model = build_model(model_config(arguments, arguments.vocabulary_size), seed=0)
    before = settled_bytes()
    for _ in range(2):
        input_ids = torch.randint(0, arguments.vocabulary_size, (1, min(tokens, arguments.seq_length)))
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        model.zero_grad()
    return resident_bytes("VmHWM") - before
