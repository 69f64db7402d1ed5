"""The eigenbasis: the same function in other coordinates, in which the Kronecker factors are diagonal."""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from k1.arguments import parse_training_flags
from k1.checkpoints.contents import Checkpoint
from k1.checkpoints.storage import restore_model
from k1.errors import K1Error
from k1.model import build_model, count_parameters
from k1.sparse.eigenbasis import (
    Eigenbasis, enter_eigenbasis, fold_eigenbasis, folded_copy, linear_layers, restore_eigenbasis,
)  # fmt: skip
from k1.training.loop import train

VOCABULARY, WIDTH, INNER, LENGTH = 37, 12, 20, 16
NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
LLAMA = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False, **NO_TOKENS,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_inner": INNER, "n_layer": 2, "n_head": 2,
    "n_positions": LENGTH, **NO_TOKENS,
}  # fmt: skip
CONFIGS = {
    "llama": LLAMA,
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "llama-biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "tie_word_embeddings": False},
}
TIED = {"llama-tied", "gpt2"}
ALL_SIDES = 10_000

every_model = pytest.mark.parametrize("kind", CONFIGS)


def model_of(kind, seed=0):
    """A model whose biases and normalisations are not the zeros and ones they start as, and whose logits vary."""
    model = build_model(CONFIGS[kind], seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def batches(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (4, LENGTH), generator=generator) for _ in range(count)]


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=batches(1, seed=9)[0]).logits


def bases_of(model):
    """Layer name -> (left, right)."""
    return {
        name.removesuffix(".parametrizations.weight.0"): (module.left, module.right)
        for name, module in model.named_modules()
        if isinstance(module, Eigenbasis)
    }


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@every_model
@pytest.mark.parametrize("max_basis_dim", [0, WIDTH, ALL_SIDES])
def test_the_function_and_the_number_of_parameters_stay(kind, max_basis_dim):
    model = model_of(kind)
    before, parameters, plain = logits_of(model), count_parameters(model), copy.deepcopy(model)
    enter_eigenbasis(model, batches(), max_basis_dim)
    assert before.std() > 0.5
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=1e-5)
    assert count_parameters(model) == parameters
    assert all(parameter.grad is None for parameter in model.parameters())
    # What is no linear weight stays as it is.
    state, layers = model.state_dict(), linear_layers(plain)
    for name, value in plain.state_dict().items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(state[name], value), name


@every_model
@pytest.mark.parametrize("max_basis_dim", [WIDTH // 2, WIDTH, ALL_SIDES])
def test_bases_are_orthogonal_and_on_the_shorter_sides(kind, max_basis_dim):
    model = model_of(kind)
    shapes = {name: layer.weight.shape for name, layer in linear_layers(model).items()}
    enter_eigenbasis(model, batches(), max_basis_dim)
    bases = bases_of(model)
    assert bases.keys() == {name for name, shape in shapes.items() if min(shape) <= max_basis_dim}
    for name, sides in bases.items():
        for side, (basis, size) in enumerate(zip(sides, shapes[name])):
            if size > min(shapes[name]):
                assert basis is None, (name, side)
            else:
                assert basis.shape == (size, size)
                torch.testing.assert_close(basis.T @ basis, torch.eye(size), rtol=0, atol=1e-5)


@every_model
def test_an_output_layer_gets_a_basis_unless_the_embedding_shares_its_weight(kind):
    model = model_of(kind)
    enter_eigenbasis(model, batches(), ALL_SIDES)
    embedding = model.get_input_embeddings().weight
    assert ("lm_head" in bases_of(model)) == (kind not in TIED)
    assert (model.get_output_embeddings().weight is embedding) == (kind in TIED)
    # Each layer but the output layer, by name, so that none is forgotten.
    per_block = {"llama": 7, "gpt2": 4}[kind.split("-")[0]]
    assert sum(name != "lm_head" for name in bases_of(model)) == 2 * per_block


@every_model
def test_without_any_basis_nothing_changes(kind):
    model = model_of(kind)
    before, state, names = logits_of(model), state_of(model), [name for name, _ in model.named_parameters()]
    enter_eigenbasis(model, batches(), 0)
    assert torch.equal(logits_of(model), before)
    assert same_bits(state_of(model), state)
    assert [name for name, _ in model.named_parameters()] == names


def test_an_output_layer_with_few_tokens_has_its_basis_on_the_side_of_its_inputs():
    model = build_model({**LLAMA, "vocab_size": WIDTH - 2}, 0)
    enter_eigenbasis(model, [ids % (WIDTH - 2) for ids in batches()])
    left, right = bases_of(model)["lm_head"]
    assert left is None and right.shape == (WIDTH, WIDTH)


def token_factors(model, name):
    """Sums over all tokens of x x^T and d d^T of the layer `name`, from its inputs and output gradients one by one."""
    model = copy.deepcopy(model).double().eval()
    layer = model.get_submodule(name)
    seen = []

    def watch(layer, inputs, output):
        output.retain_grad()
        seen.append((inputs[0], output))

    layer.register_forward_hook(watch)
    for ids in batches():
        logits = model(input_ids=ids).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    inputs = torch.cat([x.detach().reshape(-1, x.shape[-1]) for x, _ in seen])
    gradients = torch.cat([y.grad.reshape(-1, y.shape[-1]) for _, y in seen])
    assert len(inputs) == len(gradients) == 3 * 4 * LENGTH
    return [sum(torch.outer(vector, vector) for vector in vectors) for vectors in (inputs, gradients)]


@every_model
def test_the_bases_diagonalise_the_kronecker_factors(kind):
    # GPT-2 has dropout, which must not reach the factors.
    model = model_of(kind).train()
    plain = copy.deepcopy(model)
    enter_eigenbasis(model, batches(), ALL_SIDES)
    for name, sides in bases_of(model).items():
        factors = token_factors(plain, name)
        # An nn.Linear holds (outputs, inputs), a Conv1D (inputs, outputs).
        rows_first = factors if isinstance(plain.get_submodule(name), Conv1D) else factors[::-1]
        for basis, factor in zip(sides, rows_first):
            if basis is None:
                continue
            rotated = basis.double().T @ factor @ basis.double()
            eigenvalues, scale = rotated.diagonal(), torch.linalg.matrix_norm(factor, 2)
            off_diagonal = rotated - eigenvalues.diag()
            assert off_diagonal.abs().max() < 1e-5 * scale, name
            assert (eigenvalues.diff() < 1e-5 * scale).all(), name
            # Else any orthogonal basis would pass.
            assert (factor - factor.diagonal().diag()).abs().max() > 1e-2 * scale, name


@every_model
@pytest.mark.parametrize("max_basis_dim", [WIDTH, ALL_SIDES])
def test_a_saved_state_gives_the_same_bits_in_a_fresh_model(kind, max_basis_dim, tmp_path):
    model = model_of(kind)
    enter_eigenbasis(model, batches(), max_basis_dim)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = build_model(CONFIGS[kind], seed=5)
    assert not torch.allclose(logits_of(fresh), logits_of(model), atol=1e-2)
    restore_eigenbasis(fresh, state)
    fresh.load_state_dict(state)
    assert torch.equal(logits_of(fresh), logits_of(model))
    assert same_bits(fresh.state_dict(), model.state_dict())
    assert dict(fresh.named_parameters()).keys() == dict(model.named_parameters()).keys()


def test_a_state_without_bases_is_that_of_a_plain_model():
    model = model_of("llama")
    restore_eigenbasis(model, model.state_dict())
    assert not bases_of(model)


def checkpoint_of(model, kind):
    rest = {"tokenizer": "", "arguments": {}, "datasets": [], "evaluations": [], "initial_evaluation": {}}
    return Checkpoint(
        method="k1", stage=1, model_config=CONFIGS[kind], model=state_of(model), seed=5, history=[], **rest
    )


@every_model
@pytest.mark.parametrize("from_a_checkpoint", [False, True])
def test_folding_gives_a_plain_model_of_the_same_function(kind, from_a_checkpoint):
    model = model_of(kind)
    plain = state_of(model)
    enter_eigenbasis(model, batches(), ALL_SIDES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    before = logits_of(model)
    if from_a_checkpoint:
        checkpoint = checkpoint_of(model, kind)
        assert torch.equal(logits_of(restore_model(checkpoint, "cpu")), before)
        model = restore_model(checkpoint, "cpu", fold=True)
    else:
        fold_eigenbasis(model)
    folded = model.state_dict()
    assert {name: value.shape for name, value in folded.items()} == {name: v.shape for name, v in plain.items()}
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=1e-5)
    fresh = build_model(CONFIGS[kind], seed=5)
    fresh.load_state_dict(folded)
    assert torch.equal(logits_of(fresh), logits_of(model))


def test_folding_a_plain_model_changes_nothing():
    model = model_of("llama")
    before = state_of(model)
    fold_eigenbasis(model)
    assert same_bits(model.state_dict(), before)


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2-untied"])
@pytest.mark.parametrize("selection", ["gradient", "all"])
def test_training_moves_theta_and_never_the_bases(kind, selection):
    model = model_of(kind)
    enter_eigenbasis(model, batches(), ALL_SIDES)
    before = state_of(model)
    rows = Dataset.from_dict({"input_ids": torch.cat(batches()).tolist()}).with_format("torch")
    flags = ["--preset", "smoke", "--selection", selection, "--max_steps", "3", "--seq_length", str(LENGTH)]
    arguments = parse_training_flags("", "k1", flags).resolve(stage=1)
    train(model, SimpleNamespace(name="rows", blocks={"train": rows}), arguments)
    buffers, after = dict(model.named_buffers()), model.state_dict()
    bases = {name for name in before if name.endswith((".left", ".right"))}
    assert bases and bases <= buffers.keys()
    assert same_bits({name: after[name] for name in bases}, {name: before[name] for name in bases})
    for name, _ in model.named_parameters():
        assert not torch.equal(after[name], before[name]), name


def test_a_layer_without_gradient_keeps_its_weight():
    """A layer the loss does not depend on has factors of zeros; any basis will do."""
    model = model_of("llama")
    model.unused = nn.Linear(5, 3)
    weight, before = model.unused.weight.detach().clone(), logits_of(model)
    enter_eigenbasis(model, batches(), ALL_SIDES)
    torch.testing.assert_close(model.unused.weight, weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=1e-5)


def test_a_model_that_has_diverged_is_refused_with_a_clear_line():
    model = model_of("llama")
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(K1Error, match="diverged.* lower --learning_rate"):
        enter_eigenbasis(model, batches(), ALL_SIDES)


@every_model
def test_a_folded_copy_computes_the_same_and_lives_on_its_own(kind):
    model = model_of(kind)
    enter_eigenbasis(model, batches(), ALL_SIDES)
    random_state = torch.random.get_rng_state()
    plain, expected = folded_copy(model), logits_of(model)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not bases_of(plain) and bases_of(model)
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(logits_of(plain), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits_of(model), expected, rtol=1e-2)
